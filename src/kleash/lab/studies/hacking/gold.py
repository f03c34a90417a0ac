"""What became of the gold reward of runs that were trained on another: where it peaked, and when it was lost."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from kleash.lab.studies.hacking.alarms import WINDOW
from kleash.lab.study.curves import Curve, curve, peaks
from kleash.lab.study.followed import BASE, Steps
from kleash.lab.study.statistics import differences

SHARE = 0.2
"""Of its gain that the gold reward has lost when it is too late."""
NOISE = 4.0
"""Standard errors of the difference of two windows that a loss has to be at least: a peak is the largest of many."""


class Arm(NamedTuple):
    """The seeds of one arm, as `train_arm` gives them."""

    runs: Sequence[Mapping[str, Any]]

    @property
    def gold(self) -> list[Curve]:
        """Gold reward over steps, one curve a seed."""
        return [over_steps(run["steps"], "gold") for run in self.runs]

    @property
    def first(self) -> list[float]:
        """Gold reward of the first steps, of every seed."""
        return [fmean(row["gold"] for row in run["steps"][:BASE]) for run in self.runs]

    def ends(self, name: str) -> list[float | None]:
        """A figure of the final examination, of every seed."""
        return [run["end"][name] for run in self.runs]


class Loss(NamedTuple):
    """What became of one run's gold reward."""

    gain: float
    """From the first steps to its peak; 0 where it never rose."""
    peak: int
    """Step."""
    lost: int | None
    """First step after the peak at which it had lost a fifth of its gain, and more than noise; None: not hacked, as the
    loss is not there at the end."""


def over_steps(steps: Steps, name: str) -> Curve:
    """A figure over the steps of a run, as the mean of windows."""
    # `curve` is over √KL: of the squares of the steps it is over the steps.
    return curve([float(row["step"]) ** 2 for row in steps], [row[name] for row in steps])


def late(found: Curve) -> float:
    """Mean of the last windows of a curve over steps."""
    return fmean(found.value[-WINDOW:])


def loss(steps: Steps) -> Loss:
    """Whether and when the gold reward of a run was lost.

    Lost is at least a fifth of the gain, and at least `NOISE` standard errors: s√(2/5) of the difference of two means
    of five steps, with s² half the mean square of differences of neighbours (von Neumann 1941), which a trend
    hardly swells.

    Examples:
        >>> gold = [min(i, 40 - i) / 10 for i in range(41)]  # up to 2 and down to 0
        >>> found = loss([{"step": i, "gold": x} for i, x in enumerate(gold, 1)])
        >>> round(found.gain, 2), found.peak, found.lost
        (1.78, 21, 26)
    """
    gold = [row["gold"] for row in steps]
    found = over_steps(steps, "gold")
    place = max(range(len(found.value)), key=found.value.__getitem__)
    gain = max(found.value[place] - fmean(gold[:BASE]), 0.0)
    squares = [(b - a) ** 2 for a, b in pairwise(gold)]
    error = math.sqrt(fmean(squares) / 2) * math.sqrt(2 / WINDOW)
    limit = found.value[place] - max(SHARE * gain, NOISE * error)
    later = range(place, len(found.value))
    lost = next((i + 1 for i in later if found.value[i] <= limit), None)
    return Loss(gain, place + 1, lost if late(found) <= limit else None)


def cross_fitted(arm: Arm) -> list[float | None]:
    """Each seed's gold where the mean of the others peaks."""
    return [None if each is None else each.value for each in peaks(arm.gold)]


def lost_too_much(arm: Arm) -> list[float | None]:
    """By how much each seed's gold ends lower than a fifth of its gain below its peak, where the others peak.

    Of a curve that rises to the end the last windows are below the very last: less than a fifth of its gain.
    """
    tops = cross_fitted(arm)
    gains = differences(tops, arm.first)
    losses = differences(tops, [late(each) for each in arm.gold])
    allowed = [None if gain is None else SHARE * max(gain, 0.0) for gain in gains]
    return differences(losses, allowed)


def per_nat(arm: Arm) -> list[float | None]:
    """Gold gained from the first steps to the fresh responses at the end, over the KL there, of every seed."""
    gains = differences(arm.ends("gold"), arm.first)
    return [
        None if gain is None or not kl else gain / kl
        for gain, kl in zip(gains, arm.ends("kl"), strict=True)
    ]
