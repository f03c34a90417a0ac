"""The losses of PPO over the tokens of a minibatch."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_policy_loss(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    *,
    clip_eps: float | None = 0.2,
    clip_eps_high: float | None = None,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """PPO's clipped objective per token, as a loss: −min(ρA, clip(ρ, 1−ε, 1+ε′)A), ρ = exp(logprobs − old_logprobs).

    Schulman et al. 2017, arXiv 1707.06347; ε′ > ε is DAPO's "clip higher" (arXiv 2503.14476).

    Args:
        logprobs: of the tokens, with their gradient.
        old_logprobs: of the policy that drew them, or whatever else the ratio is taken from.
        advantages: A.
        clip_eps: ε; None: the ratio is not clipped, and the loss is −ρA.
        clip_eps_high: ε′; None: ε.

    Returns:
        The losses, and where the clip was the active branch.

    Examples:
        >>> clipped_policy_loss(torch.tensor([0.5, 0.0]), torch.zeros(2), torch.tensor([1.0, -1.0]))
        (tensor([-1.2000,  1.0000]), tensor([ True, False]))
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = ratio * advantages
    if clip_eps is None:
        return -unclipped, torch.zeros_like(unclipped, dtype=torch.bool)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    clipped = ratio.clamp(1.0 - clip_eps, 1.0 + high) * advantages
    return -torch.minimum(unclipped, clipped), clipped < unclipped


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
