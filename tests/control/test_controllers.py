"""The controllers against the published law by hand, and against every number that may come."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash import control
from kleash.control import CONTROLLERS, MAX_KL_COEF, MIN_KL_COEF, ControlConfig, Signals
from kleash.control.controllers import AdaptiveState
from kleash.errors import ConfigError, InputError
from kleash.records import KLReading

BATCH = Signals(num_responses=512)
ZIEGLER = ControlConfig(kl_coef=0.15, kl_target=6.0)
"""Sentiment and descriptiveness in the released code: horizon 10,000, batches of 512."""


def reading(value: float) -> KLReading:
    return KLReading(
        value=value,
        low=None,
        high=None,
        n=512,
        clusters=512,
        unit="response",
        direction="policy_ref",
        estimator="exact",
        reference="base",
    )


def adaptive(config: ControlConfig = ZIEGLER) -> AdaptiveState:
    state = control.init(config)
    assert isinstance(state, AdaptiveState)
    return state


def step(state: control.State, value: float, signals: Signals = BATCH) -> AdaptiveState:
    after = control.update(state, reading(value), signals)
    assert isinstance(after, AdaptiveState)
    return after


def test_golden_trace_of_the_released_code() -> None:
    """K = 512/10,000 = 0.0512; errors -0.2 (clipped), -0.1, 0, +0.1, +0.2 (clipped)."""
    state, trace = adaptive(), []
    for value in (0.0, 5.4, 6.0, 6.6, 60.0):
        state = step(state, value)
        trace.append(state.kl_coef)

    by_hand = [
        0.15 * 0.98976,  # 0.148464
        0.148464 * 0.99488,  # 0.14770386...
        0.148464 * 0.99488,
        0.148464 * 0.99488 * 1.00512,
        0.148464 * 0.99488 * 1.00512 * 1.01024,
    ]
    assert trace == pytest.approx(by_hand, rel=1e-12)
    assert trace[-1] == pytest.approx(0.1499803396, abs=5e-11)


def test_the_papers_gain_of_a_tenth_is_a_horizon_of_ten_batches() -> None:
    state = adaptive(ControlConfig(kl_coef=1.0, kl_target=6.0, kl_horizon=5120))

    assert step(state, 9.0).kl_coef == pytest.approx(1.02, rel=1e-15)


def test_a_tenfold_error_takes_116_steps_at_a_gain_of_a_tenth() -> None:
    """The law's slew limit: log(10)/log(1.02) = 116.3."""
    state = adaptive(ControlConfig(kl_coef=0.1, kl_target=6.0, kl_horizon=5120))
    steps = 0
    while state.kl_coef < 1.0:
        state, steps = step(state, 1e6), steps + 1

    assert steps == 117


def test_at_target_nothing_moves() -> None:
    assert step(adaptive(), 6.0) == adaptive()


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_drift_never_means_less_penalty(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert step(adaptive(), low).kl_coef <= step(adaptive(), high).kl_coef


@given(st.floats(min_value=6.001, max_value=1e300))
def test_above_target_the_penalty_rises_and_below_it_falls(value: float) -> None:
    assert step(adaptive(), value).kl_coef > 0.15
    assert step(adaptive(), 36.0 / value).kl_coef < 0.15


@given(
    st.floats(MIN_KL_COEF, MAX_KL_COEF),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    st.floats(),
    st.integers(),
    st.sampled_from(["exact", "k1", "k3"]),
)
def test_whatever_is_read_the_penalty_stays_a_finite_positive_number(
    kl_coef: float, kl_target: float, value: float, num_responses: int, estimator: str
) -> None:
    state = adaptive(ControlConfig(kl_coef=kl_coef, kl_target=kl_target))
    after = control.update(
        state,
        replace(reading(value), estimator=estimator),
        Signals(num_responses=num_responses),
    )

    assert MIN_KL_COEF <= after.kl_coef <= MAX_KL_COEF
    assert 0.8 * kl_coef <= after.kl_coef * (1 + 1e-12) <= 1.2 * kl_coef * (1 + 1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -5.0])
def test_an_impossible_reading_holds_the_penalty_and_says_so(value: float) -> None:
    """Pitfall 5: the published code keeps a NaN for ever, and lowers the penalty on a negative KL."""
    held = step(adaptive(), value)

    assert held.kl_coef == 0.15
    assert held.note.startswith("held: ")
    assert step(held, 9.0) == step(adaptive(), 9.0)  # nothing is left of it


def test_rounding_below_zero_is_a_reading_of_zero() -> None:
    assert step(adaptive(), -1e-7) == step(adaptive(), 0.0)


def test_a_sampled_log_ratio_may_be_negative() -> None:
    k1 = replace(reading(-0.5), estimator="k1")

    assert control.update(adaptive(), k1, BATCH) == step(adaptive(), 0.0)


def test_a_batch_of_six_horizons_does_not_turn_the_penalty_into_a_reward() -> None:
    """The published factor would be 1 - 0.2 x 6 = -0.2."""
    after = step(adaptive(), 0.0, Signals(num_responses=60_000))

    assert after.kl_coef == pytest.approx(0.15 * 0.8)
    assert "gain capped" in after.note


def test_a_reading_of_no_responses_holds() -> None:
    after = step(adaptive(), 0.0, Signals(num_responses=0))

    assert (after.kl_coef, after.note) == (0.15, "held: the reading is of no responses")


def test_the_rails_stop_a_lasting_error_and_let_go_again() -> None:
    state = adaptive(ControlConfig(kl_coef=MIN_KL_COEF, kl_target=6.0))
    stopped = step(state, 0.0)

    assert stopped.kl_coef == MIN_KL_COEF
    assert "rail" in stopped.note
    assert step(stopped, 12.0).kl_coef > MIN_KL_COEF


@pytest.mark.parametrize("wrong", [{"unit": "token"}, {"direction": "new_old"}])
def test_another_kl_than_the_targets_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="kl_policy_ref_per_response"):
        control.update(adaptive(), replace(reading(6.0), **wrong), BATCH)


def test_a_target_per_token_takes_readings_per_token() -> None:
    state = adaptive(ControlConfig(kl_target=0.1, kl_unit="token"))

    assert step_of(state, replace(reading(0.2), unit="token")) > 0.1


def step_of(state: control.State, seen: KLReading) -> float:
    return control.update(state, seen, BATCH).kl_coef


@given(st.floats())
def test_fixed_never_moves(value: float) -> None:
    state = control.init(ControlConfig(controller="fixed", kl_coef=0.05))

    assert control.update(state, reading(value), BATCH) == state


@given(st.lists(st.floats(0, 100), max_size=20))
def test_a_stored_state_continues_exactly_where_it_was(values: list[float]) -> None:
    whole = resumed = control.init(ControlConfig(kl_target=6.0))
    for value in values:
        whole = step(whole, value)
        resumed = step(control.from_json(json.loads(json.dumps(resumed.to_json()))), value)

    assert resumed == whole


@pytest.mark.parametrize("controller", sorted(CONTROLLERS))
def test_a_state_survives_json(controller: str) -> None:
    state = control.init(ControlConfig.model_validate({"controller": controller, "kl_target": 2.0}))

    assert state.to_json()["controller"] == controller
    assert control.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize(
    "change",
    [
        {"kl_coef": "nan"},
        {"kl_coef": -1.0},
        {"kl_coef": "0.15"},
        {"kl_target": None},
        {"controller": "pid"},
        {"note": 3},
        {"extra": 1},
    ],
)
def test_a_state_that_was_not_written_here_is_refused(change: dict) -> None:
    with pytest.raises(InputError, match="controller state"):
        control.from_json({**adaptive().to_json(), **change})


def test_a_state_with_a_field_missing_is_refused() -> None:
    stored = adaptive().to_json()
    del stored["note"]

    with pytest.raises(InputError, match="missing or unknown"):
        control.from_json(stored)


def test_on_a_lagging_plant_the_published_law_overshoots_then_settles() -> None:
    """Its known flaw, kept because it is the published law: while KL rises, beta is wound down.

    The plant is mirror descent on a Gaussian: the tilt l follows l <- (1 - eta beta) l + eta, and
    KL = l**2 / 2, so that beta = 1/sqrt(2 target) holds the target exactly.
    """
    state = adaptive(ControlConfig(kl_coef=0.5, kl_target=2.0, kl_horizon=5120))
    tilt, drift = 0.0, []
    for _ in range(800):
        tilt = (1 - 0.1 * state.kl_coef) * tilt + 0.1
        drift.append(tilt**2 / 2)
        state = step(state, drift[-1])

    assert max(drift) > 1.1 * 2.0
    assert all(abs(now - 2.0) < 0.01 for now in drift[-100:])
    assert state.kl_coef == pytest.approx(0.5, rel=0.01)
    assert all(abs(b / a - 1) < 0.2 for a, b in pairwise(drift[100:]))
