"""The best reward there is at each KL, from samples of the reference alone.

No policy has more reward at its KL(π‖π_ref) than the tilt π_λ ∝ π_ref exp(λR) of the same KL (Korbak et al. 2022, arXiv
2205.11275). Samples of the reference, weighed by exp(λR), are samples of the tilt: Stiennon et al. 2020 (arXiv
2009.01325) and Gao et al. 2022 (arXiv 2210.10760) draw this curve beside what was trained.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Frontier(NamedTuple):
    """The tilts of some prompts' references, all at the same λ; [K] means over prompts, float64."""

    kl: Float[Tensor, " K"]
    """KL(π_λ‖π_ref), nats per response."""
    reward: Float[Tensor, " K"]
    """E[R] under π_λ."""
    effective: Float[Tensor, " K"]
    """1/Σw², of how many samples a prompt's figures really are, the least of all prompts: small, they read low."""


def sampled_frontier(rewards: Float[Tensor, "P N"], tilts: Float[Tensor, " K"]) -> Frontier:
    """Reward against KL of the tilt π_λ ∝ π_ref exp(λR), from N samples of the reference for each prompt.

    w_i = exp(λ R_i)/Σ_j exp(λ R_j), reward Σ w R, KL Σ w log(N w). KL is at most log N, whatever λ: where `effective`
    is under a hundred, the true frontier is higher.

    Args:
        rewards: of the samples.
        tilts: λ, per unit of reward; 1/β of the penalty that it is the optimum of.

    Examples:
        >>> found = sampled_frontier(torch.tensor([[0.0, 1.0]]), torch.tensor([0.0, 1.0]))
        >>> found.reward, found.kl  # at λ = 1 e/(1 + e), and that less log((1 + e)/2)
        (tensor([0.5000, 0.7311], dtype=torch.float64), tensor([0.0000, 0.1109], dtype=torch.float64))
    """
    rewards = rewards.double()
    log_weights = torch.log_softmax(tilts.double()[:, None, None] * rewards, -1)
    weights = log_weights.exp()
    kl = (weights * log_weights).sum(-1) + torch.tensor(rewards.shape[-1]).log()
    reward = (weights * rewards).sum(-1)
    effective = 1.0 / weights.square().sum(-1)
    return Frontier(kl.mean(-1), reward.mean(-1), effective.amin(-1))
