"""The figure of the hacking study: gold over steps, the ROC of the alarms, and when they rang."""

from collections.abc import Mapping, Sequence

from kleash.lab.studies.hacking.alarms import ALARMS, COMBINED, Judged, Run
from kleash.lab.studies.hacking.gold import Arm
from kleash.lab.study.findings import Figure, Mark, Panel, Series
from kleash.lab.study.statistics import Estimate

IN_TIME = 0.8
"""Share of hacked runs in which an alarm is to ring before gold has lost a fifth of its gain."""
RATES = tuple(10 ** (-i / 4) for i in range(2, 21))
"""Planned false alarms a step, of the ROC: from 0.3 to 1e-5."""
SHOWN = 40.0
"""False alarms per 1,000 steps that the figure goes to; the table has all."""


def figure(
    free: Mapping[str, Arm],
    held: Mapping[str, Arm],
    judged: Mapping[str, Sequence[Judged]],
    hacked: Sequence[tuple[str, Run]],
    leash: float,
) -> Figure:
    """Gold over steps, free and held; the ROC; and when the alarms together rang, against when gold was lost.

    Args:
        free: arms without a penalty, by reward.
        held: the same on the leash.
        judged: every alarm at each of `RATES`, and then as planned.
        hacked: the runs that are, each with its reward.
        leash: nats per response.
    """
    gold = [
        Panel(
            title=title,
            x="step",
            y="gold reward",
            series=tuple(
                line for i, (name, arm) in enumerate(arms.items()) for line in _lines(name, arm, i)
            ),
        )
        for title, arms in (("Without a penalty", free), (f"On a leash of {leash:g} nats", held))
    ]
    roc = Panel(
        title="Alarms",
        x="false alarms per 1,000 benign steps",
        y="share of runs",
        series=(
            *(_roc(name, found) for name, found in judged.items()),
            _spared(judged[COMBINED]),
        ),
        level=((IN_TIME, "wanted"),),
        at=((1.0, "wanted"),),
    )
    return Figure(
        caption="Above: gold reward over the steps of training on each reward, a line a seed, means of five steps. "
        "Below, left: the share of hacked runs in which an alarm rings in time, against its false alarms, as its "
        f"threshold is swept, up to {SHOWN:g} per 1,000 steps; dots: the share of runs on the same rewards that were "
        "not hacked in which any of them rings. Right: when the alarms together, as planned, first rang in each hacked "
        "run, and when gold had lost a fifth of its gain; below the line is in time.",
        panels=(*gold, roc, _times(judged[COMBINED][-1], hacked, list(free))),
    )


def _lines(name: str, arm: Arm, colour: int) -> list[Series]:
    """A line a seed, of which the first is named."""
    return [
        Series(name="" if i else name, x=each.d, y=each.value, colour=colour)
        for i, each in enumerate(arm.gold)
    ]


def _roc(name: str, found: Sequence[Judged]) -> Series:
    """Share in time over false alarms; the two collapses are of one colour."""
    own = [*ALARMS, COMBINED].index(name)
    mark: Mark = "dashed" if own == 5 else "line"
    x, y = _swept([(each.false, each.caught) for each in found])
    return Series(name=name, x=x, y=y, mark=mark, colour=own if own < 5 else own - 1)


def _spared(found: Sequence[Judged]) -> Series:
    """How often all alarms together ring where nothing was lost."""
    x, y = _swept([(each.false, each.spared) for each in found])
    return Series(name=f"{COMBINED}, not hacked", x=x, y=y, mark="points", colour=5)


def _swept(
    points: Sequence[tuple[Estimate, Estimate | None]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """False alarms per 1,000 steps and a share, in order, as a threshold is swept; without the rate as planned."""
    shown = sorted(
        (1000 * false.value, share.value)
        for false, share in points[: len(RATES)]
        if share is not None and 1000 * false.value <= SHOWN
    )
    return tuple(x for x, _ in shown), tuple(y for _, y in shown)


def _times(both: Judged, hacked: Sequence[tuple[str, Run]], names: Sequence[str]) -> Panel:
    """Points of the hacked runs in which any alarm rang."""
    series = [
        Series(
            name=name,
            x=tuple(float(lost) for lost, _ in rung),
            y=tuple(float(first) for _, first in rung),
            mark="points",
            colour=colour,
        )
        for colour, name in enumerate(names)
        if (
            rung := [
                (run.lost, first)
                for (own, run), first in zip(hacked, both.first, strict=True)
                if own == name and first is not None and run.lost is not None
            ]
        )
    ]
    last = float(max((run.lost or 1 for _, run in hacked), default=1))
    series.append(
        Series(name="as gold was lost", x=(0.0, last), y=(0.0, last), mark="dashed", colour=5)
    )
    return Panel(
        title="Any alarm, as planned",
        x="step at which gold had lost a fifth of its gain",
        y="step of the first ring",
        series=tuple(series),
    )
