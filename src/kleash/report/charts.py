"""The charts of a report: which figures there are, what they are called and how to read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kleash.report.figures import Curve, Figure, Label, by_step, drawable, margin_for, place, spans_a_decade
from kleash.report.text import chart_text, number, short_name
from kleash.report.theme import PALETTE
from kleash.report.view import Measured, RunView

TREND = 5
"""Steps behind one point of a trend line: a centred mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure with the words around it."""

    title: str
    """What is drawn, with direction and unit."""
    figure: Figure | None
    """None: nothing of it was measured."""
    reading: str
    """How to read it, in plain words."""
    size: Literal["large", "medium", "small"] = "small"


def run_charts(run: RunView, colour: str) -> list[Chart]:
    """The charts of one run, from the leash to the optimiser's own figures."""
    smalls = (
        ("entropy_per_token", "Entropy, nats per token", "How undecided the policy is. Near 0 it has one answer left."),
        ("response_length", "Response length, tokens", "A reward that can be had by length shows here first."),
        ("eos_rate", "Responses that end by themselves", "Share that reached the end-of-text token before the limit."),
        ("kl_new_old_per_token", "KL(new‖old), nats per token", "How far one update moved the policy."),
        ("clip_fraction", "Clip fraction", "Share of tokens whose probability ratio hit the PPO clip."),
        ("grad_norm", "Gradient norm", "Before clipping. Spikes are the first sign of trouble."),
        ("policy_loss", "Policy loss", "Its level means little; its jumps do."),
        ("value_loss", "Value loss", "How badly the value head predicts the return."),
        ("explained_variance", "Explained variance", "1: the value head foresees returns. 0: it knows nothing."),
    )
    return [
        kl([run], [colour]),
        reward(run, colour),
        kl_coef([run], [colour]),
        *(
            Chart(title=title, reading=reading, figure=by_step([_curve(run, metric, colour)]))
            for metric, title, reading in smalls
        ),
    ]


def arm_charts(runs: Sequence[RunView], colours: Sequence[str]) -> list[Chart]:
    """Several runs against each other, over-optimisation first."""
    compared = (
        ("reward_mean", "Proxy reward, mean per response", "The scorer that was trained on."),
        ("gold", "Gold reward, mean per response", "The scorer that was only watched."),
        ("entropy_per_token", "Entropy, nats per token", "How undecided the policy is. Near 0 it has one answer left."),
        ("response_length", "Response length, tokens", "A reward that can be had by length shows here first."),
    )
    charts = [overoptimisation(runs, colours), kl(runs, colours)]
    for metric, title, reading in compared:
        curves = [
            _curve(run, f"monitor/{run.gold}" if metric == "gold" else metric, colour)
            for run, colour in zip(runs, colours, strict=True)
        ]
        charts.append(Chart(title=title, reading=reading, figure=by_step(curves), size="medium"))
    return [*charts[:4], kl_coef(runs, colours), *charts[4:]]


def kl(runs: Sequence[RunView], colours: Sequence[str]) -> Chart:
    """KL(π‖π_ref) by step with its interval, against the target."""
    units = {run.unit for run in runs}
    unit = units.pop() if len(units) == 1 else "response"
    targets = {run.target for run in runs if run.target is not None and run.unit == unit}
    curves = [
        _curve(run, f"kl_policy_ref_per_{unit}", colour, interval=True)
        for run, colour in zip(runs, colours, strict=True)
    ]
    target = targets.pop() if len(targets) == 1 else None
    reading = "How far the policy has moved from the reference model. The shaded ribbon is the 95 % interval"
    reading += "." if target is None else "; the dashed line is the target, with ±20 % around it in grey."
    figure = by_step(curves, target=target, zero=True, height=260)
    return Chart(title=f"KL(π‖π_ref), nats per {unit}", reading=reading, figure=figure, size="large")


def kl_coef(runs: Sequence[RunView], colours: Sequence[str]) -> Chart:
    """The penalty coefficient β by step; on a log axis when it spans more than a decade."""
    curves = [_curve(run, "kl_coef", colour) for run, colour in zip(runs, colours, strict=True)]
    log = spans_a_decade(value for curve in curves for value in curve.y)
    figure = by_step(curves, log=log)
    reading = "The price of a nat: reward taken away for each nat of KL. An adaptive run turns this one knob."
    return Chart(title="β, the KL penalty" + (" (log axis)" if log else ""), reading=reading, figure=figure, size="medium")


def reward(run: RunView, colour: str) -> Chart:
    """The trained reward and every monitor by step: the best-known monitor solid, the proxy dashed."""
    others = [name for name in run.monitors if name != run.gold]
    curves = [_curve(run, "reward_mean", colour, label="proxy", dash="5px,3px")]
    if run.gold is not None:
        curves.append(_curve(run, f"monitor/{run.gold}", colour, label=short_name(run.gold)))
    spare = [shade for shade in PALETTE if shade != colour]
    curves += [
        _curve(run, f"monitor/{name}", spare[index % len(spare)], label=short_name(name))
        for index, name in enumerate(others)
    ]
    reading = "Dashed: the reward that was trained on. " + (
        "Solid: scorers that were only watched. If these fall while the dashed line rises, the reward is being gamed."
        if run.monitors
        else "No other scorer watched this run, so it cannot tell whether the reward is being gamed."
    )
    return Chart(title="Reward, mean per response", reading=reading, figure=by_step(curves), size="medium")


def overoptimisation(runs: Sequence[RunView], colours: Sequence[str]) -> Chart:
    """Gold and proxy reward against √KL(π‖π_ref), after Gao, Schulman and Hilton 2022."""
    data: list[Figure] = []
    labels: list[Label] = []
    for run, colour in zip(runs, colours, strict=True):
        root = [None if value is None or value < 0 else math.sqrt(value) for value in drawable(_kl_values(run))]
        kinds = (("proxy", "reward_mean"), ("gold", f"monitor/{run.gold}"))
        for kind, metric in kinds:
            rewards = drawable(run.series(metric))
            trend = _trend(root, rewards)
            data += [_dots(run, root, rewards, kind=kind, colour=colour), _trend_line(trend, kind=kind, colour=colour)]
            ends = [point for point in zip(*trend, strict=True) if None not in point]
            labels += [Label(x=x, y=y, text=f"{chart_text(run.name, 14)} · {kind}", colour=colour) for x, y in ends[-1:]]
    title = "Gold and proxy reward against KL(π‖π_ref), nats per response"
    reading = (
        "Every run starts at the left, where it still is the reference model, and moves right as it drifts away. "
        "The dashed line is the proxy reward, which training sees; the solid line is the gold reward, which it never "
        "sees. Where the two part, the policy pleases the proxy without getting better. Dots are single steps, lines "
        f"their mean over {TREND} neighbouring steps. The axis is √KL, labelled in nats."
    )
    figure = {"data": data, "layout": _overoptimisation_layout(runs, data, labels)} if labels else None
    return Chart(title=title, reading=reading, figure=figure, size="large")


def _overoptimisation_layout(runs: Sequence[RunView], data: Sequence[Figure], labels: Sequence[Label]) -> Figure:
    x, y = ([value for trace in data for value in trace[axis] if value is not None] for axis in "xy")
    widest, low, high = max([*x, 0.5]), min(y), max(y)
    room = 0.05 * (high - low) or 1.0
    roots = sorted({math.sqrt(run.target) for run in runs if run.target and run.target > 0 and run.unit == "response"})
    leash = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    name = {"yref": "paper", "y": 1, "yanchor": "bottom"}
    return {
        "xaxis": _nats_axis(widest) | {"range": [-0.02 * widest, 1.03 * widest], "showgrid": True},
        "yaxis": {"range": [low - room, high + room], "title": {"text": "mean reward"}},
        "shapes": [leash | {"x0": root, "x1": root} for root in roots],
        "annotations": [name | {"x": root, "text": f"leash: {root * root:.3g} nats"} for root in roots]
        + [note for group in _neighbours(labels, 0.3 * widest) for note in place(group, 330 / (high - low + 2 * room))],
        "margin": {"t": 30, "r": margin_for([label for label in labels if label.x > 0.7 * widest])},
        "hovermode": "closest",
    }


def _nats_axis(widest: float) -> Figure:
    """Ticks of a √KL axis, named by the KL they stand for."""
    step = next((step for step in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0) if widest / step <= 8), 10.0)
    roots = [step * index for index in range(int(widest / step) + 1)]
    names = [number(round(root * root, 4)) for root in roots]
    title = {"text": "KL(π‖π_ref), nats per response · square-root axis"}
    return {"tickmode": "array", "tickvals": roots, "ticktext": names, "title": title}


def _neighbours(labels: Sequence[Label], width: float) -> list[list[Label]]:
    """The labels in groups that lie near enough to each other, from left to right, to collide."""
    groups: list[list[Label]] = []
    for label in sorted(labels, key=lambda label: label.x):
        if groups and label.x - groups[-1][-1].x < width:
            groups[-1].append(label)
        else:
            groups.append([label])
    return groups


def _dots(run: RunView, x: Sequence[Measured], y: Sequence[Measured], *, kind: str, colour: str) -> Figure:
    notes = [
        f"step {step}<br>{kind} {number(reward)} at KL {number(kl)} nats"
        for step, reward, kl in zip(run.steps, y, _kl_values(run), strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "text": notes,
        "name": chart_text(run.name),
        "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
        "marker": {"size": 5, "color": colour, "opacity": 0.4 if kind == "gold" else 0.22},
    }


def _trend_line(trend: tuple[list[Measured], list[Measured]], *, kind: str, colour: str) -> Figure:
    line = {"width": 3, "dash": "solid"} if kind == "gold" else {"width": 1.75, "dash": "5px,3px"}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": trend[0],
        "y": trend[1],
        "line": line | {"color": colour},
        "hoverinfo": "skip",
    }


def _trend(x: Sequence[Measured], y: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Centred means of both coordinates over the measured steps nearby; a step that lacks either stays a gap."""
    points = [(a, b) if a is not None and b is not None else None for a, b in zip(x, y, strict=True)]
    smooth: tuple[list[Measured], list[Measured]] = ([], [])
    for index, point in enumerate(points):
        # Narrower towards the ends, so that a trend begins and ends on measured points.
        reach = min(TREND // 2, index, len(points) - 1 - index)
        near = [other for other in points[index - reach : index + reach + 1] if other is not None]
        for axis, values in enumerate(smooth):
            values.append(None if point is None else sum(other[axis] for other in near) / len(near))
    return smooth


def _curve(
    run: RunView, metric: str, colour: str, *, label: str = "", dash: str = "solid", interval: bool = False
) -> Curve:
    return Curve(run=run, metric=metric, label=label or run.name, colour=colour, dash=dash, interval=interval)


def _kl_values(run: RunView) -> tuple[Measured, ...]:
    return run.series("kl_policy_ref_per_response")
