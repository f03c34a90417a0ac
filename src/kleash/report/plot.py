"""A study's figure as files for a paper: SVG for a page, PDF for LaTeX, PNG for everything else. By matplotlib.

The figure comes as JSON (`kleash.lab.study.findings.Figure`), read without trust: a number that is none is a gap.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from html import unescape
from itertools import count, pairwise
from typing import Any

from kleash.errors import ResourceError
from kleash.extras import needs
from kleash.report.compared import figure as measured
from kleash.report.compared import listed, objects, words
from kleash.report.text import chart_text
from kleash.report.theme import PALETTE

FORMATS = ("svg", "pdf", "png")
PANEL = (4.6, 3.4)
"""Inches of one panel."""
AMONG = 3
"""Curves among which a legend finds room."""
INK, MUTED, GRID = "#1d2025", "#666c76", "#e4e2de"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.hashsalt": "kleash",  # the same figure, the same bytes
    "svg.fonttype": "path",
}
MOST_TICKS, APART = 5, 1.5
"""Places on a log axis that are named each, and by what factor they are then apart."""
MARKS = {
    "line": {"linestyle": "-"},
    "dashed": {"linestyle": (0, (4, 3))},
    "points": {"linestyle": "none", "marker": "o"},
    "both": {"linestyle": "-", "marker": "o"},
}


def draw(figure: Mapping[str, Any], formats: Sequence[str] = FORMATS) -> dict[str, bytes]:
    """The figure, by format.

    Args:
        figure: `panels`, each with `title`, `x`, `y`, `series`, `x_log`, `y_log`, `at` and `level`.
        formats: of `FORMATS`.

    Raises:
        InputError: matplotlib is not installed.
    """
    with needs("lab", "a study's figure is drawn by matplotlib"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    panels = objects(figure, "panels")
    columns = min(2, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A sign that the font lacks is drawn as a box, and a log axis on which nothing is positive stays empty.
        warnings.simplefilter("ignore", UserWarning)
        drawn = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
        axes = list(drawn.subplots(rows, columns, squeeze=False).flat)
        for axis, panel in zip(axes, panels, strict=False):
            _panel(axis, panel)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        return {name: _saved(drawn, name) for name in formats}


def _saved(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    when = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    try:
        figure.savefig(buffer, format=kind, dpi=160, metadata=when)
    except (ValueError, OverflowError, MemoryError) as error:
        raise ResourceError("the figure cannot be drawn", got=str(error)[:200]) from error
    return buffer.getvalue()


def _panel(axis: Any, panel: Mapping[str, Any]) -> None:
    axis.set_title(_text(panel.get("title"), 60))
    axis.set_xlabel(_text(panel.get("x"), 60))
    axis.set_ylabel(_text(panel.get("y"), 60))
    if panel.get("x_log") is True:
        axis.set_xscale("log")
    if panel.get("y_log") is True:
        axis.set_yscale("log")
    fresh, bars = count(), objects(panel, "series")
    bars = [series for series in bars if series.get("mark") == "bars"]
    for series in objects(panel, "series"):
        given = series.get("colour")
        index = given if isinstance(given, int) and not isinstance(given, bool) else next(fresh)
        colour = PALETTE[index % len(PALETTE)]
        if series.get("mark") == "bars":
            _bars(axis, series, colour, (bars.index(series), len(bars)))
        else:
            _series(axis, series, colour)
    if panel.get("x_log") is True:
        _few_ticks(axis, objects(panel, "series"))
    for kind, line in (("at", axis.axvline), ("level", axis.axhline)):
        for mark in listed(panel, kind):
            _marked(axis, kind, line, mark)
    _legend(axis)


def _few_ticks(axis: Any, series: Sequence[Mapping[str, Any]]) -> None:
    """A log axis of a ladder of few rungs has its ticks there: it may be too short for powers of ten."""
    ladders = [each for each in series if each.get("mark") == "both"]
    places = sorted(
        {x for each in ladders for x in _numbers(each, "x") if x > 0 and math.isfinite(x)}
    )
    apart = all(b >= APART * a for a, b in pairwise(places))
    if ladders and len(ladders) == len(series) and apart and len(places) <= MOST_TICKS:
        axis.set_xticks(places, [_count(x) for x in places])
        axis.set_xticks([], minor=True)


def _count(x: float) -> str:
    """A number as a tick has it.

    Examples:
        >>> _count(0.3), _count(300), _count(359_744), _count(4_212_992)
        ('0.3', '300', '360k', '4.2M')
    """
    size, letter = next(
        ((s, n) for s, n in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if x >= s), (1, "")
    )
    part = x / size
    return (
        f"{part:.0f}{letter}"
        if letter and part >= 10
        else f"{part:.2g}{letter}"
        if letter
        else f"{x:g}"
    )


def _legend(axis: Any) -> None:
    """Where it covers least; below the axes where there are so many curves that it would cover one anywhere."""
    named = len(axis.get_legend_handles_labels()[1])
    if not named:
        return
    if named > AMONG:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    else:
        axis.legend()


def _series(axis: Any, series: Mapping[str, Any], colour: str) -> None:
    """Points with their intervals: a band behind a line, whiskers on points."""
    x, y, low, high = (_numbers(series, name) for name in ("x", "y", "low", "high"))
    mark = MARKS.get(words(series.get("mark")), MARKS["line"])
    label = _text(series.get("name"), 48) or None
    if len(low) == len(high) == len(x):
        if mark.get("linestyle") == "none":
            # An interval need not hold the point: a clipped mean, say.
            below = [max(0.0, v - a) for v, a in zip(y, low, strict=True)]
            above = [max(0.0, b - v) for v, b in zip(y, high, strict=True)]
            axis.errorbar(
                x, y, (below, above), color=colour, fmt="none", elinewidth=1, capsize=2, alpha=0.7
            )
        else:
            axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axis.plot(x, y, color=colour, label=label, **mark)


def _bars(axis: Any, series: Mapping[str, Any], colour: str, place: tuple[int, int]) -> None:
    """Bars of several series stand side by side, at whole numbers."""
    x, y, low, high = (_numbers(series, name) for name in ("x", "y", "low", "high"))
    index, number = place
    width = 0.8 / number
    at = [value + (index - (number - 1) / 2) * width for value in x]
    axis.bar(at, y, width * 0.92, color=colour, label=_text(series.get("name"), 48) or None)
    if len(low) == len(high) == len(x):
        below = [max(0.0, v - a) for v, a in zip(y, low, strict=True)]
        above = [max(0.0, b - v) for v, b in zip(y, high, strict=True)]
        axis.errorbar(at, y, (below, above), color=INK, fmt="none", elinewidth=1, capsize=2)


def _marked(axis: Any, kind: str, line: Any, mark: Any) -> None:
    """An upright or level line with its name."""
    value = measured(mark[0]) if isinstance(mark, Sequence) and len(mark) == 2 else None
    if value is None or not math.isfinite(value):
        return
    line(value, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    place, turn = ((value, 0.98), 90) if kind == "at" else ((0.99, value), 0)
    axis.text(
        *place,
        _text(mark[1], 40),
        transform=axis.get_xaxis_transform() if kind == "at" else axis.get_yaxis_transform(),
        rotation=turn,
        ha="right",
        va="top" if kind == "at" else "bottom",
        fontsize=7.5,
        color=MUTED,
    )


def _numbers(series: Mapping[str, Any], name: str) -> list[float]:
    """A column; what was not measured is NaN, which matplotlib leaves out."""
    known = [measured(value) for value in listed(series, name)]
    return [math.nan if value is None else value for value in known]


def _text(value: Any, width: int) -> str:
    """A text of the document; matplotlib would read what stands between dollar signs as a formula."""
    return unescape(chart_text(words(value), width)).replace("$", r"\$")
