"""Where the KL is: by position, in the tails, by prompt and by token."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from kleash.records import ROUNDING
from kleash.report.figures import Chart, Curve, Figure, by_step, drawable, segments
from kleash.report.text import number, shorten, signed, token_text, visible
from kleash.report.theme import rgba
from kleash.report.view import Drift, Measured, RunView, Share

TOP = 8
"""Prompts and tokens shown; drift.jsonl has more."""

_HEIGHT = 170
"""Pixels of the drawn area, for keeping labels apart."""

_TAILS = {
    "kl_policy_ref_per_token_max": ("max", "solid"),
    "kl_policy_ref_per_token_p99": ("p99", "6px,3px"),
    "kl_policy_ref_per_token": ("mean", "1.5px,3px"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt or token of a table."""

    text: str
    nats: str
    count: str
    bar: float
    """From -1 to 1: the value beside the largest of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What drifted most, with the words around it."""

    title: str
    reading: str
    kind: Literal["prompt", "token", "text"]
    counted: str
    """What the last column is; empty where there is none."""
    rows: tuple[Row, ...]
    measured: str = "nats"
    """What the column before it is."""
    diverges: bool = False
    """Whether bars grow from the middle, to both sides."""


def drift_charts(run: RunView, colour: str) -> list[Chart]:
    """Where in a response the KL is, and its tails; neither for a run that measured neither."""
    charts = [by_position(run, colour), tails(run, colour)]
    return charts if any(chart.figure is not None for chart in charts) else []


def by_position(run: RunView, colour: str) -> Chart:
    """Nats at each position of a response, at the last step that drew samples, before a faint earlier one."""
    title = "Where the KL is, by position in the response"
    reading = (
        "The positions add up to the KL of a response. Fewer responses reach the later ones, "
        "so that a fall to the right need not mean less drift there."
    )
    lines = [line for line in run.drift if any(nats is not None for nats in _nats(line))]
    if not lines:
        return Chart(title=title, reading=reading, figure=None, size="medium")
    last, before = lines[-1], _before(lines)
    reading += f" Drawn at step {last.step}"
    reading += "." if before is None else f"; faint, step {before.step}."
    return Chart(
        title=title, reading=reading, figure=_positions(last, before, colour), size="medium"
    )


def tails(run: RunView, colour: str) -> Chart:
    """KL per token by step: its mean, what one token in a hundred exceeds, and the largest."""
    values = [value for metric in _TAILS for value in drawable(run.series(metric))]
    # Before it has moved, a policy's KL is 0 or the noise around it, which a log axis would make the picture of.
    log = any(value is not None and value > ROUNDING for value in values)
    curves = [
        Curve(
            run=run,
            metric=metric,
            label=label,
            colour=colour,
            dash=dash,
            above=ROUNDING if log else -math.inf,
        )
        for metric, (label, dash) in _TAILS.items()
    ]
    reading = (
        "A mean can be calm while single tokens are far from the reference. One token in a hundred "
        "lies above p99; max is the largest of the step."
    )
    if log:
        reading += f" Below {ROUNDING:g} nats nothing is drawn."
    return Chart(
        title="KL(π‖π_ref) per token, nats" + (" (log axis)" if log else ""),
        reading=reading,
        figure=by_step(curves, log=log, zero=True, height=_HEIGHT),
        size="medium",
    )


def drift_tables(run: RunView) -> list[Table]:
    """The prompts and the tokens with most, at the last step that drew samples."""
    last = run.drift[-1] if run.drift else None
    if last is None or not (last.by_prompt or last.by_token):
        return []
    return [
        Table(
            title="Prompts that drifted most",
            reading=f"KL(π‖π_ref) of the responses to each, nats per response, at step {last.step}. "
            + (
                "The worst first; drift.jsonl has more."
                if len(last.by_prompt) > TOP
                else "The worst first."
            ),
            kind="prompt",
            counted="responses",
            rows=_rows(last.by_prompt, lambda text: shorten(visible(text), 300), number),
        ),
        Table(
            title="Tokens that moved most",
            reading=f"Each one's share of log π/π_ref as sampled, nats per response, at step {last.step}. "
            "Full bars: likelier than under the reference; hollow: less likely.",
            kind="token",
            counted="drawn",
            rows=_rows(last.by_token, lambda text: shorten(token_text(text), 60), signed),
        ),
    ]


def _rows(
    shares: Sequence[Share], text: Callable[[str], str], nats: Callable[[Measured], str]
) -> tuple[Row, ...]:
    shown = shares[:TOP]
    known = drawable(share.nats for share in shown)
    most = max((abs(value) for value in known if value is not None), default=0.0)
    return tuple(
        Row(
            text=text(share.text),
            nats=nats(share.nats),
            count=number(share.count),
            bar=round(value / most, 3) if value is not None and most > 0 else 0.0,
        )
        for share, value in zip(shown, known, strict=True)
    )


def _before(lines: Sequence[Drift]) -> Drift | None:
    """The first line with any drift in it, when it is not the last."""
    moved = (
        line
        for line in lines[:-1]
        if any(nats is not None and nats > ROUNDING for nats in _nats(line))
    )
    return next(moved, None)


def _nats(line: Drift) -> list[Measured]:
    return drawable(place.nats for place in line.by_position)


def _positions(last: Drift, before: Drift | None, colour: str) -> Figure:
    faint = [] if before is None else [stair(before, rgba(colour, 0.6), f"step {before.step}", 1.5)]
    lines = [last] if before is None else [before, last]
    return {
        "data": [area(last, colour), *faint, stair(last, colour, f"step {last.step}")],
        "layout": position_axes(lines),
    }


def position_axes(lines: Sequence[Drift]) -> Figure:
    """A layout with room for every position of the lines."""
    values = [value for line in lines for value in _nats(line) if value is not None]
    low, high = min(0.0, *values), max(*values, 0.0) or 1.0
    top = high + 0.06 * (high - low)
    widest = max(place.position for line in lines for place in line.by_position)
    return {
        "xaxis": {
            "title": {"text": "position in the response (0: its first token)"},
            "range": [-0.5, widest + 0.5],
            "unifiedhovertitle": {"text": "position %{x}"},
        },
        "yaxis": {"range": [low, top], "title": {"text": "nats per response"}},
    }


def area(line: Drift, colour: str) -> Figure:
    """What lies under the stair, the KL of a response; nothing where a value is missing."""
    nats, x, y = _nats(line), list[Measured](), list[Measured]()
    for stretch in segments(nats):
        at = [place.position for place in line.by_position[stretch]]
        edges = [at[0], *((a + b) / 2 for a, b in pairwise(at)), at[-1]]
        x += [edges[0], *(edge for tread in pairwise(edges) for edge in tread), edges[-1], None]
        y += [0.0, *(value for value in nats[stretch] for _ in range(2)), 0.0, None]
    fill = {"fill": "toself", "fillcolor": rgba(colour, 0.2), "line": {"width": 0}}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip"} | fill


def stair(line: Drift, ink: str, name: str, width: float = 2) -> Figure:
    """Each position one tread."""
    return {
        "type": "scatter",
        # Markers keep a value visible that has a gap on both sides.
        "mode": "lines+markers",
        "x": [place.position for place in line.by_position],
        "y": _nats(line),
        "text": [
            f"{number(place.nats)} nats"
            + ("" if place.count is None else f", {number(place.count)} responses")
            for place in line.by_position
        ],
        "name": name,
        "hovertemplate": "%{text}",
        "line": {"color": ink, "width": width, "shape": "hvh"},
        "marker": {"color": ink, "size": 3},
    }
