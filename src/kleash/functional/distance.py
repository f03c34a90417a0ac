"""How far two categorical distributions are apart in distances that have a triangle inequality."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Apart(NamedTuple):
    """Of each row."""

    sup_log_ratio: Float[Tensor, " N"]
    """max_v |log q_v − log p_v|, nats."""
    total_variation: Float[Tensor, " N"]
    """½ Σ_v |q_v − p_v|, 0 to 1."""


def apart(logprobs: Float[Tensor, "N V"], other_logprobs: Float[Tensor, "N V"]) -> Apart:
    """Both distances of each row; symmetric, and of a chain of steps at most the sum.

    A token that both give probability 0 adds nothing; one that only one gives 0 makes the first infinite.

    Args:
        logprobs: normalised, of the one.
        other_logprobs: of the other.

    Examples:
        >>> found = apart(torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log())
        >>> found.sup_log_ratio, found.total_variation  # log 2.5
        (tensor([0.9163]), tensor([0.3000]))
    """
    ratio = (logprobs - other_logprobs).abs()
    both_never = (logprobs == -torch.inf) & (other_logprobs == -torch.inf)
    ratio = torch.where(both_never, 0.0, ratio)
    difference = (logprobs.exp() - other_logprobs.exp()).abs()
    return Apart(ratio.amax(-1), difference.sum(-1) / 2)
