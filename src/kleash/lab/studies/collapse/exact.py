"""What becomes of the optimum as β → 0, where it is a formula: π* ∝ π_ref exp(R/β).

Its entropy falls to that of the reference among the best responses. Responses that are equally good keep the
reference's odds at every β, so that what is lost is not won back by a smaller one; and a better response that the
reference hardly knows needs a β below 1/log of the odds against it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.lab.mdp import MDP, golden, optimum
from kleash.lab.study.findings import Claim, Series, Table, within

SMALLEST_BACKED_UP = 0.01
"""β below which some sequence's probability underflows in a table of tokens."""
ODDS = 1000.0
"""Of the reference, against the better of two responses."""
DIGITS = 1e-10


class Point(NamedTuple):
    """The optimum at one β."""

    beta: float
    entropy: float
    """Nats."""
    best: float
    """Probability of the best sequence."""


def points(betas: Sequence[float]) -> list[Point]:
    """On the golden problem, by enumeration.

    Args:
        betas: above 0.

    Examples:
        >>> [round(each.entropy, 6) for each in points([1.0, 0.1])]
        [6.409146, 3.563641]
    """
    mdp = golden()
    best = int(mdp.rewards.argmax())
    laws = [(beta, log_law(mdp, beta)) for beta in betas]
    return [Point(beta, entropy(law), float(law[best].exp())) for beta, law in laws]


def log_law(mdp: MDP, beta: float) -> Tensor:
    """log π* of every sequence, [N], at once: there is no β at which a logarithm underflows."""
    reference = mdp.logprobs(mdp.ref_logits).sum(-1)
    return torch.log_softmax(reference + mdp.rewards / beta, -1)


def entropy(law: Tensor) -> float:
    """−Σ π log π, nats; of log-probabilities."""
    return -float(law.exp() @ law)


def exact_claims(betas: Sequence[float]) -> list[Claim]:
    """What has to be so to the last digit."""
    ordered = sorted(betas, reverse=True)
    found = points(ordered)
    mdp = golden()
    backed_up = [beta for beta in ordered if beta >= SMALLEST_BACKED_UP]
    apart = [abs(entropy(log_law(mdp, b)) - entropy(_by_token(mdp, b))) for b in backed_up]
    return [
        within(
            "golden problem: entropy falls with β",
            max(0.0, *(b.entropy - a.entropy for a, b in pairwise(found))),
            0.0,
            "The entropy of the optimum falls from every β to the next smaller one",
        ),
        within(
            "golden problem: entropy of tokens and of sequences",
            max(apart, default=0.0),
            DIGITS,
            "The entropy of the soft Bellman policy is that of π_ref exp(R/β)/Z",
        ),
        within(
            "golden problem: a point mass",
            1 - found[-1].best,
            1e-6,
            f"At β = {ordered[-1]:g} the optimum says the best response and nothing else",
        ),
        within(
            "equal modes keep their odds",
            modes_error(ordered),
            DIGITS,
            "Two best responses have the reference's odds at every β, relatively",
        ),
        within(
            "odds of a thousand to one",
            abs(equal_at(ODDS) * math.log(ODDS) - 1),
            DIGITS,
            "A response that is better by 1 and a thousand times rarer is as likely as the other at β = 1/log 1000 = "
            "0.1448, relatively",
        ),
    ]


def _by_token(mdp: MDP, beta: float) -> Tensor:
    return mdp.logprobs(optimum(mdp, beta)).sum(-1)


def modes_error(betas: Sequence[float]) -> float:
    """How far the odds of two best sequences move from the reference's, over the β's; relatively.

    The golden problem's best sequence and its likeliest have the best reward.
    """
    problem, first, second = two_modes()
    reference = problem.logprobs(problem.ref_logits).sum(-1)
    odds = float(reference[first] - reference[second])
    errors = list[float]()
    for beta in betas:
        laws = [log_law(problem, beta)]
        if beta >= SMALLEST_BACKED_UP:
            laws.append(_by_token(problem, beta))
        errors += [abs(math.expm1(float(law[first] - law[second]) - odds)) for law in laws]
    return max(errors)


def two_modes() -> tuple[MDP, int, int]:
    """The golden problem with two best sequences, and which they are."""
    mdp = golden()
    first = int(mdp.rewards.argmax())
    second = int(mdp.logprobs(mdp.ref_logits).sum(-1).argmax())
    rewards = mdp.rewards.clone()
    rewards[second] = rewards[first]
    return MDP(mdp.vocab, mdp.length, mdp.ref_logits, rewards), first, second


def equal_at(odds: float) -> float:
    """β at which the better of two responses, with a gap of 1, has made up for the odds against it; by bisection.

    Examples:
        >>> round(equal_at(1000.0), 4)
        0.1448
    """
    reference = torch.tensor([[0.0, math.log(odds)]], dtype=torch.double)
    problem = MDP(2, 1, reference, torch.tensor([1.0, 0.0], dtype=torch.double))
    low, high = 0.01, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        better, worse = optimum(problem, middle)[0].tolist()
        low, high = (middle, high) if better > worse else (low, middle)
    return low


def exact_table(betas: Sequence[float]) -> Table:
    """The optimum of each β."""
    return Table(
        title="The golden problem: the optimum as β → 0",
        columns=(
            "β",
            "entropy, nats",
            "as many responses, equally likely",
            "probability of the best",
        ),
        rows=tuple(
            (each.beta, each.entropy, math.exp(each.entropy), each.best)
            for each in points(sorted(betas, reverse=True))
        ),
        note="By enumeration of 4,096 sequences.",
    )


def exact_series(betas: Sequence[float]) -> Series:
    """Entropy over β."""
    found = points(sorted(betas))
    return Series(
        name="the optimum",
        x=tuple(each.beta for each in found),
        y=tuple(each.entropy for each in found),
        mark="both",
        colour=0,
    )


def reference_entropy() -> float:
    """Of the golden problem's reference, nats.

    Examples:
        >>> round(reference_entropy(), 10)
        6.6701449873
    """
    mdp = golden()
    return entropy(mdp.logprobs(mdp.ref_logits).sum(-1))
