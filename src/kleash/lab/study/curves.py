"""Curves of reward over KL, one a seed: brought together at equal KL, and asked for their peaks without flattery.

The largest of noisy values is larger than the value of the largest. So where a peak is, is read off the other seeds'
curves, and what it is worth off this one's: each seed then gives one honest observation.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from kleash.lab.study.statistics import (
    Estimate,
    Line,
    exponential,
    jackknife,
    least_squares,
)

WINDOW = 5
"""Steps that a curve is smoothed over."""
POINTS = 40
"""Of a grid."""
FITTED = 0.6
"""Of the range of KL, on which a form is fitted; it is asked about the rest."""
LEAST_D = 0.3
"""√KL below which log d is mostly noise."""


class Curve(NamedTuple):
    """What one run did, by step: d = √KL, and values there."""

    d: tuple[float, ...]
    value: tuple[float, ...]

    @property
    def end(self) -> float:
        """Where the run ended: its last value."""
        return self.value[-1]


def curve(kl: Sequence[float | None], value: Sequence[float | None]) -> Curve:
    """Means of √KL and of a value over windows of steps, in the order of the run; what was not measured is left out.

    Examples:
        >>> curve([0.0, 1.0, 4.0, None], [0.0, 1.0, 2.0, 9.0])  # at the ends of two steps, within of three
        Curve(d=(0.5, 1.0, 1.5), value=(0.5, 1.0, 1.5))
    """
    known = [
        (math.sqrt(max(0.0, k)), v)
        for k, v in zip(kl, value, strict=True)
        if k is not None and v is not None
    ]
    d, values = list[float](), list[float]()
    for i in range(len(known)):
        reach = min(WINDOW // 2, max(i, 1), max(len(known) - 1 - i, 1))
        near = known[max(0, i - reach) : i + reach + 1]
        d.append(fmean(x for x, _ in near))
        values.append(fmean(y for _, y in near))
    return Curve(tuple(d), tuple(values))


def at(found: Curve, d: float) -> float | None:
    """The mean value of every time that the curve comes to a distance, on straight lines between steps; None: never.

    A run that is held hovers about one KL, and is there on many steps: no one of them is more its own than another.

    Examples:
        >>> at(Curve((0.0, 1.0, 2.0, 1.5), (0.0, 1.0, 0.0, 9.0)), 1.5)  # 0.5 on its way out, 9 on its way back
        4.75
    """
    visits = {float(i): y for i, (x, y) in enumerate(zip(*found, strict=True)) if x == d}
    for i, ((a, x), (b, y)) in enumerate(pairwise(zip(*found, strict=True))):
        if min(a, b) < d < max(a, b):
            share = (d - a) / (b - a)
            visits[i + share] = x + share * (y - x)
    return fmean(visits.values()) if visits else None


def grid(curves: Sequence[Curve], least: int = 2) -> list[float]:
    """Distances, evenly spaced, that so many of the curves come to, or all where there are fewer.

    Args:
        curves: at least one.
        least: how many.
    """
    ends = sorted((max(each.d) for each in curves), reverse=True)
    last = ends[min(least, len(ends)) - 1]
    first = max(min(each.d) for each in curves)
    if last <= first:
        return []
    return [first + (last - first) * i / (POINTS - 1) for i in range(POINTS)]


def rest_above(own: Curve, other: Curve) -> float | None:
    """How far a curve is above another over its last third, at equal distances, on average; None where they don't meet.

    Examples:
        >>> line = Curve((0.0, 1.0, 2.0), (0.0, 1.0, 2.0))
        >>> rest_above(Curve((0.0, 1.0, 0.9, 1.1, 1.0, 1.2), (9.0, 9.0, 9.0, 9.0, 1.5, 1.7)), line)
        0.5
    """
    begin = len(own.d) - max(1, len(own.d) // 3)
    pairs = zip(own.d[begin:], own.value[begin:], strict=True)
    known = [value - there for d, value in pairs if (there := at(other, d)) is not None]
    return fmean(known) if known else None


def values_at(curves: Sequence[Curve], places: Sequence[float]) -> list[list[float | None]]:
    """The values of every curve at some distances: a list over distances of lists over curves."""
    return [[at(each, d) for each in curves] for d in places]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves, as far as all of them come.

    Examples:
        >>> found = mean_curve([Curve((0.0, 1.0), (0.0, 1.0)), Curve((0.0, 2.0), (1.0, 1.0))])
        >>> found.d[-1], found.end
        (1.0, 1.0)
    """
    places = grid(curves, len(curves))
    rows = zip(places, values_at(curves, places), strict=True)
    known = [
        (d, fmean(v)) for d, row in rows if len(v := [x for x in row if x is not None]) == len(row)
    ]
    return Curve(tuple(d for d, _ in known), tuple(v for _, v in known))


class Peak(NamedTuple):
    """A curve's peak, where others say it is."""

    d: float
    value: float


def peaks(curves: Sequence[Curve]) -> list[Peak | None]:
    """For each curve the place where the mean of the others is largest, and its own value there.

    None of a curve that doesn't come there, and of one that is alone.

    Args:
        curves: one a seed.
    """
    found: list[Peak | None] = []
    for i, own in enumerate(curves):
        others = [each for j, each in enumerate(curves) if j != i]
        best: Peak | None = None
        highest = -math.inf
        for d in grid(others) if others else []:
            values = [v for each in others if (v := at(each, d)) is not None]
            mine = at(own, d)
            if values and fmean(values) > highest:
                highest = fmean(values)
                best = None if mine is None else Peak(d, mine)
        found.append(best)
    return found


class Form(NamedTuple):
    """Gao et al.'s form of a gain over d, fitted to one curve."""

    alpha: float
    beta: float
    peak: float | None
    """d of the largest gain that the form has; None: it has none ahead."""
    r_squared: float | None
    """On what it was fitted to."""
    held_out: float | None
    """R² on the larger KL that it was not shown; negative: the mean of what is there would have told more."""
    error: float | None
    """Root mean square error there, over the largest gain of the curve."""


FORMS = ("d(α − βd)", "d(α − β log d)")
"""Of best-of-n and of reinforcement learning, as Gao et al. found them."""


def fit_form(found: Curve, form: str, floor: float) -> Form | None:
    """Fits a form to the first part of a curve's KL, and holds it against the rest; None where it can't be.

    Both are linear in α and β: R(d) = α·d − β·d² and α·d − β·d log d, peaks at α/2β and exp(α/β − 1).

    Args:
        found: the curve.
        form: of `FORMS`.
        floor: value at d = 0, which gains are counted from.

    Examples:
        >>> d = tuple(0.5 + 0.1 * i for i in range(40))
        >>> line = Curve(d, tuple(x * (1.0 - 0.1 * x) for x in d))
        >>> fitted = fit_form(line, "d(α − βd)", 0.0)
        >>> [round(x, 6) for x in (fitted.alpha, fitted.beta, fitted.peak, fitted.held_out)]
        [1.0, 0.1, 5.0, 1.0]
    """
    points = [(d, v - floor) for d, v in zip(*found, strict=True) if d >= LEAST_D]
    if not points:
        return None
    limit = math.sqrt(FITTED) * max(d for d, _ in points)
    shown, held = ([p for p in points if (p[0] <= limit) == seen] for seen in (True, False))
    line = least_squares(_columns([d for d, _ in shown], form), [v for _, v in shown])
    if line is None:
        return None
    alpha, beta = line.coefficients
    largest = max(abs(v) for _, v in points)
    return Form(
        alpha,
        beta,
        _peak(alpha, beta, form),
        line.r_squared,
        *_held_out(line, held, form, largest),
    )


class Fit(NamedTuple):
    """A form fitted to the mean curve of some seeds; intervals by leaving out each seed in turn."""

    form: Form
    alpha: Estimate | None
    beta: Estimate | None
    peak: Estimate | None
    """KL of the largest gain, nats, the interval taken on its logarithm; None: not every fit has a peak ahead."""
    seeds: int


def fit_mean(curves: Sequence[Curve], form: str, floor: float) -> Fit | None:
    """A form fitted to the mean curve of seeds, with jackknife intervals; None where it can't be.

    One seed's curve is too rough to tell where it peaks, and a mean of such places is that of the wildest.

    Args:
        curves: one a seed.
        form: of `FORMS`.
        floor: value at d = 0.

    Examples:
        >>> d = tuple(0.5 + 0.1 * i for i in range(40))
        >>> lines = [Curve(d, tuple(x * (a - 0.1 * x) for x in d)) for a in (0.9, 1.0, 1.1)]
        >>> found = fit_mean(lines, "d(α − βd)", 0.0)
        >>> [round(x, 3) for x in (found.alpha.value, found.alpha.low, found.alpha.high)]
        [1.0, 0.752, 1.248]
        >>> round(found.peak.value, 3)  # (α/2β)² nats
        25.0
    """
    whole = fit_form(mean_curve(curves), form, floor)
    if whole is None:
        return None
    parts = [
        fit_form(mean_curve([own for j, own in enumerate(curves) if j != i]), form, floor)
        for i in range(len(curves))
        if len(curves) > 1
    ]

    def told(figure: Callable[[Form], float | None]) -> Estimate | None:
        return jackknife(figure(whole), [None if each is None else figure(each) for each in parts])

    peak = told(lambda each: None if each.peak is None else 2 * math.log(each.peak))
    return Fit(
        whole,
        told(lambda each: each.alpha),
        told(lambda each: each.beta),
        None if peak is None else exponential(peak),
        len(curves),
    )


def predicted(form: str, fitted: Form, d: float) -> float:
    """The gain that a fitted form has at a distance."""
    return sum(
        a * column[0]
        for a, column in zip((fitted.alpha, fitted.beta), _columns([d], form), strict=True)
    )


def _columns(d: Sequence[float], form: str) -> list[list[float]]:
    bends = [x * x if form == FORMS[0] else x * math.log(max(x, 1e-9)) for x in d]
    return [list(d), [-x for x in bends]]


def _peak(alpha: float, beta: float, form: str) -> float | None:
    if beta <= 0:
        return None
    exponent = alpha / beta - 1
    if form == FORMS[0]:
        return alpha / (2 * beta) if alpha > 0 else None
    return math.exp(exponent) if exponent < 20 else None


def _held_out(
    line: Line, held: Sequence[tuple[float, float]], form: str, largest: float
) -> tuple[float | None, float | None]:
    """R² and relative error on points that were not fitted."""
    if len(held) < 3 or largest <= 0:
        return None, None
    columns = _columns([d for d, _ in held], form)
    told = [
        sum(a * x for a, x in zip(line.coefficients, row, strict=True))
        for row in zip(*columns, strict=True)
    ]
    rss = sum((v - t) ** 2 for (_, v), t in zip(held, told, strict=True))
    middle = fmean(v for _, v in held)
    spread = sum((v - middle) ** 2 for _, v in held)
    return (1 - rss / spread if spread > 0 else None), math.sqrt(rss / len(held)) / largest
