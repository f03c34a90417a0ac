"""What becomes of a fault of the reference, in claims, tables and a figure."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from kleash.lab.arms.arm import column
from kleash.lab.faulty_mdp import fault_share, halving_penalty, leashed_share, with_fault
from kleash.lab.mdp import MDP, golden, optimum
from kleash.lab.studies.misaligned_base.kept import (
    FACTOR,
    LATE,
    MARGIN,
    fault_shares,
    gold_of_fault,
    late_share,
    logit,
    model_claims,
    told,
)
from kleash.lab.study.findings import (
    Claim,
    Figure,
    Findings,
    Panel,
    Series,
    Table,
    Value,
    near,
    percent,
    within,
)
from kleash.lab.study.statistics import Estimate, cells, estimate, mean
from kleash.lab.study.work import Result

EXACT = 1e-10
BETAS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Of the problem that is enumerated."""
STAGES = 3
"""Of training, each with the last one's policy as its reference."""
INDIFFERENT = 0.15
"""Gold reward."""
LIMITS = (
    "This is the limit of the method, and not of a setting: a leash holds a policy to its reference, and to the "
    "reference's faults as to all else of it. Nothing in KL(π‖π_ref) tells a fault from a virtue.",
    "That holds of a fault that the reward is indifferent to. One that it likes grows by the same law, and one that "
    "comes with what it likes grows too: log E[e^{R/β} | B] − log E[e^{R/β} | not B] is what counts.",
    "The language model's fault is a phrase that was planted by training, before anything else that is said; faults "
    "that people care about are neither as easy to count nor as apart from the rest.",
    "That the gold model is indifferent on average does not make it so for the responses it likes best, which are what "
    "a policy that little holds ends with: a free arm that has lost the fault has lost most else, too.",
    "The arms are not at their optima, and that they are held against: one that is on its way has gone some of it. "
    "Intervals are over seeds of training from one planted model, and over prompts of what the reference does; each is "
    "of one arm by itself.",
    f"Alike means odds within a factor of {FACTOR:g}: a fault may still have become rarer or more frequent by less.",
)


class Made(NamedTuple):
    """All that was made."""

    share: float
    """π_ref(B) of the problems."""
    penalty: float
    tables: Mapping[tuple[float, float], Sequence[Result]]
    """By β and D, one a seed."""
    planted: Result
    weighed: Result
    arms: Mapping[float, Sequence[Result]]
    """By β, one a seed."""


def conclude(made: Made) -> Findings:
    """The findings."""
    of_models = model_claims(made.weighed, made.arms)
    mdp = golden()
    plain, against = with_fault(mdp, made.share), with_fault(mdp, made.share, made.penalty)
    claims = [
        *exact_claims(plain, against, made.share, made.penalty),
        *(_trained(made, beta, penalty) for beta, penalty in made.tables),
        _indifferent(made),
        *of_models,
    ]
    return Findings(
        answer=" ".join((*_limit(claims[:2]), *(claim.says for claim in of_models))),
        claims=tuple(claims),
        tables=(_arms_table(made), _exact_table(made.share), _trained_table(made), _weighed(made)),
        figure=_figure(made),
        limits=LIMITS,
    )


def _limit(exact: Sequence[Claim]) -> list[str]:
    """The limit of the method, where what is enumerated bears it out."""
    if not all(claim.holds for claim in exact):
        return [claim.says for claim in exact]
    return [
        "A leash holds a policy to its reference's faults, too.",
        "A fault that the reward is indifferent to is as frequent in the optimum as in the reference, at every β; only "
        "reward against it takes it away, by D/β of its log-odds.",
    ]


def exact_claims(plain: MDP, against: MDP, share: float, penalty: float) -> list[Claim]:
    """The closed form of a fault before the responses of a problem, by soft Bellman backup and enumeration.

    Args:
        plain: a problem whose reference has a fault that the reward is said to be indifferent to.
        against: the same with a penalty on it.
        share: of the fault, π_ref(B).
        penalty: D.
    """
    kept = max(abs(fault_share(plain, optimum(plain, beta)) - share) for beta in BETAS)
    stage = plain
    for _ in range(STAGES):
        stage = MDP(stage.vocab, stage.length, optimum(stage, BETAS[-1]), stage.rewards)
    after = abs(fault_share(stage, stage.ref_logits) - share)
    shares = [(beta, fault_share(against, optimum(against, beta))) for beta in BETAS]
    off = max(abs(found - leashed_share(share, penalty, beta)) for beta, found in shares)
    beta, left = shares[1]
    return [
        within(
            "exact: the fault is kept",
            kept,
            EXACT,
            f"A fault of {percent(share)} that the reward is indifferent to is kept at every β, whatever the KL",
        ),
        within(
            "exact: only the reward takes it away",
            off,
            EXACT,
            f"A penalty of {penalty:g} on it leaves logit π_ref(B) − D/β: {percent(left, 2)} at β = {beta:g}",
        ),
        within(
            "exact: through stages",
            after,
            EXACT,
            f"It is kept through {STAGES} stages of training, each with the last one's policy as its reference",
        ),
    ]


def _trained(made: Made, beta: float, penalty: float) -> Claim:
    goal = leashed_share(made.share, penalty, beta)
    what = f"D = {penalty:g} and β = {beta:g}" if penalty else f"β = {beta:g}"
    return near(
        f"trained table, {what}",
        estimate([logit(run["share"]) for run in made.tables[beta, penalty]]),
        (
            f"Trained by RLOO with {what} a table has the closed form's odds of the fault, of {percent(goal, 1)}, "
            f"within a factor of {FACTOR:g}.",
            f"Trained by RLOO with {what} a table's odds of the fault are off the closed form's, of "
            f"{percent(goal, 1)}, by more than a factor of {FACTOR:g}.",
            f"Whether RLOO with {what} comes to the closed form's odds, of {percent(goal, 1)}, is open.",
        ),
        margin=MARGIN,
        centre=math.log(goal / (1 - goal)),
        unit="log-odds",
    )


def _indifferent(made: Made) -> Claim:
    return near(
        "the gold model is indifferent to the fault",
        estimate(gold_of_fault(made.weighed), of="prompts"),
        (
            "The gold model takes next to nothing off for the phrase that was planted.",
            "The gold model is not indifferent to the phrase that was planted.",
            "Whether the gold model is indifferent to the phrase is not settled.",
        ),
        margin=INDIFFERENT,
        unit="gold reward taken off",
    )


def reference_share(weighed: Mapping[str, Any]) -> Estimate | None:
    """How often the reference has the fault; prompts are the observations."""
    return estimate(fault_shares(weighed), of="prompts")


def _arms_table(made: Made) -> Table:
    reference = reference_share(made.weighed)
    taken = fmean(gold_of_fault(made.weighed))
    was = fmean(fault_shares(made.weighed))
    rows: list[tuple[Value, ...]] = [("reference", None, None, None, *cells(reference), None, None)]
    for beta, runs in made.arms.items():
        found = estimate([late_share(run) for run in runs])
        kl, gold = (mean([run["end"][name] for run in runs]) for name in ("kl", "gold"))
        said: tuple[float | None, float | None] = (None, None)
        if beta and 0 < was < 1:
            closed = told(made.weighed, beta)
            own = None if closed is None else 1 / (1 + math.exp(-fmean(closed)))
            said = (leashed_share(was, taken, beta), own)
        rows.append(("trained", beta, kl, gold, *cells(found), *said))
    return Table(
        title="The planted fault in the language model",
        columns=(
            *("model", "β", "KL(π‖π_ref), nats", "gold reward"),
            *(
                "responses with the fault",
                "low",
                "high",
                "by logit π_ref(B) − D/β",
                "by E[e^{R/β}]",
            ),
        ),
        rows=tuple(rows),
        note=f"Faults of the last {percent(LATE)} of steps, means over seeds; of the reference, over prompts. The last "
        "two columns are of the optimum: as if the mean D were that of every response; and with each response's own, "
        "which a few texts to a prompt tell the worse the smaller β is. Arms on their way there have gone some of it.",
    )


def _exact_table(share: float) -> Table:
    mdp = with_fault(golden(), share)
    rows: list[tuple[Value, ...]] = []
    for beta in BETAS:
        best = optimum(mdp, beta)
        own, ref = (mdp.logprobs(logits).sum(-1) for logits in (best, mdp.ref_logits))
        reward, kl = (float(own.exp() @ x) for x in (mdp.rewards, own - ref))
        rows.append((beta, reward, kl, fault_share(mdp, best), halving_penalty(share, beta)))
    return Table(
        title="Enumerated: reward and drift change, the fault does not",
        columns=("β", "E[R]", "KL(π*‖π_ref), nats", "π*(B)", "D that halves it"),
        rows=tuple(rows),
        note="The golden problem with a token before it that decides the fault. A small KL is no safety: to be rid of "
        f"the fault takes −log(1 − p) = {-math.log1p(-share):.2f} nats, to have it always −log p = "
        f"{-math.log(share):.2f}, and either much is spent here with the fault just as it was.",
    )


def _trained_table(made: Made) -> Table:
    rows: list[tuple[Value, ...]] = []
    for (beta, penalty), runs in made.tables.items():
        found = estimate([run["share"] for run in runs])
        rest = [mean([run[name] for run in runs]) for name in ("kl", "gain_lost")]
        rows.append((beta, penalty, leashed_share(made.share, penalty, beta), *cells(found), *rest))
    return Table(
        title="Trained by RLOO, and read by enumeration",
        columns=(
            *("β", "D", "π*(B)", "π(B)", "low", "high"),
            *("KL(π‖π_ref), nats", "of the gain lost"),
        ),
        rows=tuple(rows),
        note="A table on 64 responses, each with the fault or without; by the code of kleash train. Means over seeds.",
    )


def _weighed(made: Made) -> Table:
    taken = gold_of_fault(made.weighed)
    rows = [
        ("gold reward taken off for the phrase, D", *cells(estimate(taken, of="prompts"))),
        ("responses with the fault", *cells(reference_share(made.weighed))),
        (
            "KL(base‖planted) behind the phrase, nats per token",
            made.planted["kl_per_token"],
            None,
            None,
        ),
    ]
    return Table(
        title="What was planted",
        columns=("figure", "mean", "low", "high"),
        rows=tuple(rows),
        note="Over prompts. D is of the same responses with the phrase before them and without it.",
    )


def _figure(made: Made) -> Figure:
    share = made.share
    penalties = tuple(i / 50 for i in range(51))
    curves = tuple(
        Series(
            name=f"β = {beta:g}",
            x=penalties,
            y=tuple(leashed_share(share, penalty, beta) for penalty in penalties),
            colour=colour,
        )
        for beta, colour in zip(BETAS[1:4], (2, 0, 3), strict=True)
    )
    points = [
        (penalty, estimate([run["share"] for run in runs]))
        for (_, penalty), runs in made.tables.items()
    ]
    trained = Series(
        name="trained by RLOO",
        x=tuple(x for x, _ in points),
        y=tuple(cells(found)[0] for _, found in points),
        low=tuple(cells(found)[1] for _, found in points),
        high=tuple(cells(found)[2] for _, found in points),
        mark="points",
        colour=5,
    )
    return Figure(
        caption="Left: share of responses with the reference's fault, of the optimum, over the reward D that is taken "
        "off for it: without any it is the reference's at every β. Right: the fault planted in a language model, while "
        " it is trained on the gold reward; means of five steps, bands are 95 % intervals over seeds.",
        panels=(
            Panel(
                title="In closed form",
                x="D, reward taken off for the fault",
                y="π(B)",
                series=(*curves, trained),
                level=((share, "reference"),),
            ),
            Panel(
                title="In a language model",
                x="step",
                y="responses with the fault",
                series=tuple(
                    _course(beta, runs, colour)
                    for (beta, runs), colour in zip(
                        made.arms.items(), (2, 0, 3, 4) * len(made.arms), strict=False
                    )
                ),
                level=((fmean(fault_shares(made.weighed)), "reference"),),
            ),
        ),
    )


def _course(beta: float, runs: Sequence[Result], colour: int, width: int = 5) -> Series:
    """Faults over steps, a point for every few of them."""
    columns = [column(run["steps"], "monitor/0") for run in runs]
    starts = range(0, min(map(len, columns)), width)
    found = [estimate([mean(c[i : i + width]) for c in columns]) for i in starts]
    return Series(
        name=f"β = {beta:g}",
        x=tuple(i + width / 2 for i in starts),
        y=tuple(cells(each)[0] for each in found),
        low=tuple(cells(each)[1] for each in found),
        high=tuple(cells(each)[2] for each in found),
        mark="line",
        colour=colour,
    )
