"""Intervals that cover as often as they say, and fits that find what is there."""

import math

import pytest
import torch
from scipy import stats

from kleash.lab.study.statistics import (
    Estimate,
    differences,
    estimate,
    exact_mean_share,
    exact_rate,
    exact_share,
    jackknife,
    least_squares,
    welch,
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


def test_welchs_interval_against_scipys_own_and_how_often_it_covers() -> None:
    """Three seeds against a hundred prompts, of means that are about as uncertain as each other."""
    theirs = stats.ttest_ind([1.0, 2.5, 3.0], [0.0, 1.0, 2.0, 4.0], equal_var=False)
    found = welch([1.0, 2.5, None, 3.0], [0.0, 1.0, 2.0, 4.0])
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(2000, 3, generator=generator, dtype=torch.double)
    many = torch.randn(2000, 100, generator=generator, dtype=torch.double) * 5.0
    pairs = zip(few.tolist(), many.tolist(), strict=True)
    covered = sum(
        (each := welch(*pair)) is not None and each.is_above(0.0) is None for pair in pairs
    )
    assert covered >= 0.94 * 2000


def test_without_any_spread_a_difference_is_sure_and_of_one_there_is_no_interval() -> None:
    assert welch([0.0, 0.0], [1.0, 1.0]) == Estimate(value=-1.0, low=-1.0, high=-1.0, n=2)
    assert welch([0.0], [1.0, 2.0]) == Estimate(value=-1.5, n=1)
    assert welch([], [1.0, 2.0]) is None


def test_pairs_of_which_one_is_missing_are_none() -> None:
    assert differences([1.0, 2.0, None], [0.5, None, 1.0]) == [0.5, None, None]


@pytest.mark.parametrize("hazard", ["constant", "early", "late"])
def test_rates_cover_whenever_in_a_run_it_happens(hazard: str) -> None:
    """Ten runs of 50 steps, of which a third come to it: the rate is P/E[steps at risk]."""
    generator = torch.Generator().manual_seed(0)
    length, soonest, share = 50, 5, 1 / 3
    draws = torch.rand(2000, 10, generator=generator, dtype=torch.double)
    at = {
        "constant": ((1 - draws).log() * length / math.log(1 - share)).ceil(),
        "early": torch.where(draws < share, soonest, length + 1),
        "late": torch.where(draws < share, length, length + 1),
    }[hazard].clamp(min=soonest)
    happens = at <= length
    truth = float(happens.double().mean() / at.clamp(max=length).double().mean())
    found = [
        exact_rate([int(x) if x <= length else None for x in row], length, soonest=soonest)
        for row in at.tolist()
    ]
    covered = sum((e.low or 0.0) <= truth <= (e.high or 0.0) for e in found)
    assert covered >= 0.95 * 2000
    assert all((e.low or 0.0) <= e.value <= (e.high or 0.0) for e in found)


def test_a_rate_of_all_runs_at_once_is_as_high_as_one_can_be() -> None:
    found = exact_rate([5] * 4, 50, soonest=5)
    assert (found.value, found.high) == (0.2, 0.2)


@pytest.mark.parametrize("power", [0.2, 1.0, 3.0])
def test_means_of_shares_cover_where_what_is_within_one_depends(power: float) -> None:
    """Three runs a seed which share its chance u^power, of mean 1/(1 + power): five seeds a study."""
    generator = torch.Generator().manual_seed(1)
    chances = torch.rand(2000, 5, 1, generator=generator) ** power
    shares = (torch.rand(2000, 5, 3, generator=generator) < chances).double().mean(-1)
    found = [exact_mean_share(row) for row in shares.tolist()]
    covered = sum((e.low or 0.0) <= 1 / (1 + power) <= (e.high or 0.0) for e in found)
    assert covered >= 0.95 * 2000


def test_runs_that_share_a_seed_are_not_as_many_as_they_seem() -> None:
    """Where a seed's runs all have it or none, Clopper and Pearson over the runs cover too seldom."""
    generator = torch.Generator().manual_seed(2)
    hits = (torch.rand(2000, 5, generator=generator) < 0.7).tolist()
    runs = [exact_share(3 * sum(row), 15) for row in hits]
    seeds = [exact_mean_share([float(x) for x in row]) for row in hits]
    by_runs, by_seeds = (
        sum((e.low or 0.0) <= 0.7 <= (1.0 if e.high is None else e.high) for e in each) / 2000
        for each in (runs, seeds)
    )
    assert by_runs < 0.9
    assert by_seeds >= 0.95


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


def test_a_line_through_two_points_is_through_them_and_tells_nothing_of_its_fit() -> None:
    found = least_squares([[1.0, 1.0], [1.0, 3.0]], [2.0, 6.0])
    assert found is not None
    assert found.coefficients == pytest.approx((0.0, 2.0))
    assert found.r_squared is None


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
