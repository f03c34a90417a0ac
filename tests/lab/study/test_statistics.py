"""Intervals that cover as often as they say, and fits that find what is there."""

import math

import pytest
import torch
from scipy import stats

from kleash.lab.study.statistics import (
    Estimate,
    differences,
    estimate,
    exact_rate,
    exact_share,
    jackknife,
    least_squares,
)


def test_students_interval_covers_with_three_seeds() -> None:
    draws = torch.randn(4000, 3, dtype=torch.double) * 2.0 + 5.0
    found = [estimate(row) for row in draws.tolist()]
    ends = [(e.low, e.high) for e in found if e and e.low is not None and e.high is not None]
    covered = sum(low <= 5.0 <= high for low, high in ends)
    assert len(ends) == 4000
    assert abs(covered / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize("values", [[], [None], [float("nan")], [None, float("inf")]])
def test_what_was_not_observed_has_no_figure(values: list) -> None:
    assert estimate(values) is None


def test_one_seed_has_no_interval_and_settles_nothing() -> None:
    alone = estimate([3.0])
    assert alone is not None
    assert (alone.value, alone.low, alone.is_above(0.0)) == (3.0, None, None)


@pytest.mark.parametrize(
    ("low", "high", "above"), [(0.1, 1.0, True), (-1.0, -0.1, False), (-1.0, 1.0, None)]
)
def test_the_interval_decides(low: float, high: float, above: bool | None) -> None:
    assert Estimate(value=0.0, low=low, high=high, n=4).is_above(0.0) is above


def test_exactly_at_the_bound_is_not_above() -> None:
    assert Estimate(value=0.0, low=0.0, high=1.0, n=4).is_above(0.0) is None
    assert Estimate(value=0.0, low=-1.0, high=0.0, n=4).is_above(0.0) is False


def test_pairs_of_which_one_is_missing_are_none() -> None:
    assert differences([1.0, 2.0, None], [0.5, None, 1.0]) == [0.5, None, None]


@pytest.mark.parametrize(("events", "trials"), [(0, 600), (1, 1000), (7, 350)])
def test_rates_against_scipys_own(events: int, trials: int) -> None:
    """Garwood's ends are where the Poisson tails are 2.5 %."""
    found = exact_rate(events, trials)
    assert found.low is not None
    assert found.high is not None
    assert stats.poisson.cdf(events, found.high * trials) == pytest.approx(0.025)
    if events:
        assert stats.poisson.sf(events - 1, found.low * trials) == pytest.approx(0.025)
    else:
        assert found.low == 0.0


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (4, 5), (10, 10)])
def test_shares_against_scipys_own(hits: int, trials: int) -> None:
    found = exact_share(hits, trials)
    theirs = stats.binomtest(hits, trials).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_least_squares_finds_the_coefficients() -> None:
    x = [0.5 * i for i in range(1, 20)]
    found = least_squares([x, [v * v for v in x]], [2.0 * v - 0.3 * v * v for v in x])
    assert found is not None
    assert found.coefficients == pytest.approx((2.0, -0.3))
    assert found.r_squared == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("columns", "y"),
    [([[1.0], [2.0]], [1.0]), ([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], [1.0, 2.0, 3.0])],
)
def test_no_fit_where_it_is_not_determined(columns: list, y: list) -> None:
    assert least_squares(columns, y) is None


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    """Of any mean: the parts' spread is that of the observations over n − 1."""
    values = [0.3, 1.1, -0.4, 2.0, 0.9]
    parts = [sum(values[:i] + values[i + 1 :]) / 4 for i in range(5)]
    found, own = jackknife(sum(values) / 5, parts), estimate(values)
    assert found is not None
    assert own is not None
    assert (found.value, found.low, found.high) == pytest.approx((own.value, own.low, own.high))


def test_a_part_that_is_missing_leaves_no_interval() -> None:
    found = jackknife(1.0, [1.0, None, 2.0])
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert jackknife(None, [1.0, 2.0]) is None
