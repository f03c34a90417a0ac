"""Scores of the same responses by several reward models, as one; and how far the models are apart.

Of K members' scores r_k, with r̄ their mean and the variance of the population, as Coste et al. have it:

    mean         r̄ = 1/K Σ_k r_k
    worst        min_k r_k                           WCO
    uncertainty  r̄ − λ · 1/K Σ_k (r_k − r̄)²          UWO

Source: Coste et al. 2023, arXiv 2310.02743, with λ = 0.5 for best-of-n and 0.1 for PPO. An error that all members share
is in every one of these (Eisenstein et al. 2023, arXiv 2312.09244). Members are sorted before anything is summed, so
that their order changes no bit.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Combine = Callable[[Tensor, float], Tensor]
"""(scores [K, B], λ) -> [B]."""


def mean(scores: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """r̄ = 1/K Σ_k r_k; of equal scores that score itself.

    Examples:
        >>> mean(torch.tensor([[1.0, 2.0], [4.0, 2.0]]))
        tensor([2.5000, 2.0000])
    """
    return _moments(scores)[0]


def worst(scores: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """min_k r_k: worst-case optimisation.

    Examples:
        >>> worst(torch.tensor([[1.0, 2.0], [4.0, 2.0]]))
        tensor([1., 2.])
    """
    return scores.amin(0)


def uncertainty(scores: Float[Tensor, "K B"], weight: float) -> Float[Tensor, " B"]:
    """r̄ − λ · 1/K Σ_k (r_k − r̄)²: uncertainty-weighted optimisation.

    Args:
        scores: of K members.
        weight: λ, in 1 over the unit of the scores; at 0 it is the mean.

    Examples:
        >>> uncertainty(torch.tensor([[1.0, 2.0], [4.0, 2.0]]), 0.5)
        tensor([1.3750, 2.0000])
    """
    centre, variance = _moments(scores)
    return centre - weight * variance


def disagreement(scores: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    """√(1/K Σ_k (r_k − r̄)²), in the unit of the scores: 0 where all members say the same.

    Examples:
        >>> disagreement(torch.tensor([[1.0, 2.0], [4.0, 2.0]]))
        tensor([1.5000, 0.0000])
    """
    return _moments(scores)[1].sqrt()


COMBINATORS: dict[str, Combine] = {
    "mean": lambda scores, _: mean(scores),
    "worst": lambda scores, _: worst(scores),
    "uncertainty": uncertainty,
}
"""By name; λ means something to `uncertainty` alone."""


def _moments(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over members, [B] each; from the least of them, so that what is equal does not vary."""
    ordered = torch.sort(scores, dim=0).values
    above = ordered - ordered[0]
    centre = above.mean(0)
    return ordered[0] + centre, (above - centre).square().mean(0)
