"""The sweep on the golden problem, where the frontier is a formula and every end is enumerated."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import torch

from kleash.lab.mdp import golden
from kleash.lab.plant import Plant, plant, weight_for
from kleash.lab.study.findings import Claim, Series, Table, within

SMALL_BETA = 0.15
"""Below it a run of 2,000 steps is still on its way: its KL may be off by 4 % in place of 1 %."""
POINTS = 60


class End(NamedTuple):
    """Where a policy of the golden problem is, by enumeration."""

    reward: float
    kl: float
    variance: float
    """Of the reward."""

    def sensitivity(self, beta: float) -> float:
        """d log KL/d log β = −Var/(β² KL) of an optimum.

        Examples:
            >>> round(optimal(plant(golden()), 0.2).sensitivity(0.2), 3)
            -0.782
        """
        return -self.variance / (beta * beta * self.kl)


def optimal(problem: Plant, beta: float) -> End:
    """The optimum at β: the tilt at λ = 1/β.

    Examples:
        >>> round(optimal(plant(golden()), 0.2).reward, 8)
        1.35652546
    """
    return _tilted(problem, 1 / beta)


def most_reward(problem: Plant, kl: float) -> float:
    """R*(KL): of the tilt with that KL."""
    return _tilted(problem, weight_for(problem, kl)).reward


def _tilted(problem: Plant, weight: float) -> End:
    law, rewards = problem.law(weight), problem.mdp.rewards
    reward = float(law.probs @ rewards)
    return End(reward, law.kl, float(law.probs @ (rewards - reward).square()))


def exact_claims(ends: Mapping[float, Sequence[End]]) -> list[Claim]:
    """What runs at each β, one a seed, have to agree with.

    Args:
        ends: by β.
    """
    problem = plant(golden())
    runs = [(beta, end) for beta, group in ends.items() for end in group]
    over = [end.reward - most_reward(problem, end.kl) for _, end in runs]
    drift = [(beta, abs(end.kl / optimal(problem, beta).kl - 1)) for beta, end in runs]
    near = [error for beta, error in drift if beta >= SMALL_BETA]
    far = [error for beta, error in drift if beta < SMALL_BETA]
    claims = [
        within(
            "golden problem: on the frontier",
            max(map(abs, over)),
            0.01,
            "A trained policy's reward is the most that its KL can buy",
        ),
        within(
            "golden problem: never above it",
            max(0.0, *over),
            1e-9,
            "No trained policy has more reward than the optimum of its KL, by enumeration",
        ),
    ]
    for name, errors, allowed in (("KL", near, 0.01), ("KL, small β", far, 0.04)):
        if errors:
            what = "The KL that training ends at is that of the optimum at its β, relatively"
            claims.append(within(f"golden problem: {name}", max(errors), allowed, what))
    slopes = sensitivities(ends)
    if slopes:
        error = max(
            abs(row.measured / formula - 1)
            for row in slopes
            for formula in (row.in_the_run, row.expected)
        )
        says = "Between neighbouring β the log-log slope of KL is −Var/(β² KL), trained and optimal, relatively"
        claims.append(within("golden problem: sensitivity", error, 0.15, says))
    return claims


class Sensitivity(NamedTuple):
    """How KL answers to β between two of them."""

    low: float
    high: float
    """β."""
    measured: float
    """Δ log KL/Δ log β, means over seeds."""
    in_the_run: float
    """−Var/(β² KL) of the trained policies, the mean of both ends."""
    expected: float
    """The same of the optima."""


def sensitivities(ends: Mapping[float, Sequence[End]]) -> list[Sensitivity]:
    """Of neighbours, from the smallest β."""
    problem = plant(golden())
    return [
        Sensitivity(
            low,
            high,
            fmean(
                math.log(b.kl / a.kl) / math.log(high / low)
                for a, b in zip(ends[low], ends[high], strict=True)
            ),
            fmean(end.sensitivity(beta) for beta in (low, high) for end in ends[beta]),
            fmean(optimal(problem, beta).sensitivity(beta) for beta in (low, high)),
        )
        for low, high in pairwise(sorted(ends))
    ]


def exact_table(ends: Mapping[float, Sequence[End]]) -> Table:
    """Each β's run beside its optimum."""
    problem = plant(golden())
    rows = [
        (
            beta,
            fmean(end.reward for end in group),
            (best := optimal(problem, beta)).reward,
            fmean(end.kl for end in group),
            best.kl,
            fmean(end.sensitivity(beta) for end in group),
            best.sensitivity(beta),
        )
        for beta, group in sorted(ends.items())
    ]
    return Table(
        title="The golden problem: trained, and the optimum",
        columns=(
            *("β", "reward", "reward of the optimum", "KL, nats", "KL of the optimum, nats"),
            *("−Var/(β² KL)", "−Var/(β² KL) of the optimum"),
        ),
        rows=tuple(rows),
        note="Means over seeds of RLOO from samples; every figure by enumeration of 4,096 sequences.",
    )


def exact_series(ends: Mapping[float, Sequence[End]]) -> tuple[Series, Series]:
    """The frontier, and where the runs end."""
    problem = plant(golden())
    farthest = 1.3 / min(ends)
    tilts = [_tilted(problem, float(w)) for w in torch.linspace(0.0, farthest, POINTS)]
    runs = [end for group in ends.values() for end in group]
    return (
        Series(
            name="the optimum of each β",
            x=tuple(each.kl for each in tilts),
            y=tuple(each.reward for each in tilts),
            colour=0,
        ),
        Series(
            name="trained",
            x=tuple(each.kl for each in runs),
            y=tuple(each.reward for each in runs),
            mark="points",
            colour=2,
        ),
    )
