"""Conjugate gradients against solving outright."""

import pytest
import torch

from kleash.functional.conjugate_gradient import conjugate_gradient, row_norms


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


def _softmax_blocks(rows: int = 40, vocab: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """F of a table whose rows are visited more and more rarely, down to 1e-5, and a slope within its range."""
    draw = torch.Generator().manual_seed(4)
    q = torch.randn(rows, vocab, generator=draw, dtype=torch.double).softmax(-1)
    shares = torch.logspace(0, -5, rows, dtype=torch.double)[:, None, None]
    fisher = torch.block_diag(*shares * (torch.diag_embed(q) - q[:, :, None] * q[:, None, :]))
    values, vectors = torch.linalg.eigh(fisher)
    noise = torch.randn(rows * vocab, generator=draw, dtype=torch.double)
    slope = vectors @ (values.clamp(min=0).sqrt() * (vectors.T @ noise))
    return fisher + 1e-6 * torch.eye(rows * vocab, dtype=torch.double), slope


def test_scaled_by_its_rows_it_comes_to_what_is_rarely_visited() -> None:
    """With the products of the estimate counted, and in the norm of A: a thirtieth of the error, and less."""
    matrix, right = _softmax_blocks()
    truth = torch.linalg.solve(matrix, right)
    scale = row_norms(
        lambda v: matrix @ v, right, probes=8, generator=torch.Generator().manual_seed(1)
    )

    def off(scale: torch.Tensor | None, iterations: int) -> float:
        found = conjugate_gradient(
            lambda v: matrix @ v, right, scale=scale, iterations=iterations, tolerance=0.0
        )
        error = found - truth
        return float(((error @ matrix @ error) / (truth @ matrix @ truth)).sqrt())

    assert off(scale, 12) < off(None, 20) / 30


def test_a_scale_changes_the_way_and_not_the_end() -> None:
    matrix, right = _problem(12)
    scale = torch.linspace(0.1, 10.0, 12, dtype=torch.double)
    found = conjugate_gradient(
        lambda v: matrix @ v, right, scale=scale, iterations=200, tolerance=1e-24
    )

    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-6, atol=1e-8)


def test_the_norms_of_rows_are_those_of_the_matrix() -> None:
    """In the mean over signs, whichever the matrix; a row of nothing is not scaled."""
    matrix, right = _problem(12)
    matrix[:, 3] = matrix[3] = 0.0
    found = row_norms(
        lambda v: matrix @ v, right, probes=20_000, generator=torch.Generator().manual_seed(2)
    )
    truth = matrix.square().sum(1).sqrt()
    truth[3] = 1.0

    torch.testing.assert_close(found, truth, rtol=0.03, atol=0.0)
