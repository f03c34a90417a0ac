"""What a study costs, before it is begun: seconds of one core, reckoned from what its pieces cost here once.

The rates are of the embedded models on one core that multiplies large float32 matrices at 100 GFLOP/s. Another model
is taken to cost as much more as it has more parameters: right within a factor of two, which is what a person asks who
wants to know whether it is minutes or days. Where a model's size can't be told the cost is NaN.
"""

import math
from collections.abc import Iterable

from pydantic import BaseModel

from kleash.lab.arms.settings import (
    BASE,
    ArmSettings,
    FaultSettings,
    Policy,
    PoolSettings,
    ProxySettings,
    StudentSettings,
    WeighSettings,
)
from kleash.models.loading import count_parameters

RESPONSE = 0.022
"""Seconds of sampling, scoring, metering and learning from one response of 24 tokens."""
ANSWER = 0.008
"""Seconds of sampling one."""
SCORING = 0.003
"""Seconds of one score."""
PAIR = 0.033
"""Seconds of a pair: two answers, two scores, one fit."""
LESSON = 0.2
"""Seconds of a step of a student."""
FAULT = 0.5
"""Seconds of a step of planting a fault."""
PROMPTS = 96
"""Embedded ones: all of them are answered where a fault is weighed."""
START = 4.0
"""Seconds to load models, and to examine a policy's fresh responses, besides."""
TOKENS = 24


def seconds_of(pieces: Iterable[BaseModel]) -> float:
    """Core seconds of pieces by their settings, each counted once.

    Examples:
        >>> round(seconds_of([ArmSettings(steps=40, num_prompts=16, group_size=2)]))
        38
    """
    return sum(map(_seconds, set(pieces)))


def seconds_of_untrained(arms: Iterable[ArmSettings]) -> float:
    """Core seconds of examining what arms begin as.

    Examples:
        >>> round(seconds_of_untrained([ArmSettings()]))
        15
    """
    return sum(
        START + arm.evaluation.num_prompts * arm.evaluation.group_size * (ANSWER + 2 * SCORING)
        for arm in set(arms)
    )


def _seconds(piece: BaseModel) -> float:
    if isinstance(piece, ArmSettings):
        fresh = piece.evaluation.num_prompts * piece.evaluation.group_size
        fresh += 0 if piece.retention is None else 3 * piece.retention.texts
        each = RESPONSE + SCORING * (len(piece.rewards) + len(piece.monitors) - 1)
        drawn = piece.steps * piece.num_prompts * piece.group_size * each + fresh * ANSWER
        return START + drawn * _times(piece.policy) * piece.max_new_tokens / TOKENS
    if isinstance(piece, ProxySettings):
        return START + piece.pairs * PAIR * _times(piece.base) * piece.max_new_tokens / TOKENS
    if isinstance(piece, StudentSettings):
        return START + piece.steps * LESSON + piece.texts * ANSWER
    if isinstance(piece, FaultSettings):
        return START + (piece.steps * FAULT + piece.texts * ANSWER) * _times(piece.base)
    if isinstance(piece, WeighSettings):
        return START + PROMPTS * piece.samples * (ANSWER + 2 * SCORING) * _times(piece.policy)
    if isinstance(piece, PoolSettings):
        each = ANSWER + SCORING * (1 + len(piece.rewards))
        drawn = piece.num_prompts * piece.samples * each
        return START + drawn * _times(piece.policy) * piece.max_new_tokens / TOKENS
    raise TypeError(type(piece).__name__)


def _times(model: Policy) -> float:
    """How much larger than the embedded model; NaN where that can't be told before it is loaded."""
    if isinstance(model, FaultSettings):
        return _times(model.base)
    if isinstance(model, StudentSettings):
        return 1.0  # its vocabulary costs as much
    return (count_parameters(model) or math.nan) / (count_parameters(BASE) or math.nan)


def told(seconds: float, jobs: int) -> str:
    """A cost as a person says it.

    Examples:
        >>> told(700.0, 2)
        'about 6 minutes on 2 cores'
        >>> told(4e5, 1)
        'about 4.6 days on 1 core'
        >>> told(math.nan, 1)
        "how long isn't known: a model's size can't be told before it is loaded"
    """
    if math.isnan(seconds):
        return "how long isn't known: a model's size can't be told before it is loaded"
    alone = seconds / jobs
    size, unit = next(
        (
            (s, u)
            for s, u in ((86400, "days"), (3600, "hours"), (60, "minutes"))
            if alone >= 1.5 * s
        ),
        (1, "seconds"),
    )
    amount = alone / size
    shown = f"{amount:.0f}" if amount >= 5 or unit == "seconds" else f"{amount:.1f}"
    return f"about {shown} {unit} on {jobs} core{'s' if jobs > 1 else ''}"
