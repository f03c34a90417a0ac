"""Solving with a matrix that is known by its products alone."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    right: Float[Tensor, " P"],
    *,
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> Float[Tensor, " P"]:
    """x with A x = b, A symmetric and positive (semi-)definite; Hestenes and Stiefel 1952.

    Args:
        product: v to A v.
        right: b.
        iterations: at most; in exact arithmetic as many as A has different eigenvalues are enough.
        tolerance: of |b − A x|² over |b|², at which it ends.

    Examples:
        >>> matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradient(lambda v: matrix @ v, torch.tensor([1.0, 2.0]))
        tensor([0.0909, 0.6364])
    """
    solution = torch.zeros_like(right)
    residual = direction = right
    squared = start = residual @ residual
    for _ in range(iterations):
        if squared <= tolerance * start:
            break
        image = product(direction)
        curvature = direction @ image
        if curvature <= 0:
            break  # nothing of A is left in this direction but rounding
        step = squared / curvature
        solution = solution + step * direction
        residual = residual - step * image
        before, squared = squared, residual @ residual
        direction = residual + (squared / before) * direction
    return solution
