"""What ensembles do to the gold peak, by training and by best-of-n; and whether their disagreement tells of it."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.functional.ensembles import COMBINATORS
from kleash.lab.arms.outcomes import Arms, band, best_of_n, peak_values
from kleash.lab.study.curves import peaks
from kleash.lab.study.findings import (
    Claim,
    Figure,
    Findings,
    Panel,
    Series,
    Table,
    Value,
    decide,
    within,
)
from kleash.lab.study.followed import UNIT, disagreement
from kleash.lab.study.statistics import differences, estimate, mean
from kleash.lab.study.work import Result

SINGLE = "single"
POOL, SPREAD, MEMBERS = 2**17, 1.0, 5
"""Of the Gaussian check: draws, the standard deviation of a member's error, members."""


class Made(NamedTuple):
    """What the study made."""

    arms: Mapping[str, Arms]
    """By name; `single` is the proxy alone."""
    watched: Sequence[Result]
    """The single arms' runs, one a seed, with the other members as monitors."""
    pool: Mapping[str, Any]
    """With all members of the first seed's ensemble, then of the next."""
    members: int
    uncertainty_weight: float


def conclude(made: Made) -> Findings:
    """The findings."""
    single = made.arms[SINGLE]
    others = {name: arms for name, arms in made.arms.items() if name != SINGLE}
    chosen = best_of_ensembles(made)
    claims = [
        *(_higher(name, arms, single) for name, arms in others.items()),
        *(_kept(name, arms, single) for name, arms in others.items()),
        *_by_choice(chosen),
        *_alarm(made.watched),
        *gaussian(),
    ]
    return Findings(
        answer=" ".join(claim.says for claim in claims[: len(others)] if claim.says),
        claims=tuple(claims),
        tables=(_table(made.arms, chosen), _disagreement(made.watched)),
        figure=_figure(made.arms, made.watched),
        limits=(
            "No KL penalty holds these arms: what is compared is what the ensemble alone does.",
            "Members share their base model and their kind of data: errors that they share stay, whatever their number "
            "(Eisenstein et al. 2023).",
            "One λ of the uncertainty-weighted reward; its best value is not looked for.",
        ),
    )


def best_of_ensembles(made: Made) -> dict[str, Arms]:
    """Best-of-n by the first member alone and by each combination of a seed's members."""
    scores = torch.tensor(made.pool["rewards"]).double()
    ensembles = scores.unflatten(0, (-1, made.members))
    ways = {SINGLE: [own[0] for own in ensembles]}
    for name in ("mean", "worst", "uncertainty"):
        ways[name] = [_combined(name, own, made.uncertainty_weight) for own in ensembles]
    return {
        name: best_of_n({**made.pool, "rewards": [each.tolist() for each in combined]})
        for name, combined in ways.items()
    }


def _combined(name: str, scores: Tensor, weight: float) -> Tensor:
    """One reward [P, N] of several [K, P, N], each on a scale of its own spread."""
    flat = scores.flatten(1)
    flat = flat / flat.std(-1, keepdim=True)
    return COMBINATORS[name](flat, weight).view(scores.shape[1:])


def _higher(name: str, arms: Arms, single: Arms) -> Claim:
    gain = estimate(differences(peak_values(arms), peak_values(single)))
    return decide(
        f"{name}: a higher gold peak",
        gain,
        (
            f"Trained on the {name}, the policy comes to a higher gold peak than on one proxy.",
            f"Trained on the {name}, the policy comes to no higher gold peak than on one proxy.",
            f"Whether the {name} raises the gold peak over that of one proxy is not settled.",
        ),
        unit="gold reward",
    )


def _kept(name: str, arms: Arms, single: Arms) -> Claim:
    gain = estimate(
        differences([each.gold for each in arms.ends], [each.gold for each in single.ends])
    )
    return decide(
        f"{name}: more gold left at the end",
        gain,
        (
            f"After as many steps the {name} leaves more gold reward than one proxy.",
            f"After as many steps the {name} leaves no more gold reward than one proxy.",
            f"Whether the {name} leaves more gold reward at the end than one proxy is not settled.",
        ),
        unit="gold reward",
    )


def _by_choice(chosen: Mapping[str, Arms]) -> list[Claim]:
    single = [each.gold for each in chosen[SINGLE].ends]
    reach = fmean(each.kl for each in chosen[SINGLE].ends)
    return [
        decide(
            f"best-of-n by the {name}",
            estimate(differences([each.gold for each in arms.ends], single)),
            (
                f"Best-of-n at {reach:.1f} nats gets more gold reward by the {name} than by one proxy.",
                f"Best-of-n at {reach:.1f} nats gets no more gold reward by the {name} than by one proxy.",
                f"Whether best-of-n gets more gold reward by the {name} is not settled.",
            ),
            unit="gold reward",
        )
        for name, arms in chosen.items()
        if name != SINGLE
    ]


def _alarm(watched: Sequence[Result]) -> list[Claim]:
    rise = [_rise(disagreement(run["steps"])) for run in watched]
    return [
        decide(
            "members come to disagree",
            estimate(rise),
            (
                "As a policy is trained on one of them, the members come to disagree about what it "
                "gained. How far they would of a reward that is not hacked is not measured.",
                "As a policy is trained on one of them, the members do not come to disagree about what it gained.",
                "Whether members come to disagree as a policy is trained on one of them is not settled.",
            ),
            unit=UNIT,
        )
    ]


def _rise(values: Sequence[float | None]) -> float | None:
    """The last fifth of a run over its second fifth: at the first step there is nothing to disagree about."""
    part = max(1, len(values) // 5)
    early, late = (
        [value for value in each if value is not None]
        for each in (values[part : 2 * part], values[-part:])
    )
    return fmean(late) - fmean(early) if early and late else None


def gaussian() -> list[Claim]:
    """What a mean of members is worth in closed form: the slope of gold over √(2 KL) is 1/√(1 + s²(ρ + (1 − ρ)/K)).

    Gold and errors are Gaussian, members' errors correlated by ρ; along the tilt by their mean the slope is the
    correlation of that with gold, which is read off a pool.
    """
    generator = torch.Generator().manual_seed(0)
    gold = torch.randn(POOL, generator=generator, dtype=torch.double)
    shared = torch.randn(POOL, generator=generator, dtype=torch.double)
    own = torch.randn(MEMBERS, POOL, generator=generator, dtype=torch.double)
    errors: list[float] = []
    for members in (1, MEMBERS):
        for rho in (0.0, 0.5, 1.0):
            error = math.sqrt(rho) * shared + math.sqrt(1 - rho) * own[:members]
            mean = COMBINATORS["mean"](gold + SPREAD * error, 0.0)
            slope = float(torch.corrcoef(torch.stack([gold, mean]))[0, 1])
            told = 1 / math.sqrt(1 + SPREAD**2 * (rho + (1 - rho) / members))
            errors.append(abs(slope / told - 1))
    return [
        within(
            "closed form of a mean of members",
            max(errors),
            0.01,
            "With Gaussian errors gold gains √(2 KL)/√(1 + s²(ρ + (1 − ρ)/K)) by the mean of K members, at ρ = 1 no "
            "more than by one",
        )
    ]


def _table(arms: Mapping[str, Arms], chosen: Mapping[str, Arms]) -> Table:
    trained = [("trained", name, *_figures(each)) for name, each in arms.items()]
    picked = [("best-of-n", name, *_figures(each)) for name, each in chosen.items()]
    return Table(
        title="Gold by combination",
        columns=(
            *("how", "reward", "gold at its peak", "√KL there", "gold at the end"),
            *("reward at the end", "KL at the end, nats"),
        ),
        rows=(*trained, *picked),
        note="Means over seeds. Own data: members are fitted to pairs of their own; own fit: to the same pairs in "
        "another order. The reward at the end is of what the policy was trained on: a worst case is lower than a mean "
        "by definition.",
    )


def _figures(arms: Arms) -> list[Value]:
    found = [each for each in peaks(arms.gold) if each is not None]
    return [
        mean([each.value for each in found]),
        mean([each.d for each in found]),
        mean([each.gold for each in arms.ends]),
        mean([each.proxy for each in arms.ends]),
        mean([each.kl for each in arms.ends]),
    ]


def _disagreement(watched: Sequence[Result]) -> Table:
    rows = [
        (seed, *(_at(disagreement(run["steps"]), share) for share in (0.25, 0.5, 0.75, 1.0)))
        for seed, run in enumerate(watched)
    ]
    return Table(
        title="How far members disagree about what was gained, as one of them is trained on",
        columns=("seed", "at a quarter", "half way", "at three quarters", "at the end"),
        rows=tuple(rows),
        note="Standard deviation over members of their mean gain since the first steps, each in its own standard "
        "deviations at the reference; the reward's own are of these steps, those of the others of their fit.",
    )


def _at(values: Sequence[float | None], share: float) -> float | None:
    return values[max(0, round(share * len(values)) - 1)]


def _figure(arms: Mapping[str, Arms], watched: Sequence[Result]) -> Figure:
    colours = (2, 0, 3, 4, 1, 5)
    left = tuple(
        band(name, each.gold, colours[i % len(colours)], "dashed" if i >= len(colours) else "line")
        for i, (name, each) in enumerate(arms.items())
    )
    rows = [disagreement(run["steps"]) for run in watched]
    steps = range(min(map(len, rows)))
    found = [estimate([row[i] for row in rows]) for i in steps]
    right = Series(
        name="standard deviation over members",
        x=tuple(float(i + 1) for i in steps),
        y=tuple(None if each is None else each.value for each in found),
        low=tuple(None if each is None else each.low for each in found),
        high=tuple(None if each is None else each.high for each in found),
        colour=2,
    )
    return Figure(
        caption="Left: gold reward over √KL of policies trained on one proxy and on ensembles, without a KL penalty. "
        "Right: how far the members disagree about what a policy gained that is trained on one of them. Bands are 95 % "
        "intervals over seeds, where three and more of them come.",
        panels=(
            Panel(
                title="Gold by what is trained on",
                x="√KL(π‖π_ref), √nats per response",
                y="gold reward",
                series=left,
            ),
            Panel(title="Disagreement", x="step", y=UNIT, series=(right,)),
        ),
    )
