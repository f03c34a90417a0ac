"""The published laws against hand-made traces, and their known flaws, which are kept."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash import control
from kleash.control import ControlConfig, Signals
from kleash.control.law import exponential, log_ratio
from kleash.control.published import cosine
from kleash.records import KLReading

Reading = Callable[..., KLReading]

BATCH = Signals(num_responses=512)
CODE = ControlConfig(controller="ziegler", kl_coef=0.15, kl_target=6.0)
"""Sentiment and descriptiveness in the released code: horizon 10,000, batches of 512."""
PAPER = ControlConfig.model_validate(
    {"controller": "ziegler", "kl_coef": 1.0, "kl_target": 6.0, "ziegler": {"gain": 0.1}}
)


def trace(
    config: ControlConfig, readings: list[KLReading], signals: Signals = BATCH
) -> list[float]:
    state, betas = control.init(config), []
    for seen in readings:
        state = control.update(state, seen, signals)
        betas.append(state.kl_coef)
    return betas


def test_golden_trace_of_the_released_code(reading: Reading) -> None:
    """K = 512/10,000 = 0.0512; errors −0.2 (clipped), −0.1, 0, +0.1, +0.2 (clipped)."""
    found = trace(CODE, [reading(value) for value in (0.0, 5.4, 6.0, 6.6, 60.0)])
    by_hand = [
        0.15 * 0.98976,  # 0.148464
        0.148464 * 0.99488,  # 0.14770386...
        0.148464 * 0.99488,
        0.148464 * 0.99488 * 1.00512,
        0.148464 * 0.99488 * 1.00512 * 1.01024,
    ]

    assert found == pytest.approx(by_hand, rel=1e-12)
    assert found[-1] == pytest.approx(0.1499803396, abs=5e-11)


def test_the_papers_gain_is_a_tenth_whatever_the_batch(reading: Reading) -> None:
    for count in (32, 512):
        found = trace(PAPER, [reading(9.0)], Signals(num_responses=count))
        assert found == pytest.approx([1.02], rel=1e-15)


def test_a_tenfold_error_takes_116_steps_at_a_gain_of_a_tenth(reading: Reading) -> None:
    """The law's slew limit: log(10)/log(1.02) = 116.3."""
    found = trace(PAPER, [reading(1e6)] * 120)

    assert next(i for i, beta in enumerate(found, 1) if beta >= 10.0) == 117


def test_in_batches_of_32_the_released_code_takes_thousands_of_steps_for_a_decade(
    reading: Reading,
) -> None:
    """log(10)/log(1 + 0.2 · 0.0032) = 3,598.9."""
    found = trace(CODE, [reading(1e6)] * 3700, Signals(num_responses=32))

    assert next(i for i, beta in enumerate(found, 1) if beta >= 1.5) == 3599


def test_a_batch_of_six_horizons_does_not_turn_the_penalty_into_a_reward(reading: Reading) -> None:
    """The published factor would be 1 − 0.2 × 6 = −0.2."""
    state = control.update(control.init(CODE), reading(0.0), Signals(num_responses=60_000))

    assert state.kl_coef == pytest.approx(0.15 * 0.8)
    assert "gain capped" in state.note


def test_the_ppo_rule_doubles_halves_and_leaves_alone(reading: Reading) -> None:
    config = ControlConfig(controller="ppo", kl_coef=1.0, kl_target=6.0)

    assert trace(config, [reading(v) for v in (9.01, 9.0, 4.0, 3.99, 3.99)]) == [2, 2, 2, 1, 0.5]


def test_dual_ascent_adds_its_rate_times_the_error_and_stops_above_zero(reading: Reading) -> None:
    config = ControlConfig(controller="dual", kl_coef=0.05, kl_target=6.0)

    assert trace(config, [reading(v) for v in (10.0, 0.0, 0.0)]) == pytest.approx(
        [0.09, 0.03, 1e-9]
    )


def test_pid_by_hand(reading: Reading) -> None:
    """kp 1, ki 0.04, smoothing 1/2: KL 6, 7, 7.5 of readings 6, 8, 8; e = 2 (KL − 6)/(KL + 6)."""
    config = ControlConfig(controller="pid", kl_coef=1.0, kl_target=6.0)
    errors = [0.0, 2 / 13, 3 / 13.5]
    moves = [0.0, errors[1] * 1.04, errors[2] - errors[1] + 0.04 * errors[2]]
    beta, by_hand = 1.0, []
    for move in moves:
        beta *= (2 + move) / (2 - move)
        by_hand.append(beta)

    assert trace(config, [reading(v) for v in (6.0, 8.0, 8.0)]) == pytest.approx(by_hand, rel=1e-14)


def test_the_derivative_answers_to_a_bend_alone(reading: Reading) -> None:
    gains = {"kp": 0.0, "ki": 0.0, "kd": 0.1, "smoothing": 1.0}
    config = ControlConfig.model_validate(
        {"controller": "pid", "kl_coef": 1.0, "kl_target": 6.0, "pid": gains}
    )
    found = trace(config, [reading(v) for v in (6.0, 6.0, 8.0, 8.0, 8.0)])
    bend = 0.1 * 2 * 2 / 14

    assert found == pytest.approx([1, 1, (2 + bend) / (2 - bend), 1, 1], rel=1e-12)


@given(st.floats(1e-3, 1e3), st.floats(-1, 1))
def test_the_pade_forms_are_what_they_stand_for(ratio: float, exponent: float) -> None:
    """To third order: 2(r − 1)/(r + 1) = 2 tanh(log r/2), and |error| of exp < u³/12 + u⁴/12."""
    assert log_ratio(ratio, 1.0) == pytest.approx(2 * math.tanh(math.log(ratio) / 2), abs=1e-12)
    bound = abs(exponent) ** 3 * (1 + abs(exponent)) * 3 / 12
    assert abs(exponential(exponent) - math.exp(exponent)) <= bound + 1e-15


@given(st.floats(0, 1))
def test_the_series_is_the_cosine(half_turns: float) -> None:
    assert cosine(half_turns) == pytest.approx(math.cos(math.pi * half_turns), abs=1e-15)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.1, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4]),
        ("linear", [0.1, 0.2, 0.4, 0.35, 0.3, 0.25, 0.2]),
        ("cosine", [0.1, 0.2, 0.4, 0.37071068, 0.3, 0.22928932, 0.2]),
    ],
)
def test_schedules(shape: str, expected: list[float], reading: Reading) -> None:
    """Four steps of warm-up (the fourth is left out), then from 0.4 to 0.2 by step 8."""
    settings = {"shape": shape, "end": 0.2, "steps": 8, "warmup": 4}
    config = ControlConfig.model_validate(
        {"controller": "schedule", "kl_coef": 0.4, "schedule": settings}
    )
    found = trace(config, [reading(math.nan)] * 9)

    assert found[:2] + found[3:8] == pytest.approx(expected, abs=1e-8)
    assert found[8] == found[7]


@given(st.floats())
def test_fixed_never_moves(reading: Reading, value: float) -> None:
    config = ControlConfig(controller="fixed", kl_coef=0.05)

    assert trace(config, [reading(value)] * 3) == [0.05] * 3


def test_on_a_lagging_plant_the_published_law_overshoots_then_settles(reading: Reading) -> None:
    """Its known flaw, kept because it is the published law: while KL rises, beta is wound down.

    The plant is mirror descent on a Gaussian: the tilt l follows l <- (1 - eta beta) l + eta, and KL = l**2 / 2, so
    that beta = 1/sqrt(2 target) holds the target exactly.
    """
    state = control.init(PAPER.model_copy(update={"kl_coef": 0.5, "kl_target": 2.0}))
    tilt, drift = 0.0, []
    for _ in range(800):
        drift.append(tilt**2 / 2)
        state = control.update(state, reading(drift[-1]), BATCH)
        tilt = (1 - 0.1 * state.kl_coef) * tilt + 0.1

    assert max(drift) > 1.1 * 2.0
    assert all(abs(now - 2.0) < 0.01 for now in drift[-100:])
    assert state.kl_coef == pytest.approx(0.5, rel=0.01)
    assert all(abs(b / a - 1) < 0.2 for a, b in pairwise(drift[100:]))
