"""Responses side by side: the policy's with its KL per token as heat, and the reference's to the same prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kleash.report.text import short_name
from kleash.report.view import Measured, RunView, Sample

HOTTEST = 4.0
"""Nats of KL at one token that get the full colour."""

MAX_PROMPTS = 12
"""Prompts shown; samples.jsonl has them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token and how far the two models disagreed when it was drawn."""

    text: str
    kl: Measured
    """Nats."""

    @property
    def heat(self) -> float:
        """Colour from 0 to 1, the square root of the KL, so that small values still show.

        Examples:
            >>> [Token(text="", kl=kl).heat for kl in (None, 0.04, 1.0, 9.0)]
            [0.0, 0.1, 0.5, 1.0]
        """
        if self.kl is None or not self.kl > 0:
            return 0.0
        return round(min(1.0, math.sqrt(self.kl / HOTTEST)), 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One model's response to a prompt."""

    author: str
    colour: str
    """Empty for the reference."""
    text: str
    tokens: tuple[Token, ...]
    scores: tuple[tuple[str, Measured], ...]
    """Name and value: reward, monitors, KL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A prompt with every answer to it, the reference's last."""

    prompt: str
    answers: tuple[Answer, ...]


def exchanges(runs: Sequence[RunView], colours: Sequence[str]) -> list[Exchange]:
    """The last samples of each run, prompt by prompt, in the order of the first run's file."""
    latest = [_latest(run) for run in runs]
    prompts = list(dict.fromkeys(prompt for samples in latest for prompt in samples))
    return [
        Exchange(prompt=prompt, answers=_answers(prompt, runs, colours, latest))
        for prompt in prompts[:MAX_PROMPTS]
    ]


def _latest(run: RunView) -> dict[str, Sample]:
    """The first sample of each prompt at the last step that drew any."""
    last = max((sample.step for sample in run.samples), default=0)
    samples = [sample for sample in run.samples if sample.step == last]
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.prompt, sample)
    return first


def _answers(
    prompt: str,
    runs: Sequence[RunView],
    colours: Sequence[str],
    latest: Sequence[dict[str, Sample]],
) -> tuple[Answer, ...]:
    drawn = [
        (run, colour, samples[prompt])
        for run, colour, samples in zip(runs, colours, latest, strict=True)
        if prompt in samples
    ]
    answers = [_policy_answer(run.name, colour, sample) for run, colour, sample in drawn]
    for _, _, sample in drawn:
        if sample.reference_response is not None:
            return (*answers, _reference_answer(sample.reference_response, sample.reference_reward))
    return tuple(answers)


def _policy_answer(author: str, colour: str, sample: Sample) -> Answer:
    return Answer(
        author=author,
        colour=colour,
        text=sample.response,
        tokens=tuple(
            Token(text=text, kl=kl)
            for text, kl in zip(sample.tokens, sample.kl_per_token, strict=True)
        ),
        scores=(
            ("reward", sample.reward),
            *((short_name(name), value) for name, value in sample.monitor.items()),
            ("KL", sample.kl_policy_ref),
        ),
    )


def _reference_answer(text: str, reward: Measured) -> Answer:
    return Answer(author="reference", colour="", text=text, tokens=(), scores=(("reward", reward),))
