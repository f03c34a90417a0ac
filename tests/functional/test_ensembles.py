"""Laws of the combinators, a slow twin, and what an ensemble is worth in closed form."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kleash.functional.ensembles import COMBINATORS, disagreement, mean, uncertainty, worst
from kleash.rewards.config import Combination

matrices = st.integers(1, 5).flatmap(
    lambda members: st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=members, max_size=members),
        min_size=1,
        max_size=4,
    )
).map(lambda rows: torch.tensor(rows, dtype=torch.double).T)  # fmt: skip
"""[K, B]."""
weights = st.floats(0, 10)
EACH = {**COMBINATORS, "disagreement": lambda scores, _: disagreement(scores)}


def test_every_combination_of_scores_is_here() -> None:
    assert {*COMBINATORS} == {*get_args(Combination)} - {"weights"}


@given(matrices, weights)
def test_they_are_the_formulas_of_coste(scores: Tensor, weight: float) -> None:
    for row, column in enumerate(scores.T.tolist()):
        centre = math.fsum(column) / len(column)
        variance = math.fsum((x - centre) ** 2 for x in column) / len(column)
        near: dict[str, Any] = {"rel": 1e-9, "abs": 1e-6}
        assert float(mean(scores)[row]) == pytest.approx(centre, **near)
        assert float(worst(scores)[row]) == min(column)
        expected = centre - weight * variance
        assert float(uncertainty(scores, weight)[row]) == pytest.approx(expected, **near)
        assert float(disagreement(scores)[row] ** 2) == pytest.approx(variance, **near)


@given(matrices, weights, st.randoms())
def test_the_order_of_the_members_changes_no_bit(
    scores: Tensor, weight: float, random: Any
) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    for name, function in EACH.items():
        assert torch.equal(function(scores[order], weight), function(scores, weight)), name


@given(matrices, weights, st.integers(1, 7))
def test_members_that_say_the_same_are_one_to_the_last_bit(
    scores: Tensor, weight: float, count: int
) -> None:
    one = scores[0]
    for name, function in COMBINATORS.items():
        assert torch.equal(function(one.expand(count, -1), weight), one), name
    assert not disagreement(one.expand(count, -1)).any()


@given(matrices, weights)
def test_none_says_more_than_the_best_member_and_caution_never_more_than_the_mean(
    scores: Tensor, weight: float
) -> None:
    """Samuelson: no member is further from the mean than √(K − 1) deviations."""
    middle, rounding = mean(scores), 1e-9
    assert bool((worst(scores) <= middle).all())
    assert bool((middle <= scores.amax(0) + rounding).all())
    assert bool((uncertainty(scores, weight) <= middle).all())
    assert torch.equal(uncertainty(scores, 0.0), middle)
    reach = math.sqrt(len(scores) - 1) * disagreement(scores)
    assert bool((middle - worst(scores) <= reach + 1e-6).all())


@given(matrices, weights, st.floats(-1e3, 1e3), st.integers(-8, 8))
def test_the_scale_of_the_reward_is_the_scale_of_all(
    scores: Tensor, weight: float, shift: float, power: int
) -> None:
    """r → r + c moves each by c and the disagreement not at all; r → a r scales all, with λ in 1 over that unit."""
    factor = 2.0**power
    for name, function in EACH.items():
        moved = function(scores, weight) + (0 if name == "disagreement" else shift)
        torch.testing.assert_close(function(scores + shift, weight), moved, rtol=1e-9, atol=1e-5)
        scaled = function(scores * factor, weight / factor)
        torch.testing.assert_close(scaled, factor * function(scores, weight), rtol=1e-12, atol=0)


def tilted(proxy: Tensor, value: Tensor, nats: float) -> float:
    """E[value] under p ∝ exp(λ · proxy) on the pool, with λ such that KL(p‖uniform) is so many nats."""

    def tilt(factor: float) -> tuple[Tensor, float]:
        logp = torch.log_softmax(factor / proxy.std() * proxy, 0)
        return logp.exp(), float((logp.exp() * (logp + math.log(len(logp)))).sum())

    low, high = 0.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if tilt(middle)[1] < nats else (low, middle)
    return float((tilt(low)[0] * value).sum())


@pytest.mark.parametrize(
    ("members", "correlation", "ratio"),
    [(1, 0.0, 0.7071), (5, 0.0, 0.9129), (5, 0.5, 0.7906), (5, 1.0, 0.7071)],
)
def test_what_an_ensemble_is_worth_where_all_is_gaussian(
    members: int, correlation: float, ratio: float
) -> None:
    """True reward v, members v + e_k with errors of as much variance: 1/√(1 + s²(ρ + (1 − ρ)/K)) of what v buys a nat.

    Errors that all share are no smaller in the mean (Eisenstein et al. 2023).
    """
    assert 1 / math.sqrt(1 + correlation + (1 - correlation) / members) == pytest.approx(
        ratio, abs=5e-5
    )
    draw, size = torch.Generator().manual_seed(1), 2**18
    value, shared = torch.randn(2, size, generator=draw, dtype=torch.double)
    own = torch.randn(members, size, generator=draw, dtype=torch.double)
    errors = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    found = tilted(mean(value + errors), value, 0.25) / tilted(value, value, 0.25)
    assert found == pytest.approx(ratio, rel=0.01)
