"""The parts figures are made of: curves, interval bands, target lines, labels at the end of a line.

A figure is a plain JSON object with `data` and `layout`, as plotly.js takes it. A value that was not measured, or is
not finite, is a gap.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kleash.report.text import chart_text, interval
from kleash.report.theme import LIMIT, rgba
from kleash.report.view import Measured, RunView

Figure = dict[str, Any]

BAND = 0.2
"""Half-width of the band around a KL target, as a share of it."""

DASHED = "6px,3px"

FAR = 4
"""Times the largest value, beyond which a limit would leave no room to see what was measured."""

_LABEL_HEIGHT = 17
"""Pixels that keep two labels apart."""

_BELOW = 26
"""Pixels from a point to a label under it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure with the words around it."""

    title: str
    """What is drawn, with direction and unit."""
    figure: Figure | None
    """None: nothing of it was measured."""
    reading: str
    """How to read it, in plain words."""
    size: Literal["hero", "large", "medium", "small"] = "small"
    height: int | None = None
    """Pixels; None: those of its size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric of one run, by step."""

    run: RunView
    metric: str
    label: str
    colour: str
    dash: str = "solid"
    interval: bool = False
    """Whether to shade between the metric's `_low` and `_high`."""
    above: float = -math.inf
    """Only values above this have a place on the axis."""

    @property
    def y(self) -> list[Measured]:
        """The values, None where there is nothing to draw."""
        values = drawable(self.run.series(self.metric))
        return [value if value is not None and value > self.above else None for value in values]

    @property
    def bounds(self) -> tuple[list[Measured], list[Measured]]:
        """The interval's ends, step by step; None throughout for a curve without one."""
        if not self.interval:
            return [None] * len(self.run.steps), [None] * len(self.run.steps)
        low, high = (drawable(self.run.series(f"{self.metric}_{end}")) for end in ("low", "high"))
        return low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A name beside a point."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A line that no curve should cross."""

    value: float
    text: str


def by_step(
    curves: Sequence[Curve],
    *,
    target: float | None = None,
    limit: Limit | None = None,
    band: float = BAND,
    zero: bool = False,
    log: bool = False,
    height: int = 190,
) -> Figure | None:
    """Curves over steps, each with its name at its end; None when none of them was measured.

    Args:
        curves: the lines, in drawing order. A single one goes without its name: the title has it.
        target: nats; drawn as a dashed line with a band around it.
        limit: drawn as a line, where it is near enough to what was measured to be on the same axis.
        band: half-width of that band, as a share of the target.
        zero: whether the y axis starts at 0.
        log: whether the y axis is logarithmic; the values must be positive.
        height: pixels of the drawn area, for keeping labels apart.
    """
    values = [value for curve in curves for value in curve.y if value is not None]
    if not values:
        return None
    values += [
        value for curve in curves for end in curve.bounds for value in end if value is not None
    ]
    values += [] if target is None else [target * (1 + band)]
    is_near = limit is not None and (log or limit.value <= FAR * max(values))
    values += [limit.value] if limit is not None and is_near else []
    low, high = _span([math.log10(value) for value in values]) if log else _span(values, zero=zero)
    layout: Figure = {
        "xaxis": {
            "title": {"text": "step"},
            "range": _step_range(curves),
            "unifiedhovertitle": {"text": "step %{x}"},
        },
        "yaxis": {"range": [low, high]}
        | ({"type": "log", "dtick": 1 if high - low > 3 else "D2"} if log else {}),
        "shapes": [],
        "annotations": [],
    }
    if len(curves) > 1:
        labels = [
            label for label in (_end(curve, log=log) for curve in curves) if label is not None
        ]
        layout["annotations"] = place(labels, pixels_per_unit=height / (high - low))
        layout["margin"] = {"r": margin_for(labels)}
    if target is not None:
        layout["shapes"] = _target_shapes(target, band)
        layout["annotations"].append(_target_name(target, band))
    if limit is not None and is_near:
        layout["shapes"] += [_limit_line(limit)]
        layout["annotations"] += [_limit_name(limit, log=log)]
    return {
        "data": [trace for curve in curves for trace in _shade(curve)] + [_line(c) for c in curves],
        "layout": layout,
    }


def drawable(values: Iterable[Measured]) -> list[Measured]:
    """The values with None for everything that has no place on an axis.

    Examples:
        >>> drawable([1.0, None, float("nan")])
        [1.0, None, None]
    """
    return [value if value is not None and math.isfinite(value) else None for value in values]


def spans_a_decade(values: Iterable[Measured]) -> bool:
    """Whether the values are positive and the largest is more than ten times the smallest.

    Examples:
        >>> spans_a_decade([0.01, None, 0.2]), spans_a_decade([0.0, 0.2])
        (True, False)
    """
    known = [value for value in drawable(values) if value is not None]
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def place(labels: Sequence[Label], pixels_per_unit: float, *, below: bool = False) -> list[Figure]:
    """Annotations to the right of their points, or below them, moved so that none covers another."""
    order = sorted(labels, key=lambda label: label.y)
    moves = spread([label.y * pixels_per_unit for label in order], gap=_LABEL_HEIGHT)
    anchor = {"xanchor": "center"} if below else {"xanchor": "left", "xshift": 7}
    return [
        anchor
        | {
            "text": label.text,
            "x": label.x,
            "y": label.y,
            "yanchor": "middle",
            "yshift": round(move, 1) - (_BELOW if below else 0),
            "font": {"color": label.colour},
        }
        for label, move in zip(order, moves, strict=True)
    ]


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """How far to move each of the rising positions so that neighbours are `gap` apart, moving little in all.

    Examples:
        >>> spread([0.0, 0.0, 100.0], gap=10)
        [-5.0, 5.0, 0.0]
    """
    blocks: list[tuple[float, int]] = []  # (lowest place, members)
    for position in positions:
        start, size = position, 1
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > start:
            before, count = blocks.pop()
            start = (before * count + (start - count * gap) * size) / (count + size)
            size += count
        blocks.append((start, size))
    placed = [start + gap * index for start, size in blocks for index in range(size)]
    return [place - position for place, position in zip(placed, positions, strict=True)]


def margin_for(labels: Sequence[Label]) -> int:
    """Pixels to the right of the axes that hold the longest label."""
    return 16 + 6 * max((len(label.text) for label in labels), default=0)


def segments(*columns: Sequence[Measured]) -> Iterator[slice]:
    """The stretches of rows in which every column has a value.

    Examples:
        >>> list(segments([1.0, None, 2.0, 3.0]))
        [slice(0, 1, None), slice(2, 4, None)]
    """
    start = None
    for index, row in enumerate([*zip(*columns, strict=True), (None,)]):
        if None not in row:
            start = index if start is None else start
        elif start is not None:
            yield slice(start, index)
            start = None


def cross_out(curve: Curve) -> Figure:
    """A cross at each step whose update was rejected."""
    verdicts = curve.run.series("accepted")
    refused = [y if verdict == 0 else None for y, verdict in zip(curve.y, verdicts, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(curve.run.steps),
        "y": refused,
        "hoverinfo": "skip",
        "marker": {"symbol": "x-thin", "size": 11, "line": {"width": 2.5, "color": curve.colour}},
    }


def _line(curve: Curve) -> Figure:
    low, high = curve.bounds
    return {
        "type": "scatter",
        # Markers keep a value visible that has a gap on both sides.
        "mode": "lines+markers",
        "x": list(curve.run.steps),
        "y": curve.y,
        "text": [interval(*row) for row in zip(curve.y, low, high, strict=True)],
        "name": chart_text(curve.label),
        "hovertemplate": "%{text}",
        "line": {"color": curve.colour, "width": 2, "dash": curve.dash},
        "marker": {"color": curve.colour, "size": 3},
    }


def _shade(curve: Curve) -> list[Figure]:
    """The interval as one closed outline for each stretch that has one."""
    low, high = curve.bounds
    x: list[Measured] = []
    y: list[Measured] = []
    for stretch in segments(low, high):
        steps = list(curve.run.steps[stretch])
        x += [*steps, *reversed(steps), None]
        y += [*high[stretch], *reversed(low[stretch]), None]
    if not x:
        return []
    fill = {
        "fill": "toself",
        "fillcolor": rgba(curve.colour, 0.2),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [{"type": "scatter", "mode": "lines", "x": x, "y": y} | fill]


def _target_shapes(target: float, band: float) -> list[Figure]:
    across = {"xref": "paper", "x0": 0, "x1": 1}
    ends = {"type": "rect", "y0": target * (1 - band), "y1": target * (1 + band), "layer": "below"}
    fill = {"fillcolor": "rgba(128,134,144,0.16)", "line": {"width": 0}}
    return [
        across | ends | fill,
        across | {"type": "line", "y0": target, "y1": target},
    ]


def _target_name(target: float, band: float) -> Figure:
    corner = {
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": target * (1 + band),
        "yanchor": "bottom",
    }
    return {"text": f"target {target:g} nats", "font": {"size": 11}} | corner


def _limit_line(limit: Limit) -> Figure:
    ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": limit.value, "y1": limit.value}
    return ends | {"type": "line", "line": {"color": LIMIT, "width": 1.5, "dash": "solid"}}


def _limit_name(limit: Limit, *, log: bool) -> Figure:
    y = math.log10(limit.value) if log else limit.value  # a shape takes the value itself
    corner = {"x": 1, "xref": "paper", "xanchor": "right", "y": y, "yanchor": "bottom"}
    return {"text": chart_text(limit.text, 40), "font": {"size": 11, "color": LIMIT}} | corner


def _end(curve: Curve, *, log: bool) -> Label | None:
    """The curve's name at its last drawn point."""
    points = {step: y for step, y in zip(curve.run.steps, curve.y, strict=True) if y is not None}
    if not points:
        return None
    last = max(points)
    y = (
        math.log10(points[last]) if log else points[last]
    )  # plotly wants annotations on a log axis like this
    return Label(x=last, y=y, text=chart_text(curve.label, 18), colour=curve.colour)


def _span(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """The values' range with some room; from 0 on request, if none is negative."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return (0.0 if zero and low >= 0 else low - room), high + room


def _step_range(curves: Sequence[Curve]) -> list[float]:
    steps = [step for curve in curves for step in curve.run.steps]
    return [min(steps) - 0.5, max(steps) + 0.5]
