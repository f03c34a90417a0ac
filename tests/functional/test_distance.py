"""Two distances of distributions that have a triangle inequality, and bound what a KL does not."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from kleash.functional.distance import Apart, apart

ROUNDING = 1e-9


def rows(number: int) -> st.SearchStrategy[torch.Tensor]:
    """Log-probabilities of five tokens, some of which are very unlikely."""
    logits = st.lists(st.floats(-50, 50), min_size=5, max_size=5)
    several = st.lists(logits, min_size=number, max_size=number)
    return several.map(lambda x: torch.tensor(x, dtype=torch.double).log_softmax(-1))


def of(p: torch.Tensor, q: torch.Tensor) -> tuple[float, float]:
    found = apart(p[None], q[None])
    return float(found.sup_log_ratio), float(found.total_variation)


@given(rows(3))
def test_a_path_is_never_shorter_than_the_way(three: torch.Tensor) -> None:
    p, q, r = three
    for way, first, second in zip(of(p, r), of(p, q), of(q, r), strict=True):
        assert way <= first + second + ROUNDING


@given(rows(2))
def test_it_is_symmetric_bounded_and_zero_of_the_same_alone(two: torch.Tensor) -> None:
    p, q = two
    assert of(p, q) == of(q, p)
    sup, variation = of(p, q)
    assert 0.0 <= variation <= 1.0 + ROUNDING
    assert of(p, p) == (0.0, 0.0)
    kl = float((p.exp() * (p - q)).sum())
    assert kl <= sup + ROUNDING  # no token's log-ratio is larger than the largest
    assert variation <= math.sqrt(max(kl, 0.0) / 2) + 1e-6  # Pinsker


def test_by_hand() -> None:
    p, q = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    sup, variation = of(p[0], q[0])
    assert math.isclose(sup, math.log(2.5), rel_tol=1e-6)
    assert math.isclose(variation, 0.3, rel_tol=1e-6)


def test_what_neither_says_adds_nothing_and_what_one_alone_says_is_infinitely_far() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]).log()
    found: Apart = apart(p, q)
    assert found.sup_log_ratio.tolist() == [0.0, math.inf]
    assert found.total_variation.tolist() == [0.0, 0.25]
