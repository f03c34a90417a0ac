"""Solving with a matrix that is known by its products alone: conjugate gradients, and the scale of its rows."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    right: Float[Tensor, " P"],
    *,
    scale: Float[Tensor, " P"] | None = None,
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> Float[Tensor, " P"]:
    """x with A x = b, A symmetric and positive (semi-)definite; Hestenes and Stiefel 1952.

    Args:
        product: v to A v.
        right: b.
        scale: D > 0, about as large as A's rows (`row_norms`): D⁻¹ preconditions, so that rows of a thousandth are
            come to as soon as the others. None: 1.
        iterations: at most; in exact arithmetic as many as A has different eigenvalues are enough.
        tolerance: of |b − A x|² over |b|², at which it ends.

    Examples:
        >>> matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradient(lambda v: matrix @ v, torch.tensor([1.0, 2.0]))
        tensor([0.0909, 0.6364])
    """
    scale = torch.ones_like(right) if scale is None else scale
    solution = torch.zeros_like(right)
    residual, start = right, right @ right
    direction = residual / scale
    squared = residual @ direction
    for _ in range(iterations):
        if residual @ residual <= tolerance * start:
            break
        image = product(direction)
        curvature = direction @ image
        if curvature <= 0:
            break  # nothing of A is left in this direction but rounding
        step = squared / curvature
        solution = solution + step * direction
        residual = residual - step * image
        scaled = residual / scale
        before, squared = squared, residual @ scaled
        direction = scaled + (squared / before) * direction
    return solution


def row_norms(
    product: Callable[[Tensor], Tensor],
    like: Float[Tensor, " P"],
    *,
    probes: int,
    generator: torch.Generator,
) -> Float[Tensor, " P"]:
    """√(Σⱼ Aᵢⱼ²) of each row, estimated by products with random signs v: E (A v)ᵢ² is its square; 1 where that is 0.

    Equilibration: Dauphin et al. 2015, arXiv 1502.04390. It needs no diagonal, and is never negative.

    Args:
        product: v to A v.
        like: a vector of A's size, on its device.
        probes: products; the estimate's relative error falls as 1/√probes.
        generator: of the signs.

    Examples:
        >>> matrix = torch.tensor([[3.0, 0.0], [0.0, 0.01]])
        >>> row_norms(lambda v: matrix @ v, torch.zeros(2), probes=1, generator=torch.Generator())
        tensor([3.0000, 0.0100])
    """
    squares = torch.zeros_like(like)
    for _ in range(probes):
        signs = torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1
        squares += product(signs).square()
    norms = (squares / probes).sqrt()
    return torch.where(norms > 0, norms, 1.0)
