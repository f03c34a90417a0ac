"""A simulated plant for controllers of β: mirror descent on a problem that can be enumerated.

A step of size η on E[S·R] − β·KL(π‖π_ref) takes a tilt π_λ ∝ π_ref exp(λR) to another one,

    λ' = λ + η(S − β λ) = (1 − η β) λ + η S,

so that a whole policy is one number and its KL(λ) is known exactly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.errors import InputError
from kleash.lab.mdp import LEAST_LOGPROB, MDP

RISEN = 0.9
"""Share of the target at which a KL counts as having come up."""
LEAST_SPREAD = 1e-12
"""Of rewards: below it they differ by rounding alone."""


class Law(NamedTuple):
    """A tilt's law; S prefixes, N sequences."""

    kl: float
    """KL(π_λ‖π_ref), nats per response."""
    kl_at: Tensor
    """[S], at each prefix."""
    probs: Tensor
    """[N]."""


@dataclass(frozen=True, slots=True)
class Plant:
    """The tilts of one problem, with what does not change between them; made by `plant`.

    Prefixes and, last, whole sequences are nodes of one tree, ordered by depth: the children of the i-th prefix are
    the nodes V·i + 1 to V·i + V.
    """

    mdp: MDP
    prefixes: Tensor
    """[N, L], the prefix that each token of every sequence is drawn after."""
    ref_logprobs: Tensor
    """[N], log π_ref of each sequence."""
    ref_nodes: Tensor
    """[1 + S·V], log π_ref of each node."""
    low: float
    high: float
    """The ends of the range in which a float holds every sequence's probability under π_λ."""

    def law(self, weight: float) -> Law:
        """The tilt at λ.

        The KL at a prefix is Σ π (e^{−d} − 1 + d) over d = log π/π_ref of the next token (`functional.divergences`);
        that of the sequence is their mean under π, by the chain rule. No sum here loses digits near the reference.

        Args:
            weight: λ, within [low, high].

        Examples:
            >>> from kleash.lab.mdp import golden
            >>> round(plant(golden()).law(5.0).kl, 8)
            2.04046781
        """
        vocab = self.mdp.vocab
        nodes = _nodes(self.mdp, self.ref_logprobs + weight * self.mdp.rewards)
        own = nodes[: self.mdp.num_prefixes]
        log_ratio = nodes.log() - self.ref_nodes
        step = log_ratio[1:].view(-1, vocab) - log_ratio[: len(own), None]
        probs = nodes[1:].view(-1, vocab) / own[:, None]
        kl_at = (probs * (torch.expm1(-step) + step)).sum(-1)
        return Law(float(own @ kl_at), kl_at, nodes[-self.mdp.num_sequences :])

    @property
    def kl_max(self) -> float:
        """The KL that no tilt exceeds: −log π_ref(argmax R)."""
        best = self.mdp.rewards == self.mdp.rewards.max()
        return -float(self.ref_logprobs[best].logsumexp(-1))

    def hold(self, weight: float) -> float:
        """λ, or the end of the range that it would leave."""
        return min(max(weight, self.low), self.high)


def plant(mdp: MDP) -> Plant:
    """The plant of a problem.

    Raises:
        InputError: its rewards are all the same: nothing moves a policy.
    """
    spread = float(mdp.rewards.max() - mdp.rewards.min())
    if not spread > LEAST_SPREAD:
        raise InputError(
            "no policy can drift on this problem",
            expected=f"rewards that differ by more than {LEAST_SPREAD:g}",
            got=f"{spread:g}",
        )
    reference = mdp.logprobs(mdp.ref_logits).sum(-1)
    # There log π_λ of the worst sequence, at most log π_ref − λ·spread − log π_ref(best), is out of range.
    far = (1 - 2 * LEAST_LOGPROB) / spread
    low, high = (_last_held(mdp, reference, end) for end in (-far, far))
    return Plant(mdp, mdp.states(), reference, _nodes(mdp, reference).log(), low, high)


def _nodes(mdp: MDP, log_weights: Tensor) -> Tensor:
    """Probability of each node of the tree of prefixes where the sequences have these weights, [1 + S·V]."""
    levels = [log_weights.softmax(-1)]
    for _ in range(mdp.length):
        levels.append(levels[-1].view(-1, mdp.vocab).sum(-1))
    return torch.cat(levels[::-1])


def _last_held(mdp: MDP, reference: Tensor, end: float) -> float:
    """The λ between 0 and `end` up to which every sequence's log-probability is one a float holds.

    Their least is a concave function of λ, so that the range is an interval.
    """

    def is_held(weight: float) -> bool:
        tilted = reference + weight * mdp.rewards
        return float((tilted - tilted.logsumexp(-1)).min()) >= LEAST_LOGPROB

    return _bisect(is_held, end)


def _bisect(holds: Callable[[float], bool], end: float) -> float:
    """The number between 0 and `end` up to which something holds."""
    near, far = 0.0, end
    for _ in range(100):
        middle = (near + far) / 2
        near, far = (middle, far) if holds(middle) else (near, middle)
    return near


def weight_for(plant: Plant, target: float) -> float:
    """λ*, the tilt whose KL is the target, by bisection; 1/λ* is the β that holds it.

    Args:
        plant: the plant.
        target: T, nats per response.

    Raises:
        InputError: no tilt has this KL.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> round(weight_for(plant(golden()), 2.04046781), 6)
        5.0
    """
    largest = min(plant.kl_max, plant.law(plant.high).kl)
    if not 0 < target < largest:
        raise InputError(
            "no policy on this problem has the target's KL",
            expected=f"above 0 and below {largest:.6g} nats; KL_max = −log π_ref(argmax R) = {plant.kl_max:.6g}",
            got=f"{target:g}",
            do="name a target inside",
        )
    return _bisect(lambda weight: plant.law(weight).kl < target, plant.high)


def fastest_rise(plant: Plant, target: float, eta: float) -> int:
    """The first step at which the KL can be at 0.9 of the target: there β was 0 all the way and λ is tη.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> fastest_rise(plant(golden()), 2.04046781, eta=0.1)
        44
    """
    return math.ceil(weight_for(plant, RISEN * target) / eta)
