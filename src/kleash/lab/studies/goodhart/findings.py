"""What light and heavy tails make of a leash, in claims, tables and a figure."""

import math
from collections.abc import Sequence
from statistics import fmean

from kleash.lab.studies.goodhart.tables import (
    ALARMS,
    NAMES,
    TOLD,
    Made,
    alarm_of,
    alarm_table,
    choice_table,
    figure,
    over_pools,
    tilt_table,
    trained_table,
)
from kleash.lab.study.findings import Claim, Findings, decide, near, percent, within
from kleash.lab.study.statistics import Estimate, differences, estimate
from kleash.lab.tails import Law, gaussian_best_of_n, gaussian_gain, pareto_gain

TOLERANCE, CHOICE_TOLERANCE = 0.02, 0.05
FINITE = 4.0
"""Nats up to which a pool of 2^18 shows the closed form: beyond, it has too few outcomes."""
NOTHING = 0.1
"""E[V] that is as good as none, in standard deviations of V."""
RESTORED = 10.0
TAIL = 1e8
"""t of the Pareto policy."""
CLOSE = 0.05
"""Gold reward: how near to its optimum's a trained policy's is to be."""
LIMITS = (
    "The errors are independent of the gold reward. One that goes with what is good or bad, as a learnt reward model's "
    "does, may be better or worse than any of them.",
    "Where no tilt exists, what a pool shows is the pool: E[V] under a heavy tail is that of its largest error. So "
    "sizes are compared; χ² was asked of pools of one size alone.",
    "Kwa et al. found the rewards of the models that they measured light-tailed. Whether yours are is what the alarms "
    "ask; of a tail that begins beyond the scores they see they say nothing.",
    "The trained problem has 64 responses, and the largest error of its proxy happens to be that of a bad one: it "
    "shows that training does what the optimum says, and not how often that is bad.",
)


def conclude(made: Made) -> Findings:
    """The findings."""
    tails = [_gaussian(made), _shrinks(made), _none(made, "kl"), *_restores(made)]
    chi = [_helps(made, error) for error in ("t5", "t2")]
    chi += [_none(made, "chi_squared"), _against_clipping(made)]
    claims = [*tails, *chi, _pareto(), *_best_of_n(made), *_alarms(made), *_training(made)]
    said = (claims[0], claims[1], tails[-1], *chi[1:3])
    return Findings(
        answer=" ".join(claim.says for claim in said),
        claims=tuple(claims),
        tables=(tilt_table(made), choice_table(made), alarm_table(made), trained_table(made)),
        figure=figure(made),
        limits=LIMITS,
    )


def weakest(found: Sequence[Estimate | None]) -> Estimate | None:
    """The one whose interval begins lowest: where it is above something, all of them are."""
    if not found or any(each is None or each.low is None for each in found):
        return None
    return min((each for each in found if each is not None), key=lambda each: each.low or 0.0)


def furthest(found: Sequence[Estimate | None]) -> Estimate | None:
    """The one whose interval goes furthest from 0."""
    known = [each for each in found if each is not None and each.low is not None]
    if not known or len(known) < len(found):
        return None
    return max(known, key=lambda each: max(abs(each.low or 0.0), abs(each.high or 0.0)))


def _gaussian(made: Made) -> Claim:
    """E[V] = √(2·KL/(1 + s²)) of normal errors."""
    errors = [
        abs(fmean(column) / gaussian_gain(kl, scale) - 1)
        for scale, result in made.gaussian.items()
        for kl, column in zip(made.gaussian_kls, zip(*result["kl"], strict=True), strict=True)
        if kl <= FINITE
    ]
    return within(
        "normal errors: the closed form",
        max(errors),
        TOLERANCE,
        "With normal errors every nat buys gold reward, √(2·KL/(1 + s²)) by the closed form; relatively",
    )


def _shrinks(made: Made) -> Claim:
    """Whether E[V] under t₂ falls from the smallest pools to the largest."""
    first, last = made.sizes[0], made.sizes[-1]
    falls = [
        over_pools(
            differences(made.values("t2", first, "kl", kl), made.values("t2", last, "kl", kl))
        )
        for kl in made.kls
    ]
    return decide(
        "t₂ errors: less, the larger the pool",
        weakest(falls),
        (
            "With t₂ errors less is gained at every KL the larger the pool: a leash at none of these KLs protects.",
            "With t₂ errors the gain does not shrink at every KL as pools grow.",
            "Whether the gain under t₂ errors shrinks with the pool at every KL is not settled.",
        ),
        unit="gold reward",
    )


def _none(made: Made, law: Law) -> Claim:
    """Whether Cauchy errors leave anything."""
    size = made.sizes[-1] if law == "kl" else made.chi_squared_size
    found = [over_pools(made.values("cauchy", size, law, kl)) for kl in made.kls]
    return near(
        f"Cauchy errors: nothing, {TOLD[law]}",
        furthest(found),
        (
            f"With Cauchy errors nothing is gained at any KL under {TOLD[law]}.",
            f"With Cauchy errors the gold reward changes under {TOLD[law]}.",
            f"Whether anything is gained with Cauchy errors under {TOLD[law]} is not settled.",
        ),
        margin=NOTHING,
        unit="gold reward",
    )


def _restores(made: Made) -> list[Claim]:
    """Whether clipping gives ten times as much at one nat."""
    claims: list[Claim] = []
    for size in made.sizes[1:]:
        clipped, plain = (made.values("t2", size, law, 1.0) for law in ("clipped", "kl"))
        more = [
            None if a is None or b is None else a - RESTORED * b
            for a, b in zip(clipped, plain, strict=True)
        ]
        claims.append(
            decide(
                f"t₂ errors: clipping restores ten times, 2^{size}",
                over_pools(more),
                (
                    f"Clipping the proxy to ±{made.clip:g} restores more than ten times as much at 1 nat.",
                    f"Clipping the proxy to ±{made.clip:g} restores less than ten times as much at 1 nat.",
                    f"Clipping to ±{made.clip:g} may or may not restore ten times as much at 1 nat.",
                ),
                unit="gold reward",
            )
        )
    return claims


def _helps(made: Made, error: str) -> Claim:
    size = made.chi_squared_size
    both, plain = (made.values(error, size, law, 1.0) for law in ("chi_squared", "kl"))
    name = NAMES[error]
    return decide(
        f"{name} errors: χ² helps",
        over_pools(differences(both, plain)),
        (
            f"With {name} errors χ² beside the KL gains more at 1 nat than the KL alone.",
            f"With {name} errors χ² beside the KL gains no more at 1 nat than the KL alone.",
            f"Whether χ² helps at 1 nat under {name} errors is not settled.",
        ),
        unit="gold reward",
    )


def _against_clipping(made: Made) -> Claim:
    size = made.chi_squared_size
    clipped, both = (made.values("t2", size, law, 1.0) for law in ("clipped", "chi_squared"))
    return decide(
        "t₂ errors: clipping over χ²",
        over_pools(differences(clipped, both)),
        (
            "Under t₂ errors clipping gains more at 1 nat than χ² does.",
            "Under t₂ errors clipping gains no more at 1 nat than χ² does.",
            "Which of clipping and χ² gains more at 1 nat under t₂ errors is not settled.",
        ),
        unit="gold reward",
    )


def _pareto() -> Claim:
    """Fact: mass t^−½ on {X > t} gains 2√t for a KL of t^−½ (1.5 log t − 1), nearly."""
    found = pareto_gain(TAIL)
    kl = TAIL**-0.5 * (1.5 * math.log(TAIL) - 1)
    error = max(abs(found.gain / (2 * math.sqrt(TAIL)) - 1), abs(found.kl / kl - 1))
    return within(
        "Pareto errors: any proxy reward for no KL",
        error,
        0.01,
        f"With Pareto errors (P(X > x) = 1/x²) a policy {found.kl:.4f} nats away gains {found.gain:,.0f} of proxy "
        "reward and no gold: 2√t for t^−½ (1.5 log t − 1) nats by the closed form; relatively",
    )


def _best_of_n(made: Made) -> list[Claim]:
    columns = {
        error: list(zip(*result["gold"], strict=True)) for error, result in made.choices.items()
    }
    off = [
        abs(fmean(column) / gaussian_best_of_n(n, 1.0) - 1)
        for n, column in zip(made.counts, columns["normal"], strict=True)
    ]
    place = list(made.counts).index(16)
    peak, end, start = (columns["t3"][i] for i in (place, -1, 0))
    turns = [over_pools(differences(peak, other)) for other in (start, end)]
    return [
        within(
            "best-of-n, normal errors",
            max(off),
            CHOICE_TOLERANCE,
            "Best-of-n under normal errors gains ever more, E[max of n]/√2 by the closed form; relatively",
        ),
        decide(
            "best-of-n, t₃ errors: a peak",
            weakest(turns),
            (
                f"Under t₃ errors best of 16 is worth more than best of {made.counts[0]} and of {made.counts[-1]:,}.",
                "Under t₃ errors best of 16 is no peak.",
                "Whether best of 16 is a peak under t₃ errors is not settled.",
            ),
            unit="gold reward",
        ),
    ]


def _alarms(made: Made) -> list[Claim]:
    most = max(scores for _, scores in made.watched)
    claims: list[Claim] = []
    for statistic, name in ALARMS.items():
        found = alarm_of(made, statistic, most)
        worst = min((found.flagged[e] for e in ("t3", "t2", "cauchy")), key=lambda e: e.value)
        rate = found.flagged["normal"]
        false = f"of normal errors {percent(rate.value, 2)} [{percent(rate.low, 2)}, {percent(rate.high, 2)}]"
        claims.append(
            decide(
                f"alarm: {statistic.replace('_', ' ')}",
                worst,
                (
                    f"{name} flags nine of ten samples of {most:,} scores with t₃ errors and worse, and {false}.",
                    f"{name} misses at least one of ten samples with t₃ errors or worse; it flags {false}.",
                    f"Whether {name} flags nine of ten samples with t₃ errors and worse is open; it flags {false}.",
                ),
                above=0.9,
                unit="flagged",
            )
        )
    return claims


def _training(made: Made) -> list[Claim]:
    """Whether what is trained is worth what its optimum is, within a margin."""
    claims: list[Claim] = []
    for law, runs in made.trained.items():
        gold = made.optima[law].gold
        goal = f"within {CLOSE:g} of its optimum's gold reward of {gold:.2f}"
        claims.append(
            near(
                f"in training: {TOLD[law]}",
                estimate([run["gold"] for run in runs]),
                (
                    f"Trained under {TOLD[law]} a policy comes {goal}.",
                    f"Trained under {TOLD[law]} a policy does not come {goal}.",
                    f"Whether a policy trained under {TOLD[law]} comes {goal} is open.",
                ),
                margin=CLOSE,
                centre=gold,
                unit="gold reward",
            )
        )
    return claims
