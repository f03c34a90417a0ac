"""The controllers that others publish and use, faithfully, flaws included. `docs/control.md` shows what those cost."""

from kleash.control.config import ScheduleConfig
from kleash.control.law import Answer, Question, clip


def fixed(question: Question, memory: None) -> Answer:
    """β as it was."""
    return Answer(question.kl_coef)


def schedule(question: Question, memory: None) -> Answer:
    """β by the step alone: a warm-up from 0, then from `kl_coef` to `end` in a straight line or half a cosine."""
    config, start = question.config.schedule, question.config.start
    if question.step <= config.warmup:
        return Answer(start * question.step / config.warmup)
    return Answer(start + (config.end - start) * _share(config, question.step))


def _share(config: ScheduleConfig, step: int) -> float:
    """Of the way from start to end, 0 to 1."""
    if config.shape == "constant":
        return 0.0
    past = clip((step - config.warmup) / max(config.steps - config.warmup, 1), 0.0, 1.0)
    return past if config.shape == "linear" else (1.0 - cosine(past)) / 2.0


def cosine(half_turns: float) -> float:
    """cos(π h) for 0 ≤ h ≤ 1, by its series.

    Examples:
        >>> cosine(0.0), round(cosine(1 / 3), 15), cosine(1.0)
        (1.0, 0.5, -1.0)
    """
    if half_turns > 0.5:
        return -cosine(1.0 - half_turns)
    angle = 3.141592653589793 * half_turns
    total = term = 1.0
    for n in range(2, 26, 2):
        term *= -angle * angle / (n * (n - 1))
        total += term
    return total


def ziegler(question: Question, memory: None) -> Answer:
    """β ← β (1 + K e), e = clip(KL/target − 1, ±error_clip).

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2: K = 0.1. Their released code has K = n_steps/horizon: 0.0512 at
    512 responses and a horizon of 10,000. An integral control of log β: while KL rises, and is still short of the
    target, it winds β down. K is kept at 1: beyond 1/error_clip the factor would turn negative.
    """
    config, count = question.config.ziegler, question.signals.num_responses
    gain = config.gain if config.gain is not None else min(count / config.horizon, 1.0)
    error = clip(question.relative_error, -config.error_clip, config.error_clip)
    capped = config.gain is None and count > config.horizon
    note = "gain capped at 1: more responses than ziegler.horizon" if capped else ""
    return Answer(question.kl_coef * (1.0 + error * gain), note=note)


def ppo(question: Question, memory: None) -> Answer:
    """β doubled above 1.5 times the target, halved below 1/1.5 of it.

    Schulman et al. 2017 (arXiv 1707.06347), section 4, there for KL(old‖new). Nothing happens inside the band, and
    where KL answers to β by more than the power 1.17 it jumps from one side of it to the other for ever.
    """
    if question.kl > 1.5 * question.target:
        return Answer(question.kl_coef * 2.0)
    if question.kl < question.target / 1.5:
        return Answer(question.kl_coef / 2.0)
    return Answer(question.kl_coef)


def dual(question: Question, memory: None) -> Answer:
    """β ← β + rate (KL − target): ascent on the Lagrangian dual of E[R] under KL ≤ target.

    Its gain on log β is rate · target/β: it depends on the units of reward and target.
    """
    return Answer(question.kl_coef + question.config.dual.rate * (question.kl - question.target))
