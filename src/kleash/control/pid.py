"""Proportional, integral and derivative control of log β, in velocity form."""

from dataclasses import dataclass

from kleash.control.law import Answer, Question, clip, exponential, log_ratio

FURTHEST = 1e6
"""Times the target: an average of anything further off would overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PIDMemory:
    """The smoothed KL and the last two errors."""

    kl: float
    error: float
    error_before: float


def pid(question: Question, memory: PIDMemory | None) -> Answer:
    """Δ log β = kp (e − e′) + ki e + kd (e − 2e′ + e″), e = log(KL/target) of the smoothed KL.

    With ki/kp at the plant's own pole, η β/(1 − η β), the loop is a pure integrator that doesn't overshoot
    (`docs/control.md`). In velocity form nothing is summed up but β itself: where a rail or the slew holds it, nothing
    winds up behind.
    """
    config, furthest = question.config.pid, FURTHEST * question.target
    kl = clip(question.kl, -furthest, furthest)
    if memory is not None:
        kl = memory.kl + config.smoothing * (kl - memory.kl)
    # k1 may read below 0, where no logarithm is: as at 0, the furthest below any target.
    error = log_ratio(max(kl, 0.0), question.target)
    last, before = (error, error) if memory is None else (memory.error, memory.error_before)
    move = (
        config.kp * (error - last) + config.ki * error + config.kd * (error - 2.0 * last + before)
    )
    factor = exponential(clip(move, -config.slew, config.slew))
    remembered = PIDMemory(kl=kl, error=error, error_before=last)
    return Answer(question.kl_coef * factor, remembered)
