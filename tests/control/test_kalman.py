"""The filter against Bayes' rule worked out another way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.control.kalman import Belief, certain_of, correct, predict

COV = ((2.0, 0.5, 0.1), (0.5, 1.0, -0.2), (0.1, -0.2, 0.5))
BELIEF = Belief(mean=(1.0, -1.0, 2.0), cov=COV)


def test_a_reading_is_combined_by_bayes_rule() -> None:
    """In information form: Λ = P⁻¹ + hhᵀ/R, mean = Λ⁻¹ (P⁻¹ m + h y/R)."""
    found = correct(BELIEF, 2.0, 0.7)
    precision = np.linalg.inv(COV)
    precision[0, 0] += 1 / 0.7
    weighted = np.linalg.inv(COV) @ BELIEF.mean + np.array([2.0 / 0.7, 0, 0])

    assert found.mean == pytest.approx(np.linalg.solve(precision, weighted), rel=1e-12)
    assert np.array(found.cov) == pytest.approx(np.linalg.inv(precision), rel=1e-12)


def test_many_readings_of_what_stands_still_are_averaged() -> None:
    belief = Belief(mean=(0.0,), cov=((1e6,),))
    values = [1.0, 3.0, 2.0, 2.5]
    for value in values:
        belief = correct(belief, value, 1.0)

    assert belief.mean[0] == pytest.approx(np.mean(values), rel=1e-5)
    assert belief.cov[0][0] == pytest.approx(1 / 4, rel=1e-5)


def test_a_move_carries_the_covariance_along() -> None:
    jacobian = ((1.0, 0.1, 0.0), (0.0, 0.9, 0.2), (0.0, 0.0, 1.0))
    moved = predict(BELIEF, (5.0, 6.0, 7.0), jacobian, (0.01, 0.02, 0.03))
    expected = np.array(jacobian) @ COV @ np.array(jacobian).T + np.diag([0.01, 0.02, 0.03])

    assert moved.mean == (5.0, 6.0, 7.0)
    assert np.array(moved.cov) == pytest.approx(expected, rel=1e-12)


def test_a_surprise_widens_the_belief_and_a_freak_counts_as_four_deviations() -> None:
    one = Belief(mean=(0.0,), cov=((1.0,),))
    usual, surprising, freak = (correct(one, value, 1.0) for value in (2.0, 5.0, 1e6))

    assert usual.mean[0] == pytest.approx(1.0)
    assert surprising.mean[0] > 2.5  # more than the half that was believed to be its due
    assert freak.mean[0] <= 4 * 2**0.5
    assert correct(one, 1e6, 1.0, most=float("inf")).mean[0] == pytest.approx(1e6, rel=1e-4)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-9, 1e3)), max_size=30))
def test_covariances_stay_symmetric_with_no_negative_variance(
    readings: list[tuple[float, float]],
) -> None:
    belief = Belief(mean=(0.0, 0.0), cov=certain_of((1.0, 1e-12)))
    for value, variance in readings:
        belief = predict(belief, belief.mean, ((1.0, 1.0), (0.0, 1.0)), (1e-6, 0.0))
        belief = correct(belief, value, variance)
        assert belief.cov[0][1] == belief.cov[1][0]
        assert min(belief.cov[0][0], belief.cov[1][1]) >= 0.0
        assert belief.is_sound
