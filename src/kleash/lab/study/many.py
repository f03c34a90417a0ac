"""Intervals of several figures that are looked at together: each is wider, so that all of them hold at once."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.special import stdtr

from kleash.lab.study.statistics import LEVEL, Estimate, estimate

Sample = Sequence[float | None]
"""Independent observations of one figure."""


def together(samples: Sequence[Sample], *, of: str = "seeds") -> list[Estimate | None]:
    """Student's intervals of several means, that hold together: of level 1 − α/m each, by Bonferroni.

    Args:
        samples: one a figure.
        of: what an observation is.

    Examples:
        >>> alone, both = together([[1.0, 2.0, 3.0]])[0], together([[1.0, 2.0, 3.0]] * 2)[0]
        >>> round(alone.low, 3), round(both.low, 3), both.level
        (-0.484, -1.582, 0.975)
    """
    level = 1 - (1 - LEVEL) / max(1, len(samples))
    return [estimate(sample, of=of, level=level) for sample in samples]


def stepwise(samples: Sequence[Sample], *, of: str = "seeds") -> list[Estimate | None]:
    """Student's intervals of several means, to be held against 0, by Holm 1979.

    The k-th surest of m, by its p-value, has the level 1 − α/(m − k + 1), as long as its interval leaves 0 out; from
    the first that doesn't on all have that one's level, and none leaves 0 out. That any of what is settled so is wrong
    has a chance of α at most. It is the signs that hold together: for all ends to, intervals would have to be as
    wide as `together` makes them. What can't have an interval is not counted.

    Args:
        samples: one a figure.
        of: what an observation is.

    Examples:
        >>> sure, unsure = [0.9, 1.0, 1.1], [0.7, 1.0, 1.3]
        >>> found = stepwise([unsure, sure])
        >>> [round(each.level, 3) for each in found]
        [0.95, 0.975]
        >>> all(each.is_above(0.0) for each in found)
        True
    """
    chances = {i: p for i, sample in enumerate(samples) if (p := p_value(sample)) is not None}
    levels, alpha = dict[int, float](), 1 - LEVEL
    for k, place in enumerate(sorted(chances, key=lambda i: chances[i])):
        share = alpha / (len(chances) - k)
        levels[place] = 1 - share
        if chances[place] > share:
            break
    widest = 1 - alpha / max(1, len(chances) - max(0, len(levels) - 1))
    return [
        estimate(sample, of=of, level=levels.get(i, widest)) for i, sample in enumerate(samples)
    ]


def p_value(sample: Sample) -> float | None:
    """Of Student's two-sided test that a mean is 0; None of fewer than two observations.

    Examples:
        >>> round(p_value([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    known = [value for value in sample if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return None
    mean, error = fmean(known), stdev(known) / math.sqrt(len(known))
    if error == 0:
        return 0.0 if mean else 1.0
    return 2 * float(stdtr(len(known) - 1, -abs(mean) / error))
