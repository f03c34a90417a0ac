"""From a score per response and a charge per token to a reward per token."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleash.functional.masking import last_index


def length_penalty(
    lengths: Int[Tensor, " B"], per_token: float, free: int, at_most: float | None = None
) -> Float[Tensor, " B"]:
    """What length takes off a score: per_token · max(0, length − free), at most `at_most`.

    With per_token = 1/L_cache, free = L_max − L_cache and at_most = 1 it is the soft overlong punishment of DAPO (Yu et
    al. 2025, arXiv 2503.14476), of responses of at most L_max tokens.

    Args:
        lengths: tokens of each response.
        per_token: in units of the reward.
        free: tokens that cost nothing.
        at_most: in units of the reward; None: there is no such bound.

    Examples:
        >>> length_penalty(torch.tensor([3, 4, 6, 90]), per_token=0.25, free=4, at_most=1.0)
        tensor([0.0000, 0.0000, 0.5000, 1.0000])
    """
    over = (lengths - free).clamp(min=0).float()
    penalty = per_token * over
    return penalty if at_most is None else penalty.clamp(max=at_most)


def shaped_rewards(
    scores: Float[Tensor, " B"],
    charged: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """r_t = −β · c_t, and the score on the last token.

    The undiscounted return of token t is then R − β Σ_{j≥t} c_j; which charges c_t make it the gradient of the KL is in
    `penalties`.

    Args:
        scores: R(x, y) per response.
        charged: c_t per token, nats; only unmasked ones count.
        mask: True at the response's own tokens, contiguous from the left.
        kl_coef: β; at 0 the charges are not looked at, so that a broken reference can't reach the update.

    Examples:
        >>> shaped_rewards(torch.tensor([1.0]), torch.tensor([[0.2, 0.0, 9.0]]),
        ...                torch.tensor([[True, True, False]]), kl_coef=0.5)
        tensor([[-0.1000,  1.0000,  0.0000]])
    """
    rewards = -kl_coef * charged if kl_coef else torch.zeros_like(charged)
    rewards = torch.where(mask, rewards, 0.0)
    rewards[torch.arange(len(scores), device=charged.device), last_index(mask)] += scores
    return rewards
