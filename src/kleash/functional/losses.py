"""The losses of PPO over the tokens of a minibatch, each a mean over tokens."""

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_policy_loss(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    *,
    clip_eps: float = 0.2,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """PPO's clipped objective, as a loss: −mean min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = exp(logprobs − old_logprobs).

    Schulman et al. 2017, arXiv 1707.06347.

    Returns:
        The loss, and the fraction of tokens at which the clip was the active branch.

    Examples:
        >>> loss, clipped = clipped_policy_loss(torch.tensor([0.5, 0.0]), torch.zeros(2), torch.tensor([1.0, -1.0]))
        >>> loss, clipped
        (tensor(-0.1000), tensor(0.5000))
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_eps, 1.0 + clip_eps) * advantages
    return -torch.minimum(unclipped, clipped).mean(), (clipped < unclipped).float().mean()


def clipped_value_loss(
    values: Float[Tensor, " N"],
    old_values: Float[Tensor, " N"],
    returns: Float[Tensor, " N"],
    *,
    clip_eps: float = 0.2,
) -> Float[Tensor, ""]:
    """½ mean max((V − G)², (V_clip − G)²), V_clip within ±ε of the value at sampling.

    Examples:
        >>> clipped_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]))
        tensor(0.3200)
    """
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square()).mean()


def explained_variance(values: Float[Tensor, " N"], returns: Float[Tensor, " N"]) -> Tensor | None:
    """1 − Var(G − V)/Var(G): 1 is a perfect critic, 0 a constant one; None when the returns don't vary.

    Examples:
        >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor(1.)
    """
    if returns.numel() < 2 or returns.var() == 0:
        return None
    return 1.0 - (returns - values).var() / returns.var()
