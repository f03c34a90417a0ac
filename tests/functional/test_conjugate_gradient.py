"""Conjugate gradients against solving outright."""

import pytest
import torch

from kleash.functional.conjugate_gradient import conjugate_gradient


def _problem(size: int, *, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    factor = torch.randn(size, rank or size, generator=draw, dtype=torch.double)
    return factor @ factor.T, torch.randn(size, generator=draw, dtype=torch.double)


def test_as_many_iterations_as_dimensions_solve_it() -> None:
    matrix, right = _problem(12)
    found = conjugate_gradient(lambda v: matrix @ v, right, iterations=60, tolerance=1e-24)

    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-6, atol=1e-8)


def test_more_iterations_are_never_further_off() -> None:
    """In the norm of A, which is what they minimise."""
    matrix, right = _problem(30)
    truth = torch.linalg.solve(matrix, right)

    def off(iterations: int) -> float:
        error = conjugate_gradient(lambda v: matrix @ v, right, iterations=iterations) - truth
        return float(error @ matrix @ error)

    errors = [off(iterations) for iterations in range(1, 20)]
    assert errors == sorted(errors, reverse=True)


def test_where_a_matrix_is_flat_it_stops_and_stays_finite() -> None:
    matrix, _ = _problem(8, rank=2)
    right = matrix @ torch.ones(8, dtype=torch.double)
    found = conjugate_gradient(lambda v: matrix @ v, right, iterations=50)

    torch.testing.assert_close(matrix @ found, right, rtol=1e-6, atol=1e-8)


def test_nothing_asked_is_nothing_answered() -> None:
    assert conjugate_gradient(lambda v: v, torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_it_ends_at_its_tolerance(tolerance: float) -> None:
    matrix, right = _problem(40)
    found = conjugate_gradient(lambda v: matrix @ v, right, iterations=500, tolerance=tolerance)
    residual = right - matrix @ found

    assert float(residual @ residual) <= 1.01 * tolerance * float(right @ right)
