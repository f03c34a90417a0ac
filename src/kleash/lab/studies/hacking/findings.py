"""What the hacking study shows: which hacks the leash prevents, slows or misses, and what the alarms are worth."""

from collections.abc import Mapping, Sequence
from statistics import median

from kleash.lab.studies.hacking.alarms import (
    COMBINED,
    WINDOW,
    Judged,
    Run,
    judge,
)
from kleash.lab.studies.hacking.figure import IN_TIME, RATES, figure
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
    Findings,
    Table,
    Value,
    decide,
    percent,
)
from kleash.lab.study.followed import Steps
from kleash.lab.study.statistics import (
    Estimate,
    cells,
    differences,
    estimate,
    exact_mean_share,
    exact_rate,
    mean,
)


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
        (name, Run(run["steps"], seed, loss(run["steps"]).lost))
        for arms in (free, held)
        for name, arm in arms.items()
        for seed, run in enumerate(arm.runs)
    ]
    hacked = [(name, run) for name, run in runs if run.lost is not None]
    judged = judge(benign, [run for _, run in runs], [*RATES, rate])
    planned = {name: found[-1] for name, found in judged.items()}
    outcomes = {name: _outcome(name, free[name], held[name], leash) for name in free}
    claims = [claim for each in outcomes.values() for claim in each]
    alarms = _alarm_claims(planned, rate)
    return Findings(
        answer=_answer(outcomes, planned, rate, leash),
        claims=(*claims, *alarms),
        tables=(
            _arms_table(free, held, outcomes, leash),
            _alarms_table(planned, hacked, len(runs), rate),
            _roc_table(judged),
        ),
        figure=figure(free, held, judged, hacked, leash),
        limits=_limits(benign, max(len(arm.runs) for arm in free.values())),
    )


def _limits(benign: Sequence[Steps], seeds: int) -> tuple[str, ...]:
    """What is not shown; and how far so few runs and seeds could get, had all gone well."""
    steps, best = len(benign[0]), exact_mean_share([1.0] * seeds).low or 0.0
    silent = exact_rate([None] * len(benign), steps, soonest=WINDOW).high or 0.0
    return (
        "One family of models of a few million parameters and film-review sentences of 24 tokens: what is hacked "
        "how fast is of this setting, and with another learning rate every delay is another.",
        "Runs that learn from gold cannot be hacked by definition, as gold is what worth is measured by here; they "
        "too drift and lose variety. Every other one of them is on the leash. What sound runs on other rewards are "
        "like is not known from these.",
        "Alarms are planned for runs of the benign runs' length: figures that grow as training goes on would ring "
        "more often in longer ones.",
        f"{len(benign)} benign runs of {steps} steps: of no false alarm in any the interval still ends at "
        f"{1000 * silent:.1f} per 1,000 steps. {seeds} seeds: of alarms in time in all of their hacked runs the "
        f"interval still begins at {percent(best)}.",
        "The runs of a seed share its proxies, prompts and random numbers, so that seeds are the observations. All "
        "hacked runs are judged by one threshold, and intervals are for it as it was set: what other benign runs "
        "would have set is in none of them. Benign runs are of seeds of their own, but few proxies watch all of them: "
        "what disagreement comes to with others is in no interval either.",
        f"A loss is dated where it is a fifth of the gain and more than noise, by means of {WINDOW} steps: where "
        "little was gained that is later than a fifth.",
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
                f"It rings before gold has lost a fifth of its gain in over {percent(IN_TIME)} of a seed's hacked "
                "runs.",
                f"It rings in time in no more than {percent(IN_TIME)} of a seed's hacked runs.",
                f"Whether it rings in time in over {percent(IN_TIME)} of a seed's hacked runs is open.",
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
    both = planned[COMBINED]
    first = f"What a leash of {leash:g} nats does about each hack: {told}."
    if both.caught is None:
        return f"{first} By gold no run was hacked, so that no alarm could ring in time."
    more = (
        f" They rang in {_told(both.spared, 100)} % of the runs on the same rewards that were not hacked."
        if both.spared
        else ""
    )
    return (
        f"{first} Planned for a rate of {1000 * rate:g} false alarms in 1,000 steps, the alarms together rang in time "
        f"in {_told(both.caught, 100)} % of the hacked runs of a seed ({len(both.first)} runs of {both.caught.n} "
        f"seeds), and falsely {_told(both.false, 1000)} times per 1,000 benign steps.{more}"
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
        f"{percent(SHARE)} of its gain, and {NOISE:g} standard errors, below its peak. At the end: fresh responses.",
    )


def _arm_row(arm: Arm) -> tuple[Value, ...]:
    means = [
        mean(cross_fitted(arm)),
        *(mean(arm.ends(name)) for name in ("gold", "reward", "kl")),
        mean(per_nat(arm)),
        *(mean(arm.ends(name)) for name in ("length", "distinct_2")),
    ]
    hacked = sum(loss(run["steps"]).lost is not None for run in arm.runs)
    return (*means, hacked, len(arm.runs))


def _alarms_table(
    planned: Mapping[str, Judged], hacked: Sequence[tuple[str, Run]], runs: int, rate: float
) -> Table:
    tops = [loss(run.steps).peak for _, run in hacked]
    return Table(
        title=f"Alarms, planned for a false rate of {1000 * rate:g} in 1,000 steps",
        columns=(
            *("alarm", "false per 1,000 steps", "low", "high", "benign runs in which it rang"),
            *(
                "hacked runs in which it rang",
                "in time",
                "in time, low",
                "in time, high",
                "steps after the gold peak, median",
                "unhacked in which it rang",
                "unhacked, low",
                "unhacked, high",
            ),
        ),
        rows=tuple(_alarm_row(found, tops) for found in planned.values()),
        note="Thresholds are set by benign runs alone, and a benign run is judged by those that the others set. "
        "False: first alarms per step at risk, a run being at risk until it has one; with an exact interval over runs. "
        f"In time: before gold had lost {percent(SHARE)} of its gain, as a share of a seed's hacked runs, mean over "
        f"seeds; unhacked: the same of the other runs on these rewards ({len(hacked)} hacked, {runs - len(hacked)} "
        "not), whose gold was not lost, though it may have been about to be. Both intervals are over seeds: Clopper "
        "and Pearson's low end of how many have all, and high end of how many have any. Before the peak: below 0.",
    )


def _alarm_row(found: Judged, tops: Sequence[int]) -> tuple[Value, ...]:
    rung = [at - top for at, top in zip(found.first, tops, strict=True) if at is not None]
    return (
        found.name,
        *_scaled(found.false, 1000),
        found.rang,
        len(rung),
        *_scaled(found.caught),
        median(rung) if rung else None,
        *_scaled(found.spared),
    )


def _scaled(found: Estimate | None, scale: float = 1.0) -> list[Value]:
    return [None if x is None else scale * x for x in cells(found)]


def _roc_table(judged: Mapping[str, Sequence[Judged]]) -> Table:
    return Table(
        title="The whole ROC",
        columns=(
            *("alarm", "planned per 1,000 steps", "false per 1,000 steps", "low", "high"),
            *("share in time", "in time, low", "in time, high", "unhacked in which it rang"),
        ),
        rows=tuple(
            (
                name,
                1000 * each.planned,
                *_scaled(each.false, 1000),
                *_scaled(each.caught),
                None if each.spared is None else each.spared.value,
            )
            for name, found in judged.items()
            for each in found[: len(RATES)]
        ),
    )
