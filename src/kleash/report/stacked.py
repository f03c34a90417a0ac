"""Charts over each other in one figure, by steps: a report's charts where there is no page around them."""

from collections.abc import Mapping, Sequence
from typing import Any

from kleash.report.figures import Chart, Figure
from kleash.report.theme import CARDS, TEMPLATES

GAP = 0.08
"""Of the figure's height, between two charts: a title stands in it."""
HEIGHT = 260
"""Pixels of a chart."""


def stack(charts: Sequence[Chart]) -> Figure:
    """One figure of several charts, the first on top; those of which nothing was measured are left out.

    Args:
        charts: whose figures have one x and one y axis each.
    """
    shown = [(chart.title, chart.figure) for chart in charts if chart.figure is not None]
    layout: Figure = {
        "template": TEMPLATES["light"],
        "paper_bgcolor": CARDS["light"],
        "dragmode": "zoom",
        "height": HEIGHT * max(1, len(shown)),
        "shapes": [],
        "annotations": [],
        "margin": {"l": 60, "r": 90, "t": 40, "b": 48},
    }
    data: list[Any] = []
    for index, (title, figure) in enumerate(shown):
        place = _place(index, len(shown))
        axis = "" if index == 0 else str(index + 1)
        data += [{**trace, "xaxis": f"x{axis}", "yaxis": f"y{axis}"} for trace in figure["data"]]
        inner = figure["layout"]
        layout[f"xaxis{axis}"] = {**inner["xaxis"], "anchor": f"y{axis}"}
        layout[f"yaxis{axis}"] = {**inner["yaxis"], "anchor": f"x{axis}", "domain": place}
        if index < len(shown) - 1:
            layout[f"xaxis{axis}"] |= {"title": {"text": ""}}
        layout["shapes"] += [_moved(each, axis) for each in inner.get("shapes", ())]
        layout["annotations"] += [
            *(_unframed(_moved(each, axis)) for each in inner.get("annotations", ())),
            _title(title, place[1]),
        ]
    return {"data": data, "layout": layout}


def _place(index: int, count: int) -> list[float]:
    """Where a chart lies, from below, as shares of the height.

    Examples:
        >>> [[round(x, 2) for x in _place(index, 2)] for index in (0, 1)]
        [[0.54, 1.0], [0.0, 0.46]]
    """
    height = (1 - GAP * (count - 1)) / count
    top = 1 - index * (height + GAP)
    return [max(0.0, top - height), top]


def _moved(part: Mapping[str, Any], axis: str) -> Figure:
    """A shape or annotation of a chart alone, as part of the chart with these axes."""
    across = f"x{axis} domain" if part.get("xref") == "paper" else f"x{axis}"
    return {**part, "xref": across, "yref": f"y{axis}"}


def _unframed(annotation: Figure) -> Figure:
    """Text at its place: an arrow is plotly's own idea."""
    return {"showarrow": False, **annotation}


def _title(text: str, top: float) -> Figure:
    at = {"x": 0, "xref": "paper", "xanchor": "left", "y": top, "yref": "paper"}
    return {"text": f"<b>{text}</b>", "showarrow": False, "yanchor": "bottom", "yshift": 8} | at
