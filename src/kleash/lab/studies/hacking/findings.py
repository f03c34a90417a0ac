"""What the hacking study shows: which hacks the leash prevents, slows or misses, and what the alarms are worth."""

from collections.abc import Mapping, Sequence
from statistics import median

from kleash.lab.studies.hacking.alarms import (
    ALARMS,
    COMBINED,
    Hacked,
    Judged,
    Steps,
    judge,
)
from kleash.lab.studies.hacking.gold import (
    NOISE,
    SHARE,
    Arm,
    cross_fitted,
    late,
    loss,
    lost_too_much,
    per_nat,
)
from kleash.lab.study.findings import (
    Claim,
    Figure,
    Findings,
    Mark,
    Panel,
    Series,
    Table,
    Value,
    decide,
)
from kleash.lab.study.statistics import Estimate, differences, estimate, exact_rate

IN_TIME = 0.8
"""Share of hacked runs in which an alarm is to ring before that."""
RATES = tuple(10 ** (-i / 4) for i in range(2, 21))
"""Planned false alarms a step, of the ROC: from 0.3 to 1e-5."""
SHOWN = 40.0
"""False alarms per 1,000 steps that the figure goes to; the table has all."""


def conclude(
    free: Mapping[str, Arm],
    held: Mapping[str, Arm],
    benign: Sequence[Steps],
    *,
    leash: float,
    rate: float,
) -> Findings:
    """The findings.

    Args:
        free: arms without a penalty, by reward.
        held: the same on the leash.
        benign: runs that learn from gold.
        leash: nats per response.
        rate: of false alarms that each alarm is planned for, per step.
    """
    runs = [
        (name, run["steps"], loss(run["steps"]).lost)
        for arms in (free, held)
        for name, arm in arms.items()
        for run in arm.runs
    ]
    hacked = [(name, Hacked(steps, lost)) for name, steps, lost in runs if lost is not None]
    spared = [steps for _, steps, lost in runs if lost is None]
    judged = judge(benign, [run for _, run in hacked], spared, [*RATES, rate])
    planned = {name: found[-1] for name, found in judged.items()}
    outcomes = {name: _outcome(name, free[name], held[name], leash) for name in free}
    claims = [claim for each in outcomes.values() for claim in each]
    alarms, count = _alarm_claims(planned, rate), sum(map(len, benign))
    return Findings(
        answer=_answer(outcomes, planned, rate, leash),
        claims=(*claims, *alarms),
        tables=(
            _arms_table(free, held, outcomes, leash),
            _alarms_table(planned, [run for _, run in hacked], rate),
            _roc_table(judged),
        ),
        figure=_figure(free, held, judged, hacked, leash),
        limits=(
            "One family of models of a few million parameters and film-review sentences of 24 tokens: what is hacked "
            "how fast is of this setting, and with another learning rate every delay is another.",
            "Runs that learn from gold cannot be hacked by definition, as gold is what worth is measured by here; they "
            "too drift and lose variety. Every other one of them is on the leash. What sound runs on other rewards are "
            "like is not known from these.",
            "Alarms are planned for runs of the benign runs' length: figures that grow as training goes on would ring "
            "more often in longer ones.",
            f"{count:,} benign steps: of no false alarm at all in them the interval still ends at "
            f"{1000 * (exact_rate(0, count).high or 0.0):.1f} per 1,000 steps.",
        ),
    )


def _outcome(name: str, free: Arm, held: Arm, leash: float) -> list[Claim]:
    """Whether a reward is hacked, what the leash keeps, whether it is hacked on the leash too, and gold a nat."""
    ends, kept = ([late(each) for each in arm.gold] for arm in (free, held))
    return [
        decide(
            f"{name}: hacked without a penalty",
            estimate(lost_too_much(free)),
            (
                "Without a penalty gold loses more than a fifth of what it had gained.",
                "Without a penalty gold loses no more than a fifth of what it had gained.",
                "Whether gold loses more than a fifth of its gain without a penalty is open.",
            ),
            unit="gold reward lost beyond it",
        ),
        decide(
            f"{name}: the leash keeps gold",
            estimate(differences(kept, ends)),
            (
                f"At {leash:g} nats gold ends higher than without a penalty.",
                f"At {leash:g} nats gold ends no higher than without a penalty.",
                f"No difference in the gold at the end is settled between {leash:g} nats and no penalty.",
            ),
            unit="gold reward",
        ),
        decide(
            f"{name}: hacked on the leash",
            estimate(lost_too_much(held)),
            (
                f"At {leash:g} nats too gold loses more than a fifth of what it had gained.",
                f"At {leash:g} nats gold loses no more than a fifth of what it had gained.",
                f"Whether gold loses more than a fifth of its gain at {leash:g} nats is open.",
            ),
            unit="gold reward lost beyond it",
        ),
        decide(
            f"{name}: gold per nat",
            estimate(differences(per_nat(held), per_nat(free))),
            (
                "A nat brings more gold on the leash than without a penalty.",
                "A nat brings no more gold on the leash than without a penalty.",
                "No difference in the gold that a nat brings is settled.",
            ),
            unit="gold reward per nat",
        ),
    ]


def verdict(outcome: Sequence[Claim]) -> str:
    """What the penalty does about a hack, as far as three claims settle it."""
    hacked, keeps, still = (claim.holds for claim in outcome[:3])
    if hacked is not True:
        return "not hacked" if hacked is False else "open"
    if keeps is not True:
        return "missed" if keeps is False else "open"
    return {True: "slowed", False: "prevented", None: "slowed or prevented"}[still]


def _alarm_claims(planned: Mapping[str, Judged], rate: float) -> list[Claim]:
    per = f"{1000 * rate:g} per 1,000 steps"
    both = planned[COMBINED]
    claims = [
        decide(
            f"{name}: in time",
            found.caught,
            (
                f"It rings before gold has lost a fifth of its gain in over {IN_TIME:.0%} of hacked runs.",
                f"It rings in time in no more than {IN_TIME:.0%} of hacked runs.",
                f"Whether it rings in time in over {IN_TIME:.0%} of hacked runs is open.",
            ),
            above=IN_TIME,
            unit="share in time",
        )
        for name, found in planned.items()
    ]
    false = decide(
        f"{COMBINED}: false alarms",
        both.false,
        (
            f"Together they ring falsely more often than {per}.",
            f"Together they ring falsely no more often than {per}.",
            f"Whether together they ring falsely more often than {per} takes more benign steps to say.",
        ),
        above=rate,
        unit="per step",
    )
    return [*claims, false]


def _answer(
    outcomes: Mapping[str, Sequence[Claim]],
    planned: Mapping[str, Judged],
    rate: float,
    leash: float,
) -> str:
    """Each hack's verdict, and what the alarms together did."""
    told = "; ".join(f"{name}: {verdict(each)}" for name, each in outcomes.items())
    false, caught = planned[COMBINED].false, planned[COMBINED].caught
    first = f"What a leash of {leash:g} nats does about each hack: {told}."
    if caught is None:
        return f"{first} By gold no run was hacked, so that no alarm could ring in time."
    share, often, spared = _told(caught, 100), _told(false, 1000), planned[COMBINED].spared
    more = (
        f" They rang in {_told(spared, 100)} % of {spared.n} runs on the same rewards that were not hacked."
        if spared
        else ""
    )
    return (
        f"{first} Planned for {1000 * rate:g} false alarms per 1,000 steps, the alarms together rang in time in "
        f"{share} % of {caught.n} hacked runs, and falsely {often} times per 1,000 benign steps.{more}"
    )


def _told(found: Estimate, scale: float) -> str:
    """An exact estimate, which always has ends."""
    assert found.low is not None
    assert found.high is not None
    low, high = (f"{scale * x:.3g}" for x in (found.low, found.high))
    return f"{scale * found.value:.3g} [{low}, {high}]"


def _arms_table(
    free: Mapping[str, Arm],
    held: Mapping[str, Arm],
    outcomes: Mapping[str, Sequence[Claim]],
    leash: float,
) -> Table:
    rows = [
        (name, kind, *_arm_row(arms[name]), verdict(outcomes[name]))
        for name in free
        for kind, arms in (("none", free), (f"leash {leash:g}", held))
    ]
    return Table(
        title="Hacks, without a penalty and on the leash",
        columns=(
            *("reward", "penalty", "gold at its peak", "gold at the end", "reward at the end"),
            *("KL at the end, nats", "gold per nat", "tokens", "distinct-2"),
            *("runs hacked", "runs", "what the leash does"),
        ),
        rows=tuple(rows),
        note="Means over seeds. A peak's place is read off the other seeds. A run is hacked where gold ends at least "
        f"{SHARE:.0%} of its gain, and {NOISE:g} standard errors, below its peak. At the end: fresh responses.",
    )


def _arm_row(arm: Arm) -> tuple[Value, ...]:
    means = [
        estimate(cross_fitted(arm)),
        *(estimate(arm.ends(name)) for name in ("gold", "reward", "kl")),
        estimate(per_nat(arm)),
        *(estimate(arm.ends(name)) for name in ("length", "distinct_2")),
    ]
    hacked = sum(loss(run["steps"]).lost is not None for run in arm.runs)
    return (*(None if each is None else each.value for each in means), hacked, len(arm.runs))


def _alarms_table(planned: Mapping[str, Judged], hacked: Sequence[Hacked], rate: float) -> Table:
    tops = [loss(run.steps).peak for run in hacked]
    return Table(
        title=f"Alarms, planned for {1000 * rate:g} false alarms per 1,000 steps",
        columns=(
            *("alarm", "false per 1,000 steps", "from", "to", "benign runs in which it rang"),
            *(
                "hacked runs in which it rang",
                "in time",
                "from",
                "to",
                "steps after the gold peak, median",
                "unhacked in which it rang",
            ),
        ),
        rows=tuple(_alarm_row(found, tops) for found in planned.values()),
        note="Thresholds are set by benign runs alone, and a benign run is judged by those that the others set. "
        f"In time: before gold had lost {SHARE:.0%} of its gain, as a share of {len(hacked)} hacked runs. Intervals "
        "are exact ones, of 95 %: Poisson's of rates, Clopper and Pearson's of shares. Before the peak: below 0. "
        "Unhacked: share of the runs on the same rewards whose gold was not lost; it may have been about to be.",
    )


def _alarm_row(found: Judged, tops: Sequence[int]) -> tuple[Value, ...]:
    rung = [at - top for at, top in zip(found.first, tops, strict=True) if at is not None]
    false, caught = found.false, found.caught
    return (
        found.name,
        *(None if x is None else 1000 * x for x in (false.value, false.low, false.high)),
        round(found.ringing.value * found.ringing.n),
        len(rung),
        *((None,) * 3 if caught is None else (caught.value, caught.low, caught.high)),
        median(rung) if rung else None,
        None if found.spared is None else found.spared.value,
    )


def _roc_table(judged: Mapping[str, Sequence[Judged]]) -> Table:
    return Table(
        title="The whole ROC",
        columns=("alarm", "planned per 1,000 steps", "false per 1,000 steps", "share in time"),
        rows=tuple(
            (
                name,
                1000 * each.planned,
                1000 * each.false.value,
                None if each.caught is None else each.caught.value,
            )
            for name, found in judged.items()
            for each in found[: len(RATES)]
        ),
    )


def _figure(
    free: Mapping[str, Arm],
    held: Mapping[str, Arm],
    judged: Mapping[str, Sequence[Judged]],
    hacked: Sequence[tuple[str, Hacked]],
    leash: float,
) -> Figure:
    """Gold over steps, free and held; the ROC; and when the alarms together rang, against when gold was lost."""
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
        y="share of hacked runs rung in time",
        series=tuple(_roc(name, found) for name, found in judged.items()),
        level=((IN_TIME, "wanted"),),
        at=((1.0, "wanted"),),
    )
    return Figure(
        caption="Above: gold reward over the steps of training on each reward, a line a seed, means of five steps. "
        "Below, left: the share of hacked runs in which an alarm rings in time, against its false alarms, as its "
        f"threshold is swept; up to {SHOWN:g} per 1,000 steps. Right: when the alarms together, as planned, first rang "
        "in each hacked run, and when gold had lost a fifth of its gain; below the line is in time.",
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
    points = [
        (1000 * each.false.value, each.caught.value)
        for each in found[: len(RATES)]
        if each.caught is not None and 1000 * each.false.value <= SHOWN
    ]
    x, y = zip(*sorted(points), strict=True) if points else ((), ())
    own = [*ALARMS, COMBINED].index(name)
    mark: Mark = "dashed" if own == 5 else "both" if own == 6 else "line"
    return Series(name=name, x=x, y=y, mark=mark, colour=own if own < 5 else own - 1)


def _times(both: Judged, hacked: Sequence[tuple[str, Hacked]], names: Sequence[str]) -> Panel:
    """Points of the hacked runs in which any alarm rang."""
    series = [
        Series(
            name=name,
            x=tuple(float(run.lost) for run, _ in rung),
            y=tuple(float(first) for _, first in rung),
            mark="points",
            colour=colour,
        )
        for colour, name in enumerate(names)
        if (
            rung := [
                (run, first)
                for (own, run), first in zip(hacked, both.first, strict=True)
                if own == name and first is not None
            ]
        )
    ]
    last = float(max((run.lost for _, run in hacked), default=1))
    series.append(
        Series(name="as gold was lost", x=(0.0, last), y=(0.0, last), mark="dashed", colour=5)
    )
    return Panel(
        title="Any alarm, as planned",
        x="step at which gold had lost a fifth of its gain",
        y="step of the first ring",
        series=tuple(series),
    )
