"""Advantages and returns from rewards per token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation: A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t; returns = A + V.

    Schulman et al. 2016, arXiv 1506.02438. The response ends at its last unmasked token:
    nothing is bootstrapped beyond.

    Args:
        rewards: reward per token; only unmasked ones count.
        values: V(h_t), the value of the state *before* token t.
        mask: True at the response's own tokens, contiguous from the left.
        gamma: discount γ.
        gae_lambda: λ; 1 gives the Monte-Carlo return minus V, 0 the one-step error.

    Returns:
        Advantages and returns, 0 where masked.

    Examples:
        >>> advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]),
        ...                           torch.tensor([[True, True]]), gae_lambda=0.5)
        >>> advantages, returns
        (tensor([[0.2500, 0.5000]]), tensor([[0.7500, 1.0000]]))
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * gae_lambda * running, 0.0)
        advantages[:, t] = running
        following = values[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def deviation(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Standard deviation of the unmasked values (divisor n − 1); 1 when it is 0 or there are fewer than two.

    It is what whitening divides by. Whatever is added to a loss beside whitened advantages must be divided by it too:
    otherwise β silently becomes β·σ.

    Examples:
        >>> deviation(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]))
        tensor(1.4142)
    """
    chosen = values[mask]
    scale = chosen.std() if chosen.numel() > 1 else torch.zeros_like(values.sum())
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def whiten(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, shift_mean: bool = True
) -> Float[Tensor, "B T"]:
    """(x − mean)/std over unmasked values; with `shift_mean=False` the mean stays (Ziegler's reward whitening).

    Examples:
        >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[-0.7071,  0.7071,  0.0000]])
    """
    centred = values - values[mask].mean() if shift_mean else values
    return torch.where(mask, centred / deviation(values, mask), 0.0)
