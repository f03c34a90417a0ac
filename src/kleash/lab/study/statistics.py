"""Figures of a few seeds, with intervals that few seeds allow.

Every seed is one observation: what is averaged within a run is averaged before. With five of them a normal interval is
a third too short; Student's t is used throughout, and nothing is called an interval that rests on one seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from scipy.special import betaincinv, stdtrit

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure and the ends of its interval; the ends are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int
    """Independent observations behind it."""
    of: str = "seeds"
    """What these are."""
    level: float = LEVEL

    def is_above(self, value: float) -> bool | None:
        """Whether it is above a value; None where the interval leaves that open, or there is none.

        Where all observations are the value itself, as differences of shares that are 1 in every seed, they don't show
        that it isn't above.

        Examples:
            >>> Estimate(value=1.0, low=0.5, high=1.5, n=5).is_above(0.0)
            True
            >>> Estimate(value=1.0, n=1).is_above(0.0) is None
            True
            >>> Estimate(value=0.0, low=0.0, high=0.0, n=5).is_above(0.0) is None
            True
        """
        if self.low is None or self.high is None or self.low == self.high == value:
            return None
        if self.low > value:
            return True
        return False if self.high <= value else None


def estimate(
    values: Sequence[float | None], *, of: str = "seeds", level: float = LEVEL
) -> Estimate | None:
    """The mean of independent observations with Student's interval; None where there is none.

    m ± t_{n−1} s/√n. Observations that could not be made are left out, and `n` says how many there were.

    Args:
        values: one an observation.
        of: what one is.
        level: of the interval.

    Examples:
        >>> found = estimate([1.0, 2.0, 3.0, None])
        >>> found.value, round(found.low, 3), round(found.high, 3), found.n
        (2.0, -0.484, 4.484, 3)
        >>> estimate([None]) is None
        True
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    mean, count = fmean(known), len(known)
    if count < 2:
        return Estimate(value=mean, n=count, of=of, level=level)
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * stdev(known) / math.sqrt(count)
    return Estimate(value=mean, low=mean - half, high=mean + half, n=count, of=of, level=level)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what was observed; None where nothing was.

    Examples:
        >>> mean([1.0, None, 3.0]), mean([None])
        (2.0, None)
    """
    found = estimate(values)
    return None if found is None else found.value


def cells(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """A figure and the ends of its interval, as the cells of a table are.

    Examples:
        >>> cells(Estimate(value=1.0, low=0.5, high=1.5, n=5)), cells(None)
        ((1.0, 0.5, 1.5), (None, None, None))
    """
    return (None, None, None) if found is None else (found.value, found.low, found.high)


def geometric(values: Sequence[float | None], *, of: str = "seeds") -> Estimate | None:
    """The geometric mean of what differs by factors, such as a KL, with Student's interval of its logarithm.

    exp(m ± t_{n−1} s/√n) of log x. What is not above 0 is left out.

    Args:
        values: one an observation.
        of: what one is.

    Examples:
        >>> found = geometric([1.0, 10.0, 100.0])
        >>> round(found.value, 6), round(found.low, 4), found.n
        (10.0, 0.0328, 3)
    """
    found = estimate([None if x is None or x <= 0 else math.log(x) for x in values], of=of)
    return None if found is None else exponential(found)


def exponential(found: Estimate) -> Estimate:
    """What a figure and its interval are of a logarithm, told of the thing itself.

    Examples:
        >>> exponential(Estimate(value=0.0, low=-math.log(2), high=math.log(2), n=5)).high
        2.0
    """
    low, high = (None if end is None else _exp(end) for end in (found.low, found.high))
    return replace(found, value=_exp(found.value), low=low, high=high)


def jackknife(
    whole: float | None, parts: Sequence[float | None], *, of: str = "seeds"
) -> Estimate | None:
    """A figure of all observations together, with the interval that leaving out each of them in turn tells.

    θ ± t_{n−1} √((n−1)/n Σᵢ(θ₍ᵢ₎ − θ̄)²) (Tukey 1958). Of a mean it is Student's interval.

    Args:
        whole: θ; None: there is none.
        parts: θ₍ᵢ₎, without each observation; where one is None, or there is but one, there is no interval.
        of: what an observation is.

    Examples:
        >>> found = jackknife(2.0, [2.5, 2.0, 1.5])  # the mean of 1, 2 and 3, and of every two of them
        >>> found.value, round(found.low, 3), round(found.high, 3)
        (2.0, -0.484, 4.484)
    """
    known, count = [part for part in parts if part is not None], len(parts)
    if whole is None:
        return None
    if len(known) < max(count, 2):
        return Estimate(value=whole, n=max(count, 1), of=of)
    middle = fmean(known)
    error = math.sqrt((count - 1) / count * sum((part - middle) ** 2 for part in known))
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * error
    return Estimate(value=whole, low=whole - half, high=whole + half, n=count, of=of)


def differences(
    first: Sequence[float | None], second: Sequence[float | None]
) -> list[float | None]:
    """First less second, pair by pair; None where one of the two is.

    Examples:
        >>> differences([3.0, None], [1.0, 1.0])
        [2.0, None]
    """
    return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]


def welch(
    first: Sequence[float | None], second: Sequence[float | None], *, of: str = "seeds"
) -> Estimate | None:
    """The difference of two means whose observations have nothing to do with each other, first less second.

    m₁ − m₂ ± t_ν √(s₁²/n₁ + s₂²/n₂), ν by Satterthwaite 1946: both are uncertain, and as they are.

    Args:
        first: observations behind the one mean; `n` is of these.
        second: behind the other.
        of: what one of the first is.

    Examples:
        >>> found = welch([1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])
        >>> found.value, round(found.low, 3), round(found.high, 3), found.n
        (0.5, -1.732, 2.732, 3)
    """
    both = [[x for x in each if x is not None and math.isfinite(x)] for each in (first, second)]
    if not all(both):
        return None
    apart, count = fmean(both[0]) - fmean(both[1]), len(both[0])
    if min(map(len, both)) < 2:
        return Estimate(value=apart, n=count, of=of)
    parts = [stdev(each) ** 2 / len(each) for each in both]
    weights = sum(part**2 / (len(each) - 1) for part, each in zip(parts, both, strict=True))
    half = 0.0
    if weights:
        half = float(stdtrit(sum(parts) ** 2 / weights, 0.5 + LEVEL / 2)) * math.sqrt(sum(parts))
    return Estimate(value=apart, low=apart - half, high=apart + half, n=count, of=of)


def exact_rate(
    firsts: Sequence[int | None], length: int, *, soonest: int = 1, of: str = "runs"
) -> Estimate:
    """How often something first happens, per step at risk, where runs are the observations.

    r = p/E[steps at risk], of k in n runs: k/Σ min(first, T). A run is at risk until it happens there: what goes on
    within a run is no observation of its own. Since (1 − p)T + p·s ≤ E[steps at risk] ≤ T, with s the soonest that it
    can happen, Clopper and Pearson's ends p₁, p₂ of the share of runs give the interval

        p₁/T,   p₂/((1 − p₂)T + p₂ s),

    exact where the runs are independent, whenever in a run it happens. Where it happened in none of n runs the upper
    end is not 0.

    Args:
        firsts: of each run the step, from 1, at which it first happened; None: it did not.
        length: T, the steps of a run.
        soonest: s.
        of: what a run is.

    Examples:
        >>> found = exact_rate([None] * 9 + [50], 100)
        >>> round(found.value, 6), round(found.low, 6), round(found.high, 6), found.n
        (0.001053, 2.5e-05, 0.007956, 10)
    """
    rung = [first for first in firsts if first is not None]
    share = exact_share(len(rung), len(firsts), of=of)
    low, high = share.low or 0.0, 1.0 if share.high is None else share.high
    return replace(
        share,
        value=len(rung) / (sum(rung) + (len(firsts) - len(rung)) * length),
        low=low / length,
        high=high / ((1 - high) * length + high * soonest),
    )


def exact_share(hits: int, trials: int, *, of: str = "runs") -> Estimate:
    """A share of independent tries with the exact binomial interval of Clopper and Pearson 1934.

    Args:
        hits: how many.
        trials: of how many; at least one.
        of: what a try is.

    Examples:
        >>> found = exact_share(9, 10)
        >>> round(found.low, 4), round(found.high, 4)
        (0.555, 0.9975)
    """
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return Estimate(value=hits / trials, low=low, high=high, n=trials, of=of)


def exact_mean_share(shares: Sequence[float], *, of: str = "seeds") -> Estimate:
    """The mean of independent shares, each of whatever depends on one another, with an interval that holds for any law.

    A share x of [0, 1] is at least 1 where it is all, and more than 0 where it is any: P(x = 1) ≤ E[x] ≤ P(x > 0). The
    low end is Clopper and Pearson's of how many are all, the high end that of how many are any: at least as sure as
    they say, and wide, as few observations are.

    Args:
        shares: one an observation; at least one.
        of: what an observation is.

    Examples:
        >>> found = exact_mean_share([1.0, 1.0, 0.5, 1.0, 1.0])
        >>> found.value, round(found.low, 4), found.high, found.n
        (0.9, 0.2836, 1.0, 5)
    """
    count = len(shares)
    low = exact_share(sum(x >= 1 for x in shares), count).low
    high = exact_share(sum(x > 0 for x in shares), count).high
    return Estimate(value=fmean(shares), low=low, high=high, n=count, of=of)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A least-squares fit y ≈ Σ_k a_k f_k(x)."""

    coefficients: tuple[float, ...]
    r_squared: float | None
    """1 − Σ residual²/Σ(y − ȳ)² on what it was fitted to; None where y does not vary, or nothing is left to err."""


def least_squares(columns: Sequence[Sequence[float]], y: Sequence[float]) -> Line | None:
    """The fit; None where there are fewer points than coefficients, or the columns are not independent.

    Args:
        columns: f_k at every point, one sequence a coefficient.
        y: at every point.

    Examples:
        >>> least_squares([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]], [1.0, 3.0, 5.0]).coefficients
        (1.0, 2.0)
    """
    design, target = np.array(columns, dtype=float).T, np.array(y, dtype=float)
    count, size = design.shape
    if count < size or np.linalg.matrix_rank(design) < size:
        return None
    found = np.linalg.lstsq(design, target, rcond=None)[0]
    rss = float(((target - design @ found) ** 2).sum())
    spread = float(((target - target.mean()) ** 2).sum())
    return Line(
        coefficients=tuple(round(float(a), 12) for a in found),
        r_squared=1 - rss / spread if spread > 0 and count > size else None,
    )


def _exp(x: float) -> float:
    """eˣ; ∞ where that is beyond any number."""
    return math.exp(x) if x < 700 else math.inf
