"""What a study found, as plain records: claims with their intervals, tables, and one figure.

A claim is decided by its interval and not by whoever writes the sentence: `decide` looks at the ends, and gives back
one of three sentences. What an interval leaves open is said to be open.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kleash.lab.study.statistics import Estimate

Value = str | float | int | None
"""Of a table; None: not measured."""
Mark = Literal["line", "dashed", "points", "both", "bars"]
"""How a series is drawn: a line; a dashed one; points; points joined by a line; bars."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One thing that was asked, and the answer."""

    name: str
    """Of the claim, a few words."""
    says: str
    """The answer, one sentence without its numbers."""
    holds: bool | None
    """Whether what was claimed is so; None: the interval leaves it open."""
    estimate: Estimate | None = None
    """What it rests on."""
    unit: str = ""
    """Of the estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under named columns; the units stand in the names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    """What has to be known to read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one kind, in the order in which they are joined."""

    name: str
    """As the legend has it; empty: it isn't named there."""
    x: tuple[float | None, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    """Ends of the interval at each point; none where there is none."""
    mark: Mark = "line"
    colour: int | None = None
    """Which of the palette; None: the next. Series that belong together have the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    x: str
    y: str
    """Labels of the axes, with their units."""
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    at: tuple[tuple[float, str], ...] = ()
    """Upright lines, each with its name."""
    level: tuple[tuple[float, str], ...] = ()
    """Level lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Panels side by side, and what they show."""

    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a study has to say."""

    answer: str
    """To the study's question, in two or three sentences."""
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    """The first is what the study is about, and is written as `table.csv` and `table.parquet`."""
    figure: Figure
    limits: tuple[str, ...]
    """What it does not show."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def series_of(
    name: str,
    x: Sequence[float | None],
    found: Sequence[Estimate | None],
    *,
    mark: Mark,
    colour: int,
    least: int = 2,
) -> Series:
    """Estimates as a series, with the interval of each that rests on so many observations.

    Args:
        name: as the legend has it.
        x: of each estimate.
        found: as many; None where there is none.
        mark: how it is drawn.
        colour: of the palette.
        least: observations; the interval of two is so wide that nothing else would be seen.
    """
    sure = [each if each is not None and each.n >= least else None for each in found]
    return Series(
        name=name,
        x=tuple(x),
        y=tuple(None if each is None else each.value for each in found),
        low=tuple(None if each is None else each.low for each in sure),
        high=tuple(None if each is None else each.high for each in sure),
        mark=mark,
        colour=colour,
    )


def percent(share: float | None, digits: int = 0) -> str:
    """A share as sentences have it.

    Examples:
        >>> percent(0.034, 1), percent(0.8), percent(None)
        ('3.4 %', '80 %', 'an unknown share')
    """
    return "an unknown share" if share is None else f"{100 * share:.{digits}f} %"


def decide(
    name: str,
    estimate: Estimate | None,
    says: Sequence[str],
    *,
    above: float = 0.0,
    unit: str = "",
) -> Claim:
    """The claim that a quantity is above a value, as its interval decides it.

    Args:
        name: of the claim.
        estimate: of the quantity; None: it could not be had, and the claim is open.
        says: three sentences: where the whole interval is above, where none of it is, and where it is open.
        above: the value.
        unit: of the quantity.

    Examples:
        >>> found = Estimate(value=1.0, low=0.5, high=1.5, n=5)
        >>> decide("a gain", found, ("It gains.", "It loses.", "That is open.")).says
        'It gains.'
        >>> decide("a gain", found, ("It gains.", "It loses.", "That is open."), above=1.2).holds is None
        True
    """
    yes, no, unknown = says
    holds = None if estimate is None else estimate.is_above(above)
    sentence = {True: yes, False: no, None: unknown}[holds]
    return Claim(name=name, says=sentence, holds=holds, estimate=estimate, unit=unit)


def decide_all(
    name: str,
    estimates: Sequence[Estimate | None],
    says: Sequence[str],
    *,
    above: float = 0.0,
    unit: str = "",
) -> Claim:
    """The claim that every one of several quantities is above a value, as their intervals decide it.

    It holds where all intervals are above; it doesn't where any of them isn't at all; else it is open. What is shown is
    the estimate that decides: of those that are not above at all, or of all, the one whose interval begins lowest. Give
    intervals that hold together (`kleash.lab.study.many.together`).

    Args:
        name: of the claim.
        estimates: of the quantities; None of one that could not be had, which leaves the claim open.
        says: three sentences: where all are above, where one is not, and where it is open.
        above: the value.
        unit: of the quantities.

    Examples:
        >>> up, down = Estimate(value=1.0, low=0.5, high=1.5, n=5), Estimate(value=0.0, low=-1.0, high=1.0, n=5)
        >>> found = decide_all("all gain", [up, down], ("All gain.", "One loses.", "Open."))
        >>> found.says, found.estimate.low
        ('Open.', -1.0)
    """
    verdicts = [None if each is None else each.is_above(above) for each in estimates]
    against = [
        each for each, holds in zip(estimates, verdicts, strict=True) if each and holds is False
    ]
    holds = False if against else True if verdicts and all(verdicts) else None
    shown = against or [each for each in estimates if each is not None]
    lowest = min(shown, key=lambda each: -math.inf if each.low is None else each.low, default=None)
    yes, no, unknown = says
    sentence = {True: yes, False: no, None: unknown}[holds]
    return Claim(name=name, says=sentence, holds=holds, estimate=lowest, unit=unit)


def within(name: str, error: float, tolerance: float, says: str) -> Claim:
    """The claim that something agrees with its closed form: exact, so that there is no interval.

    Args:
        name: of the claim.
        error: the largest difference that was found.
        tolerance: what it may be.
        says: what agrees with what; it is followed by the verdict.

    Examples:
        >>> within("J*", 1e-12, 1e-8, "β log Z is the best that any policy reaches").says
        'β log Z is the best that any policy reaches: off by 1e-12 at most, 1e-08 allowed.'
    """
    holds = error <= tolerance  # False of NaN
    return Claim(
        name=name,
        says=f"{says}: off by {error:.2g} at most, {tolerance:g} allowed{'' if holds else ', which it is not'}.",
        holds=holds,
    )


def near(
    name: str,
    estimate: Estimate | None,
    says: Sequence[str],
    *,
    margin: float,
    centre: float = 0.0,
    unit: str = "",
) -> Claim:
    """The claim that a quantity is where it should be: that none of its interval is further than a margin from there.

    That no difference is seen does not make two things alike; that the interval has no room for one does.

    Args:
        name: of the claim.
        estimate: of the quantity; None: it could not be had, and the claim is open.
        says: three sentences: where all of the interval is near, where none of it is, and where it is open.
        margin: how far is near.
        centre: where it should be.
        unit: of the quantity.

    Examples:
        >>> found = Estimate(value=0.31, low=0.29, high=0.33, n=5)
        >>> near("kept", found, ("As it was.", "Not as it was.", "Open."), margin=0.05, centre=0.3).says
        'As it was.'
        >>> near("kept", found, ("As it was.", "Not as it was.", "Open."), margin=0.02, centre=0.3).holds is None
        True
    """
    holds = None
    if estimate is not None and estimate.low is not None and estimate.high is not None:
        if centre - margin <= estimate.low and estimate.high <= centre + margin:
            holds = True
        elif estimate.high < centre - margin or estimate.low > centre + margin:
            holds = False
    yes, no, unknown = says
    sentence = {True: yes, False: no, None: unknown}[holds]
    return Claim(name=name, says=sentence, holds=holds, estimate=estimate, unit=unit)
