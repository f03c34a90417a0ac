"""From a score per response and a charge per token to a reward per token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.functional.masking import last_index


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
