"""Figures of the steps that a run recorded, against its first ones, at which it is its reference still."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

Steps = Sequence[Mapping[str, Any]]
"""What a run recorded, as `train_arm` gives it."""
Figures = list[float | None]
"""One of each step; None where it could not be had."""

BASE = 3
"""First steps, which say what the reference does: the policy has hardly moved."""
UNIT = "standard deviations at the reference"
"""Of gains and of disagreement."""


def had(values: Sequence[float | None]) -> list[float]:
    """What there is."""
    return [x for x in values if x is not None]


def figure(steps: Steps, name: str) -> Figures:
    """One of the figures of every step."""
    return [row[name] for row in steps]


def base(steps: Steps, name: str) -> float | None:
    """Mean over the first steps; None where none was measured."""
    first = had(figure(steps[:BASE], name))
    return fmean(first) if first else None


def less_base(steps: Steps, name: str) -> Figures:
    """A figure less what it was at first."""
    first = base(steps, name)
    return [None if x is None or first is None else x - first for x in figure(steps, name)]


def gains(steps: Steps) -> Figures:
    """The gain of a run's reward over its first steps, in standard deviations of the reward there.

        (r̄_t − r̄_0)/σ_0

    Args:
        steps: of the run.
    """
    sigma = base(steps, "reward_std")
    return [None if x is None or not sigma else x / sigma for x in less_base(steps, "reward")]


def disagreement(steps: Steps) -> Figures:
    """How far reward models that were not trained on are from the reward that was, in its gain.

        √(1/K Σ_k (g_k − ḡ)²)

    g are the gains of the reward and of every monitor, each in its own standard deviations at the reference; a lab's
    monitors are proxies, which are fitted to unit spread there. Levels, which mean nothing, are not in gains. None
    where one of them failed, or there is one alone.

    Args:
        steps: of the run.

    Examples:
        >>> row = {"reward": 0.0, "reward_std": 2.0, "monitor/0": 5.0}
        >>> disagreement([row] * 3 + [{**row, "reward": 4.0}])
        [0.0, 0.0, 0.0, 1.0]
    """
    names = sorted(name for name in steps[0] if name.startswith("monitor/"))
    rows = zip(gains(steps), *(less_base(steps, name) for name in names), strict=True)
    return [_apart(row) for row in rows]


def _apart(members: Sequence[float | None]) -> float | None:
    """Standard deviation over an ensemble's members; None unless each has its figure, and there are two."""
    known = had(members)
    if len(known) < max(len(members), 2):
        return None
    middle = fmean(known)
    return math.sqrt(fmean((x - middle) ** 2 for x in known))
