"""Intervals, calibration and correlation against hand-made numbers and SciPy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kleash.functional.calibration import (
    ReliabilityBin,
    expected_calibration_error,
    pearson,
    reliability_curve,
    wilson_interval,
)


@given(n=st.integers(1, 500), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(n: int, share: float, level: float) -> None:
    k = round(share * n)
    ours = wilson_interval(k, n, level=level)
    theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0.0 <= ours.low <= ours.value <= ours.high <= 1.0


def test_wilson_is_symmetric_and_takes_ties() -> None:
    half = wilson_interval(2.5, 5)
    assert half is not None
    assert half.value == 0.5
    assert half.low + half.high == pytest.approx(1.0, abs=1e-15)
    assert wilson_interval(0, 0) is None


def test_reliability_by_hand() -> None:
    p = torch.tensor([0.05, 0.15, 0.18, 0.95, 1.0])
    curve = reliability_curve(p, torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]))
    assert [b.num for b in curve] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert curve[1].confidence == pytest.approx(0.165)
    assert curve[1].accuracy == 0.5
    assert curve[9].accuracy == 1.0
    # (1·0.05 + 2·0.335 + 2·0.025) / 5
    assert expected_calibration_error(curve) == pytest.approx(0.154)


def test_a_value_on_an_edge_belongs_to_the_bin_above_it() -> None:
    curve = reliability_curve(torch.tensor([0.5, 0.75, 1.0]), torch.ones(3), num_bins=2, low=0.5)
    assert [(b.low, b.high, b.num) for b in curve] == [(0.5, 0.75, 1), (0.75, 1.0, 2)]


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=80))
def test_bins_share_out_all_predictions_and_errors_are_shares(
    rows: list[tuple[float, bool]],
) -> None:
    p = torch.tensor([row[0] for row in rows])
    outcome = torch.tensor([float(row[1]) for row in rows])
    curve = reliability_curve(p, outcome)
    assert sum(b.num for b in curve) == len(rows)
    error = expected_calibration_error(curve)
    assert error is not None
    # By the triangle inequality the error is at least the gap of the means.
    assert abs(float(p.double().mean() - outcome.double().mean())) - 1e-9 <= error <= 1.0


def test_a_sure_and_right_predictor_has_no_error() -> None:
    assert expected_calibration_error(reliability_curve(torch.ones(4), torch.ones(4))) == 0.0
    assert expected_calibration_error([ReliabilityBin(0.0, 1.0, 0, None, None)]) is None


@given(
    st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=3, max_size=40).filter(
        lambda rows: len({x for x, _ in rows}) > 1 and len({y for _, y in rows}) > 1
    )
)
def test_pearson_agrees_with_scipy(rows: list[tuple[int, int]]) -> None:
    x, y = (torch.tensor([row[i] for row in rows], dtype=torch.double) for i in (0, 1))
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x.numpy(), y.numpy())[0], abs=1e-9)


@pytest.mark.parametrize("y", [[2.0, 4.0, 6.0], [6.0, 4.0, 2.0], [1e-150, 2e-150, 3e-150]])
def test_a_straight_line_correlates_fully(y: list[float]) -> None:
    rising = y[0] < y[-1]
    r = pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(y, dtype=torch.double))
    assert r == pytest.approx(1.0 if rising else -1.0, abs=1e-12)


def test_what_does_not_vary_has_no_correlation() -> None:
    assert pearson(torch.tensor([0.1] * 5), torch.arange(5.0)) is None
    assert pearson(torch.tensor([1.0]), torch.tensor([1.0])) is None
