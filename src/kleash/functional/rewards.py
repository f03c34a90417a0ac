"""From a score per response and a KL per token to a reward per token.

The gradient of the sequence KL splits, at every step t, in a local term and a term of what follows
(Rao-Blackwell form; proof in docs/concepts.md):

    ∇ KL(π‖π_ref) = E Σ_t [ ∇ KL_t  +  (Σ_{j>t} KL_j) ∇ log π(y_t|h_t) ],     KL_t = KL(π(·|h_t) ‖ π_ref(·|h_t))

KL_t depends on the state h_t and not on the token y_t drawn there, so that an exact KL in the reward carries the second
term only; the first must be in the loss. Leave it out and, in a one-step problem, there is no penalty at all.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.functional.masking import last_index


def kl_shaped_rewards(
    scores: Float[Tensor, " B"],
    kl: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """r_t = −β · KL_{t+1}, and the score on the last token: what token t causes is what comes after it.

    Shifting the KL by one step makes the undiscounted return of token t exactly R − β Σ_{j>t} KL_j, the factor that
    multiplies ∇ log π(y_t|h_t) in the gradient above; KL_t itself is left to the loss.

    Args:
        scores: R(x, y) per response.
        kl: exact KL_t per token, nats.
        mask: True at the response's own tokens, contiguous from the left.
        kl_coef: β.

    Examples:
        >>> kl_shaped_rewards(torch.tensor([1.0]), torch.tensor([[0.1, 0.2, 9.0]]),
        ...                   torch.tensor([[True, True, False]]), kl_coef=0.5)
        tensor([[-0.1000,  1.0000,  0.0000]])
    """
    following = torch.zeros_like(kl)
    following[:, :-1] = torch.where(mask, kl, 0.0)[:, 1:]
    rewards = -kl_coef * following
    rewards[torch.arange(len(scores), device=kl.device), last_index(mask)] += scores
    return torch.where(mask, rewards, 0.0)
