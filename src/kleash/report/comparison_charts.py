"""The charts of a comparison: figures with their whiskers, KL by position, a search by its budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kleash.report.compared import Read, count, figure, listed, objects, part, read, words
from kleash.report.compared_lines import KL, KL_BACK
from kleash.report.drift import area, position_axes, stair
from kleash.report.figures import (
    Chart,
    Figure,
    Label,
    Limit,
    drawable,
    margin_for,
    place,
)
from kleash.report.text import chart_text, number
from kleash.report.theme import LIMIT, PALETTE
from kleash.report.view import Drift, Measured, Place

POLICY, REFERENCE = PALETTE[2], PALETTE[5]
"""What the policy wrote is blue, what the reference wrote grey."""

FAR = 8
"""Times the largest value, beyond which a limit would leave too little room for the whiskers, which are wide."""

SLICES = 24
"""Slices that are drawn; the worst of them."""

_ROW, _SLICE_ROW = 62, 34
"""Pixels of a whisker with its value above it, and of one without."""
_FRAME = 64
"""Pixels of a chart beside its rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whisker:
    """One figure with its interval, in a row of its own."""

    label: str
    found: Read | None
    colour: str
    limit: Limit | None = None


def headline_chart(document: Mapping[str, Any]) -> Chart:
    """KL per response both ways, against the limit on all prompts."""
    limit = _limits(document).get("all")
    rows = [
        Whisker(
            label=KL,
            found=read(document, "kl_policy_ref_per_response"),
            colour=POLICY,
            limit=limit,
        ),
        Whisker(
            label=KL_BACK, found=read(document, "kl_ref_policy_per_response"), colour=REFERENCE
        ),
    ]
    reading = (
        f"{KL} is read on the policy's own answers, {KL_BACK} on the reference's: the second sees what the "
        "policy no longer says. The whisker is the interval, clustered by prompt."
    )
    return _whiskers(
        rows, "How far apart they are, nats per response", reading, size="hero", row=_ROW
    )


def slice_chart(document: Mapping[str, Any]) -> Chart:
    """KL(π‖π_ref) per response of each slice, the worst first, each against its limit."""
    limits = _limits(document)
    rows = [
        Whisker(label=name, found=found, colour=POLICY, limit=limits.get(name))
        for name, found in worst_slices(document)[:SLICES]
    ]
    return _whiskers(rows, f"{KL} by slice, nats per response", "", size="large", row=_SLICE_ROW)


def worst_slices(document: Mapping[str, Any]) -> list[tuple[str, Read | None]]:
    """Slices with KL(π‖π_ref) per response, the largest first, those without a figure before all."""
    slices = part(document, "slices")
    found = [(name, read(slices, name, "kl_policy_ref_per_response")) for name in slices]
    return sorted(found, key=lambda each: -_height(each[1]))


def position_chart(document: Mapping[str, Any]) -> Chart:
    """KL at each position of a response, both ways."""
    sides = (KL_BACK, "kl_ref_policy", REFERENCE), (KL, "kl_policy_ref", POLICY)
    lines = [(name, colour, _positions(document, key)) for name, key, colour in sides]
    lines = [each for each in lines if any(nats is not None for nats in _nats(each[2]))]
    title = "Where the KL is, by position in the response"
    reading = (
        "The positions add up to the KL of a response. Fewer responses reach the later ones, "
        "so that a fall to the right need not mean less drift there."
    )
    if not lines:
        return Chart(title=title, reading=reading, figure=None, size="large")
    layout = position_axes([drift for _, _, drift in lines])
    ends = [_end(name, colour, drift) for name, colour, drift in lines]
    low, high = layout["yaxis"]["range"]
    layout["annotations"] = place(ends, pixels_per_unit=230 / (high - low))
    layout["margin"] = {"r": margin_for(ends)}
    data = [area(lines[-1][2], lines[-1][1])]
    data += [stair(drift, colour, name, 1.5) for name, colour, drift in lines]
    return Chart(
        title=title,
        reading=reading,
        figure={"data": data, "layout": layout},
        size="large",
        height=300,
    )


def search_chart(search: Mapping[str, Any]) -> Chart:
    """The largest KL that a search had found, by the tokens it had scored."""
    points = [
        (figure(each[0]), figure(each[1])) for each in listed(search, "curve") if _is_pair(each)
    ]
    x, y = drawable(tokens for tokens, _ in points), drawable(nats for _, nats in points)
    title = "What the search found, by its budget"
    ordinary = figure(search.get("ordinary_max"))
    reading = "The largest KL of any context tried so far."
    values = [value for value in y if value is not None]
    if not values:
        return Chart(title=title, reading=reading, figure=None, size="medium")
    layout: Figure = {
        "xaxis": {"title": {"text": "tokens scored"}, "rangemode": "tozero", "tickformat": "~s"},
        "yaxis": {"title": {"text": "nats"}, "rangemode": "tozero"},
    }
    if drawable([ordinary])[0] is not None:
        reading += " The dashed line is the largest on ordinary prompts."
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": ordinary, "y1": ordinary}
        ]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "text": [f"{number(value)} nats" for value in y],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": POLICY, "width": 2, "shape": "hv"},
        "marker": {"color": POLICY, "size": 3},
    }
    return Chart(
        title=title, reading=reading, figure={"data": [line], "layout": layout}, size="medium"
    )


def _whiskers(rows: Sequence[Whisker], title: str, reading: str, *, size: Any, row: int) -> Chart:
    """Rows of dots with whiskers, each with its limit as a stroke across it."""
    drawn = [each for each in rows if _height(each.found) != math.inf]
    height = row * len(rows) + _FRAME
    if not drawn:
        return Chart(title=title, reading=reading, figure=None, size=size, height=height)
    ends = [x for each in drawn for x in _ends(each.found) if x is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    near = {
        at: each.limit
        for at, each in enumerate(rows)
        if each.limit is not None and each.limit.value <= (FAR * high or math.inf)
    }
    high = max([high, *(limit.value for limit in near.values())]) or 1.0
    layout: Figure = {
        "xaxis": {
            "title": {"text": "nats per response"},
            "range": [low - 0.02 * (high - low), high + 0.06 * (high - low)],
            "showgrid": True,
            "showline": False,
            "zeroline": low < 0,
        },
        "yaxis": {
            "range": [len(rows) - 0.5, -0.5],
            "tickvals": list(range(len(rows))),
            "ticktext": [chart_text(each.label, 26) for each in rows],
            "showgrid": False,
            "tickfont": {"size": 13},
        },
        "hovermode": "closest",
        "shapes": [_stroke(at, limit) for at, limit in near.items()],
        "annotations": [_limit_name(min(near), near[min(near)])] if near else [],
    }
    layout["annotations"] += [
        _said(at, each, high)
        for at, each in enumerate(rows)
        if row == _ROW or _height(each.found) == math.inf
    ]
    return Chart(
        title=title,
        reading=" ".join(filter(None, (reading, *_remarks(rows, near)))),
        figure={"data": [_dot(at, each) for at, each in enumerate(rows)], "layout": layout},
        size=size,
        height=height,
    )


def _remarks(rows: Sequence[Whisker], near: Mapping[int, Limit]) -> list[str]:
    remarks: list[str] = []
    if near:
        remarks.append("The red stroke is the limit: the whole whisker must lie to the left of it.")
    limits = {at: each.limit.value for at, each in enumerate(rows) if each.limit is not None}
    far = [value for at, value in limits.items() if at not in near]
    if far:
        remarks.append(
            f"The limit of {number(min(far))} nats lies far to the right of what is drawn."
        )
    if any(each.found is not None and each.found.doubt for each in rows):
        remarks.append(
            "Hollow: one response holds so much of it that the interval should not be rested on."
        )
    if any(each.found is not None and each.found.low is None for each in rows):
        remarks.append("A dot without a whisker is of one prompt, which has no interval.")
    return remarks


def _dot(at: int, each: Whisker) -> Figure:
    below, above = _arms(each.found)
    is_doubted = each.found is not None and bool(each.found.doubt)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": drawable([None if each.found is None else each.found.value]),
        "y": [at],
        "text": [f"{chart_text(each.label, 60)}: {_text(each.found)}"],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": each.colour,
            "size": 11,
            "line": {"width": 2, "color": each.colour},
            "symbol": "circle-open" if is_doubted else "circle",
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [above],
            "arrayminus": [below],
            "color": each.colour,
            "thickness": 2,
            "width": 6,
        },
    }


def _text(found: Read | None) -> str:
    return number(None) if found is None else found.text


def _said(at: int, each: Whisker, most: float) -> Figure:
    """A whisker's figure above it, on the side where there is room."""
    x = 0.0 if each.found is None else drawable([each.found.value])[0] or 0.0
    below, above = _arms(each.found)
    anchor, x = (
        ("right", x + above)
        if x > 0.65 * most
        else ("left", x - below)
        if x < 0.2 * most
        else ("center", x)
    )
    return {
        "text": _text(each.found),
        "x": x,
        "y": at,
        "xanchor": anchor,
        "yanchor": "bottom",
        "yshift": 9,
        "font": {"color": each.colour},
    }


def _stroke(at: int, limit: Limit) -> Figure:
    line = {"color": LIMIT, "width": 2, "dash": "solid"}
    return {
        "type": "line",
        "x0": limit.value,
        "x1": limit.value,
        "y0": at - 0.42,
        "y1": at + 0.42,
        "line": line,
    }


def _limit_name(at: int, limit: Limit) -> Figure:
    """Under the whisker: what it says stands above it."""
    return {
        "text": chart_text(limit.text, 40),
        "x": limit.value,
        "y": at + 0.42,
        "xanchor": "right",
        "yanchor": "bottom",
        "xshift": -3,
        "font": {"size": 11, "color": LIMIT},
    }


def _limits(document: Mapping[str, Any]) -> dict[str, Limit]:
    """The lowest limit per response of each scope."""
    found: dict[str, Limit] = {}
    for each in objects(document, "limits"):
        nats, scope = figure(each.get("limit")), words(each.get("scope"))
        if drawable([nats])[0] is None or nats is None or each.get("unit") != "response":
            continue
        if scope not in found or nats < found[scope].value:
            found[scope] = Limit(value=nats, text=f"limit {nats:g}")
    return found


def _height(found: Read | None) -> float:
    value = None if found is None else drawable([found.value])[0]
    return math.inf if value is None else value


def _ends(found: Read | None) -> list[float | None]:
    return [] if found is None else drawable([found.value, found.low, found.high])


def _arms(found: Read | None) -> tuple[float, float]:
    """From the value to the ends of its interval; 0 where there is none."""
    ends = _ends(found)
    if len(ends) < 3 or ends[0] is None or ends[1] is None or ends[2] is None:
        return 0.0, 0.0
    return ends[0] - ends[1], ends[2] - ends[0]


def _positions(document: Mapping[str, Any], key: str) -> Drift:
    places = [
        Place(
            position=at,
            nats=figure(each.get(key)),
            count=count(each.get("count")) if key == "kl_policy_ref" else None,
        )
        for each in objects(document, "where", "positions")
        if (at := count(each.get("position"))) is not None
    ]
    return Drift(step=0, by_position=tuple(places))


def _nats(drift: Drift) -> list[Measured]:
    return drawable(place.nats for place in drift.by_position)


def _end(name: str, colour: str, drift: Drift) -> Label:
    """A line's name at its last drawn point."""
    rows = zip(drift.by_position, _nats(drift), strict=True)
    x, y = [(place.position, nats) for place, nats in rows if nats is not None][-1]
    return Label(x=x, y=y, text=chart_text(name, 18), colour=colour)


def _is_pair(each: Any) -> bool:
    return isinstance(each, list) and len(each) == 2
