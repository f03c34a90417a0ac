"""The figure of a sweep over β: the frontier exactly and on a language model, gold reward over KL, and KL over β."""

import math
from collections.abc import Mapping, Sequence

from kleash.lab.arms.sweep import Hold
from kleash.lab.studies.beta_sweep.choice import kl_of
from kleash.lab.studies.beta_sweep.exact import End, exact_series
from kleash.lab.studies.beta_sweep.findings import Arms
from kleash.lab.studies.beta_sweep.frontier import gains
from kleash.lab.study.choice import Choice
from kleash.lab.study.findings import Figure, Mark, Panel, Series
from kleash.lab.study.reach import Reach
from kleash.lab.study.statistics import Estimate, estimate

POINTS = 60
LEAST_KL = 0.05
"""Nats, where the curves begin."""
HEADROOM = 1.4
"""How far above the arms a bound is still drawn, relatively."""
KL = "KL(π‖π_ref), nats per response"


def figure(
    ends: Mapping[float, Sequence[End]],
    arms: Arms,
    reaches: Sequence[Reach],
    choice: Choice,
    floor: float,
) -> Figure:
    """Four panels.

    Args:
        ends: of the golden problem, by β.
        arms: of the language model.
        reaches: one a seed.
        choice: among the arms.
        floor: gold reward of the reference.
    """
    best = list(arms)[choice.best]
    gold = {hold: [each.gold for each in group] for hold, group in arms.items()}
    bought = {hold: gains(group, reaches) for hold, group in arms.items()}
    return Figure(
        caption="Top left: the golden problem, all by enumeration. Top right: language-model arms beside the optimum "
        "weighed out of the reference's own samples, and the tangent that no policy exceeds where samples no longer "
        "show it. Bottom left: what the arms are worth by the gold reward. Bottom right: how KL answers to β. Points "
        "are means over seeds; bands and whiskers are 95 % intervals.",
        panels=(
            Panel(title="The golden problem", x=KL, y="reward", series=exact_series(ends)),
            Panel(
                title="What KL buys: proxy reward",
                x=KL,
                y="proxy gain over the reference",
                series=(*_bound(arms, reaches), *_points(arms, bought)),
                x_log=True,
            ),
            Panel(
                title="What it is worth: gold reward",
                x=KL,
                y="gold reward",
                series=_points(arms, gold, best),
                x_log=True,
                level=((floor, "the reference"),),
            ),
            Panel(
                title="KL answers to β",
                x="β, reward per nat",
                y=KL,
                series=_answers(ends, arms),
                x_log=True,
                y_log=True,
            ),
        ),
    )


def _points(
    arms: Arms, values: Mapping[Hold, Sequence[float]], best: Hold | None = None
) -> tuple[Series, ...]:
    """The arms of a held β, and those of a target; the one that is recommended by itself."""
    kinds = [
        ("held β", 2, [h for h in arms if h.kl_target is None and h != best]),
        ("held target", 4, [h for h in arms if h.kl_target is not None and h != best]),
    ]
    if best is not None:
        kinds.append((f"largest: {best.name}", 3, [best]))
    return tuple(
        _series(name, [(kl_of(arms[h]).value, estimate(values[h])) for h in group], colour)
        for name, colour, group in kinds
        if group
    )


def _series(
    name: str, points: Sequence[tuple[float, Estimate | None]], colour: int, mark: Mark = "points"
) -> Series:
    found = [each for _, each in points]
    return Series(
        name=name,
        x=tuple(x for x, _ in points),
        y=tuple(None if each is None else each.value for each in found),
        low=tuple(None if each is None else each.low for each in found),
        high=tuple(None if each is None else each.high for each in found),
        mark=mark,
        colour=colour,
    )


def _bound(arms: Arms, reaches: Sequence[Reach]) -> list[Series]:
    """The most gain at each KL: as far as every seed's samples show it, and the tangent from there."""
    known = [near for near in reaches if near.last is not None]
    if not known:
        return []
    shown = min(near.last or 0.0 for near in known)
    farthest = max(each.kl for group in arms.values() for each in group)
    highest = HEADROOM * max(gain for group in arms.values() for gain in gains(group, reaches))
    steps = math.log(max(farthest, shown) / LEAST_KL) / (POINTS - 1)
    places = [LEAST_KL * math.exp(steps * i) for i in range(POINTS)]
    curve = [
        (kl, estimate([(near.most(kl) or 0.0) - near.floor for near in known])) for kl in places
    ]
    inside = [point for point in curve if point[0] <= shown]
    beyond = [p for p in curve if p[0] > shown and p[1] is not None and p[1].value <= highest]
    beyond = [*inside[-1:], *beyond]  # so that the one goes on from the other
    return [
        _series("the optimum, by samples", inside, 0, "line"),
        _series("no policy is above", beyond, 0, "dashed"),
    ]


def _answers(ends: Mapping[float, Sequence[End]], arms: Arms) -> tuple[Series, ...]:
    held = [(hold.beta, group) for hold, group in arms.items() if hold.beta]
    return (
        _series("language model", [(b, kl_of(group)) for b, group in held], 2, "both"),
        _series(
            "golden problem",
            [(b, estimate([end.kl for end in group])) for b, group in sorted(ends.items())],
            0,
            "both",
        ),
    )
