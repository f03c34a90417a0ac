"""Reductions over the tokens that count. What stands at a masked position, NaN included, never matters."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum of each row's unmasked values: Σ_t mask_t · x_t.

    Selects rather than multiplies: 0 · NaN is NaN, `where` is not.

    Examples:
        >>> masked_sum(torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([[True, True, False]]))
        tensor([3.])
    """
    return torch.where(mask, values, 0.0).sum(-1)


def masked_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean over all unmasked values of the batch (token mean); NaN when nothing is unmasked.

    Examples:
        >>> masked_mean(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
        tensor(3.)
    """
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def last_index(mask: Bool[Tensor, "B T"]) -> Tensor:
    """Index of each row's last unmasked position. [B]; 0 for an empty row.

    Examples:
        >>> last_index(torch.tensor([[True, True, False], [True, True, True]]))
        tensor([1, 2])
    """
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, positions, 0).amax(-1)
