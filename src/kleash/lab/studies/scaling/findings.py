"""What the ladder shows: at equal steps, at equal gain, and on a leash; slopes per decade of size, with intervals."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from kleash.lab.arms.arm import column
from kleash.lab.arms.outcomes import SEEN
from kleash.lab.study.curves import Curve, curve, peaks
from kleash.lab.study.findings import (
    Claim,
    Figure,
    Findings,
    Panel,
    Series,
    Table,
    Value,
    decide,
    series_of,
)
from kleash.lab.study.many import stepwise
from kleash.lab.study.statistics import Estimate, Line, estimate, least_squares, mean
from kleash.lab.study.work import Result

Steps = list[dict[str, Any]]
LATE = 3
"""Of a leashed arm the last third is looked at."""
HELD = 0.25
"""How far from its target, relatively, a KL may be for the β beside it to be that of the target."""
LIMITS = (
    "Models of one architecture that write film-review sentences, the smaller and larger ones taught by the embedded "
    "one. A slope over less than two decades of size says nothing of models a thousand times larger; the second table "
    "says how far each fit was off on the largest rung, which it was not shown.",
    "A policy of another size is another reference too, with another reward to begin with: what changes along that "
    "axis is the whole model and not its size alone.",
    "One student was taught for every size. Seeds are of pairs, proxies and policies, and none of them teaches it "
    "again: what a student of that size happened to become is in every seed, and in no interval. So a trend over sizes "
    "may be one of these few models; over pairs it is not.",
    "Points of one seed along an axis are fitted by one line, and the slope is one observation: how far the points lie "
    "off it is not in its interval.",
    "All questions are asked at once: that any of what is called settled is so by chance alone has a chance of 5 % in "
    "all (Holm). Whiskers and tables are of one figure by itself.",
    "One learning rate for all sizes: at equal steps a larger policy may drift further because it learns faster.",
)


class Level(NamedTuple):
    """One rung of an axis, as it was made: the result of each seed's arms."""

    axis: str
    label: str
    size: float | None
    """Parameters, or pairs."""
    reference: list[Result]
    """What the policy was before it was trained, on the prompts of the arms' examinations."""
    free: list[Result]
    leashed: list[Result]


class Figures(NamedTuple):
    """What is measured of each seed of a rung; None where it can't be."""

    drift: list[float | None]
    """√KL of the free arm at its end."""
    drift_at_gain: list[float | None]
    """√KL where its proxy reward has first gained as much as is asked for."""
    gold_lost: list[float | None]
    """Gold reward at its end, below the peak whose place the other seeds say."""
    leashed_gold: list[float | None]
    """Gold reward that the leashed arm has gained at its end."""
    beta: list[float | None]
    """log₁₀ β there, where the arm held its target."""


NAMES = {
    "drift": ("drift at equal steps", "√nats"),
    "drift_at_gain": ("drift at equal proxy gain", "√nats"),
    "gold_lost": ("gold lost without a penalty", "gold reward"),
    "leashed_gold": ("gold gained on the leash", "gold reward"),
    "beta": ("β that holds the target", "log₁₀ β"),
}
"""Of the fields: what they are called, and their units."""


TITLES = {"policy": "A larger policy", "reward model": "A larger reward model", "data": "More data"}
"""Of the axes."""


class Rung(NamedTuple):
    """A level with its figures."""

    level: Level
    figures: Figures

    def of(self, field: str) -> list[float | None]:
        """One of the figures, by seed."""
        return getattr(self.figures, field)


def conclude(levels: Sequence[Level], kl_target: float, gain: float) -> Findings:
    """The findings.

    Args:
        levels: the rungs of all axes, each axis from small to large.
        kl_target: of the leashed arms, nats per response.
        gain: of proxy reward, at which drifts are compared.
    """
    rungs = [Rung(level, figures_of(level, kl_target, gain)) for level in levels]
    axes: dict[str, list[Rung]] = {}
    for rung in rungs:
        axes.setdefault(rung.level.axis, []).append(rung)
    asked = [(axis, field) for axis in axes for field in NAMES]
    found = stepwise([slopes(axes[axis], field) for axis, field in asked])
    claims = [_claim(*each, slope) for each, slope in zip(asked, found, strict=True)]
    return Findings(
        answer=_answer(claims),
        claims=tuple(claims),
        tables=(_table(rungs, kl_target, gain), _extrapolations(axes)),
        figure=_figure(axes, kl_target, gain),
        limits=LIMITS,
    )


def figures_of(level: Level, kl_target: float, gain: float) -> Figures:
    """All that is measured of a rung, by seed."""
    gold, proxy = (
        [curve(column(run["steps"], "kl"), column(run["steps"], name)) for run in level.free]
        for name in ("gold", "reward")
    )
    leashed = [run["steps"] for run in level.leashed]
    return Figures(
        drift=[math.sqrt(max(0.0, run["end"]["kl"])) for run in level.free],
        drift_at_gain=[reached(each, gain) for each in proxy],
        gold_lost=[
            None if top is None else top.value - run["end"]["gold"]
            for top, run in zip(peaks(gold), level.free, strict=True)
        ],
        leashed_gold=[
            run["end"]["gold"] - began["gold"]
            for run, began in zip(level.leashed, level.reference, strict=True)
        ],
        beta=[holding(steps, kl_target) for steps in leashed],
    )


def reached(found: Curve, gain: float) -> float | None:
    """√KL where a curve has first gained so much over its beginning; None where it never does.

    Examples:
        >>> reached(Curve((0.0, 1.0, 2.0), (0.0, 0.2, 0.6)), 0.4)
        1.5
        >>> reached(Curve((0.0, 1.0), (0.0, 0.2)), 0.4) is None
        True
    """
    wanted = found.value[0] + gain
    for i in range(1, len(found.d)):
        low, high = found.value[i - 1], found.value[i]
        if low < wanted <= high:
            return found.d[i - 1] + (wanted - low) / (high - low) * (found.d[i] - found.d[i - 1])
    return None


def holding(steps: Steps, kl_target: float) -> float | None:
    """log₁₀ of the β that an arm ends with, geometric mean over its last third; None where that isn't at the target."""
    last = steps[-max(1, len(steps) // LATE) :]
    kl = [value for value in column(last, "kl") if value is not None]
    betas = [value for value in column(last, "kl_coef") if value]
    if not kl or not betas or abs(fmean(kl) / kl_target - 1) > HELD:
        return None
    return fmean(math.log10(beta) for beta in betas)


def slopes(rungs: Sequence[Rung], field: str) -> list[float | None]:
    """Change of a figure per decade of size, one a seed; None of a seed with fewer than two rungs.

    Args:
        rungs: of one axis.
        field: of `Figures`.
    """
    seeds = max(len(rung.of(field)) for rung in rungs)
    lines = [_line(_points(rungs, field, seed)) for seed in range(seeds)]
    return [None if line is None else line.coefficients[1] for line in lines]


def _points(rungs: Sequence[Rung], field: str, seed: int) -> list[tuple[float, float]]:
    """log₁₀ size and the figure, of each rung that has both."""
    return [
        (math.log10(rung.level.size), value)
        for rung in rungs
        if rung.level.size and (value := rung.of(field)[seed]) is not None
    ]


def _line(points: Sequence[tuple[float, float]]) -> Line | None:
    """a + b x through points; None where they are of fewer than two places."""
    return least_squares([[1.0] * len(points), [x for x, _ in points]], [y for _, y in points])


def _claim(axis: str, field: str, slope: Estimate | None) -> Claim:
    name, unit = NAMES[field]
    return decide(
        f"{axis}: {name}",
        slope,
        (
            f"With a larger {axis} the {name} grows.",
            f"With a larger {axis} the {name} falls.",
            f"Whether the {name} changes with the size of the {axis} is not settled here.",
        ),
        unit=f"{unit} per decade",
    )


def _answer(claims: Sequence[Claim]) -> str:
    settled = [claim.says for claim in claims if claim.holds is not None]
    count = (
        f"{len(claims)} questions were asked at once, of which {len(settled)} are settled and "
        f"{len(claims) - len(settled)} open, by intervals that are wider for as many (Holm)."
    )
    return " ".join([count, *(settled or _surest(claims))])


def _surest(claims: Sequence[Claim]) -> list[str]:
    """Where nothing is settled, what comes nearest to it, with the interval that leaves it open."""

    def sureness(claim: Claim) -> float:
        found = claim.estimate
        if found is None or found.high is None or found.high == found.value:
            return 0.0
        return abs(found.value) / (found.high - found.value)

    nearest = max(claims, key=sureness)
    found = nearest.estimate
    if found is None or found.low is None or found.high is None or not sureness(nearest):
        return []
    told = f"{found.value:.2g} [{found.low:.2g}, {found.high:.2g}] {nearest.unit}"
    return [f"The nearest to being settled is {nearest.name}, {told.replace('-', '−')}."]


def _table(rungs: Sequence[Rung], kl_target: float, gain: float) -> Table:
    return Table(
        title="What grows, and what it does",
        columns=(
            *("what grows", "rung", "size"),
            "√KL at the end, no penalty",
            f"√KL at a proxy gain of {gain:g}",
            "gold lost, no penalty",
            f"gold gained on a leash of {kl_target:g} nats",
            "β there",
        ),
        rows=tuple(
            (rung.level.axis, rung.level.label, rung.level.size, *_means(rung)) for rung in rungs
        ),
        note="Means over seeds. Where an arm never gained so much, or did not come to its target, there is no figure "
        "of that seed.",
    )


def _means(rung: Rung) -> list[Value]:
    means = {field: mean(rung.of(field)) for field in NAMES}
    beta = means["beta"]
    return [*(means[f] for f in NAMES if f != "beta"), None if beta is None else 10**beta]


def _extrapolations(axes: dict[str, list[Rung]]) -> Table:
    """Fits on all rungs but the largest, held against the largest."""
    rows = [
        (axis, NAMES[field][0], *_foretold(rungs, field))
        for axis, rungs in axes.items()
        for field in NAMES
    ]
    return Table(
        title="How far a line in log size can be extended",
        columns=(
            *(
                "what grows",
                "figure",
                "slope per decade",
                "told of the largest rung",
                "found there",
            ),
            "off by",
        ),
        rows=tuple(rows),
        note="The line is fitted to the means of all rungs but the largest; with fewer than three rungs there is none. "
        "There is one model of each size, and its own ways are in all the seeds behind its point.",
    )


def _foretold(rungs: Sequence[Rung], field: str) -> list[Value]:
    means = sorted(
        (math.log10(rung.level.size), value)
        for rung in rungs
        if rung.level.size and (value := mean(rung.of(field))) is not None
    )
    slope = mean(slopes(rungs, field))
    if len(means) < 3:
        return [slope, None, None, None]
    *shown, (x, found) = means
    line = _line(shown)
    if line is None:
        return [slope, None, None, None]
    told = line.coefficients[0] + line.coefficients[1] * x
    return [slope, told, found, told - found]


def _figure(axes: dict[str, list[Rung]], kl_target: float, gain: float) -> Figure:
    """A row of panels for what is in √nats, and one for gold reward."""
    kinds = {
        "√KL, √nats": {
            "drift": "no penalty, equal steps",
            "drift_at_gain": f"at a proxy gain of {gain:g}",
        },
        "gold reward": {
            "gold_lost": "lost, no penalty",
            "leashed_gold": f"gained at {kl_target:g} nats",
        },
    }
    panels = [
        Panel(
            title=TITLES[axis],
            x="pairs" if axis == "data" else "parameters",
            y=y,
            x_log=True,
            series=tuple(
                _series(name, rungs, field, 2 * place + colour)
                for colour, (field, name) in enumerate(shown.items())
            ),
        )
        for axis, rungs in axes.items()
        for place, (y, shown) in enumerate(kinds.items())
    ]
    return Figure(
        caption="Left: drift without a penalty at equal steps, and at equal proxy gain. Right: gold reward lost after "
        f"its peak without a penalty, and gained on a leash of {kl_target:g} nats. Over the size of the policy, of the "
        "reward model, and of its data. Bands are 95 % intervals over seeds, where there are three.",
        panels=tuple(panels),
    )


def _series(name: str, rungs: Sequence[Rung], field: str, colour: int) -> Series:
    known = [(rung.level.size, estimate(rung.of(field))) for rung in rungs if rung.level.size]
    sizes, found = [size for size, _ in known], [each for _, each in known]
    return series_of(name, sizes, found, mark="both", colour=colour, least=SEEN)
