"""The over-optimisation picture: gold and proxy reward against √KL, after Gao, Schulman and Hilton 2022."""

import math
from collections.abc import Iterable, Sequence

from kleash.report.figures import DASHED, Chart, Figure, Label, drawable, margin_for, place
from kleash.report.text import chart_text, number
from kleash.report.view import Measured, RunView

TREND = 5
"""Steps behind one point of a trend line: a centred mean."""

_KL = "kl_policy_ref_per_response"
_HEIGHT = 330
"""Pixels of the drawn area, for keeping labels apart."""

Points = list[tuple[float, float] | None]
"""√KL and reward, step by step."""


def overoptimisation(runs: Sequence[RunView], colours: Sequence[str]) -> Chart:
    """Every run's gold and proxy reward against the square root of its KL(π‖π_ref)."""
    data: list[Figure] = []
    proxies: list[Label] = []
    golds: list[Label] = []
    for run, colour in zip(runs, colours, strict=True):
        for kind, metric, ends in (
            ("proxy", "reward_mean", proxies),
            ("gold", f"monitor/{run.gold}", golds),
        ):
            points = _points(run, metric)
            trend = _trend(points)
            data += [
                _dots(run, points, kind=kind, colour=colour),
                _line(trend, kind=kind, colour=colour),
            ]
            drawn = [point for point in trend if point is not None]
            ends += [
                Label(x=x, y=y, text=chart_text(run.name, 14), colour=colour) for x, y in drawn[-1:]
            ]
    reading = (
        "Every run starts at the left, where it still is the reference model, and moves right as "
        "it drifts away. The dashed line is the proxy reward, which training sees; the solid line "
        "is the gold reward, which no policy is trained on. Where the two part, the policy pleases the proxy "
        f"without getting better. Dots are single steps, lines their mean over {TREND} "
        "neighbouring steps."
    )
    return Chart(
        title="Gold and proxy reward against KL(π‖π_ref)",
        reading=reading,
        figure={"data": data, "layout": _layout(runs, data, proxies, golds)} if proxies else None,
        size="hero",
    )


def _layout(
    runs: Sequence[RunView],
    data: Sequence[Figure],
    proxies: Sequence[Label],
    golds: Sequence[Label],
) -> Figure:
    """Axes, the leash, and the runs' names: beside the ends at the right, below the others."""
    x, y = (
        [value for trace in data for value in trace[axis] if value is not None] for axis in "xy"
    )
    widest, low, high = max([*x, 0.5]), min(y), max(y)
    room = 0.06 * (high - low) or 1.0
    pixels_per_unit = _HEIGHT / (high - low + 2 * room)
    right = [
        Label(x=label.x, y=label.y, text=f"{label.text} · {kind}", colour=label.colour)
        for kind, labels in (("proxy", proxies), ("gold", golds))
        for label in labels
        if label.x > 0.8 * widest
    ]
    inside = [label for label in golds or proxies if label.x <= 0.8 * widest]
    notes = place(right, pixels_per_unit)
    for group in _neighbours(inside, 0.2 * widest):
        notes += place(group, pixels_per_unit, below=True)
    leashes = {run.target for run in runs if run.target is not None and run.unit == "response"}
    roots = [math.sqrt(target) for target in sorted(leashes) if target > 0]
    return {
        "xaxis": _nats_axis(widest) | {"range": [-0.02 * widest, 1.04 * widest], "showgrid": True},
        "yaxis": {"range": [low - room, high + room], "title": {"text": "mean reward"}},
        "shapes": [
            {"type": "line", "x0": root, "x1": root, "y0": 0, "y1": 1, "yref": "paper"}
            for root in roots
        ],
        "annotations": notes
        + [
            {"text": f"leash: {root * root:.3g} nats", "x": root, "y": 1}
            | {"yref": "paper", "yanchor": "bottom"}
            for root in roots
        ],
        "margin": {"t": 30, "r": margin_for(right)},
        "hovermode": "closest",
    }


def _nats_axis(widest: float) -> Figure:
    """Ticks of a √KL axis, named by the KL they stand for."""
    step = next((step for step in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0) if widest / step <= 8), 10.0)
    roots = [step * index for index in range(int(widest / step) + 1)]
    return {
        "tickmode": "array",
        "tickvals": roots,
        "ticktext": [number(round(root * root, 4)) for root in roots],
        "title": {"text": "KL(π‖π_ref), nats per response, on a square-root axis"},
    }


def _neighbours(labels: Sequence[Label], width: float) -> list[list[Label]]:
    """The labels in groups, from left to right, that lie near enough to each other to collide."""
    groups: list[list[Label]] = []
    for label in sorted(labels, key=lambda label: label.x):
        if groups and label.x - groups[-1][-1].x < width:
            groups[-1].append(label)
        else:
            groups.append([label])
    return groups


def _points(run: RunView, metric: str) -> Points:
    """√KL and a reward; a step that lacks either, or whose KL estimate is negative, is a gap."""
    pairs = zip(drawable(run.series(_KL)), drawable(run.series(metric)), strict=True)
    return [
        None if kl is None or kl < 0 or reward is None else (math.sqrt(kl), reward)
        for kl, reward in pairs
    ]


def _trend(points: Points) -> Points:
    """Centred means of both coordinates over the measured steps nearby; gaps stay gaps.

    The window narrows towards the first step, so that a line begins where the run did.
    """
    means: Points = []
    for index, point in enumerate(points):
        reach = min(TREND // 2, index)
        near = [at for at in points[index - reach : index + reach + 1] if at is not None]
        means.append(
            None if point is None else (_mean(x for x, _ in near), _mean(y for _, y in near))
        )
    return means


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _columns(points: Points) -> dict[str, list[Measured]]:
    return {
        "x": [None if point is None else point[0] for point in points],
        "y": [None if point is None else point[1] for point in points],
    }


def _dots(run: RunView, points: Points, *, kind: str, colour: str) -> Figure:
    columns = _columns(points)
    return columns | {
        "type": "scatter",
        "mode": "markers",
        "text": [
            f"step {step}<br>{kind} {number(reward)} at KL {number(kl)} nats"
            for step, reward, kl in zip(run.steps, columns["y"], run.series(_KL), strict=True)
        ],
        "name": chart_text(run.name),
        "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
        "marker": {"size": 5, "color": colour, "opacity": 0.4 if kind == "gold" else 0.22},
    }


def _line(trend: Points, *, kind: str, colour: str) -> Figure:
    """The trend; the gold one ends in a dot, where the run is now."""
    columns = _columns(trend)
    gold = kind == "gold"
    last = max((at for at, y in enumerate(columns["y"]) if y is not None), default=None)
    return columns | {
        "type": "scatter",
        "mode": "lines+markers" if gold else "lines",
        "line": {"color": colour, "width": 3} | ({} if gold else {"width": 1.75, "dash": DASHED}),
        "marker": {
            "color": colour,
            "size": [10 if at == last else 0 for at in range(len(trend))],
            "opacity": 1,
        },
        "hoverinfo": "skip",
    }
