"""Importance weights: data that another policy sampled, weighed as if the policy that learns had.

The other policy μ may be the same some updates ago, or the same weights in other arithmetic (int8, a serving engine).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Level = Literal["token", "sequence"]


def importance_weights(
    log_ratio: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    level: Level = "token",
    cap: float = 2.0,
    drop: bool = False,
) -> Float[Tensor, "B T"]:
    """Truncated π/μ of each token, or of its whole response; 0 where masked.

    min(w, C) is TIS; with `drop`, w where it is at most C and else 0, is MIS (IcePop, sequence masking). A token's own
    ratio leaves out that μ reaches other states, so that its bias grows with T² times the mismatch; a sequence's does
    not, and its variance grows as the product of T ratios: of a mismatch of 10 % a token, 1.1^100 = 13,780.

    Args:
        log_ratio: log π(y_t|h_t) − log μ(y_t|h_t) of the tokens drawn.
        mask: True at the response's own tokens.
        level: of what the ratio is taken.
        cap: C, at least 1.
        drop: what is over the cap counts nothing, rather than C.

    Raises:
        ValueError: the cap is below 1.

    Examples:
        >>> ratio, mask = torch.tensor([[1.5, 4.0, 9.0]]), torch.tensor([[True, True, False]])
        >>> importance_weights(ratio.log(), mask)
        tensor([[1.5000, 2.0000, 0.0000]])
        >>> importance_weights(ratio.log(), mask, level="sequence", cap=5.0, drop=True)
        tensor([[0., 0., 0.]])
    """
    if not cap >= 1:
        raise ValueError(f"a cap of at least 1, not {cap}")
    own = torch.where(mask, log_ratio, 0.0)
    if level == "sequence":
        own = own.sum(-1, keepdim=True).expand_as(own)
    # Bounded before it is a power: what is far over the cap must not be infinite.
    weights = own.clamp(max=80.0).exp()
    weights = torch.where(weights <= cap, weights, 0.0 if drop else cap)
    return torch.where(mask, weights, 0.0)
