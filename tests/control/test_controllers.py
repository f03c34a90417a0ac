"""What holds for every controller, whatever it is shown."""

import ast
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash import control
from kleash.control import CONTROLLERS, MAX_KL_COEF, MIN_KL_COEF, ControlConfig, Signals
from kleash.control.config import PIDConfig
from kleash.errors import ConfigError, InputError
from kleash.records import KLReading

Reading = Callable[..., KLReading]

TARGET = 6.0
CONFIGS = {
    name: ControlConfig.model_validate({"controller": name, "kl_target": TARGET, "kl_coef": 0.15})
    for name in CONTROLLERS
}
TARGETED = sorted(set(CONTROLLERS) - {"fixed", "schedule"})
SLEW = {"ziegler": 1.25, "ppo": 2.0, "pid": 2.3 / 1.7, "tilt": 4.0}
"""Largest factor of β in one step: 1/(1 − 0.2), 2, exp 0.3 in its Padé form, and `[rl.tilt]`'s own."""

whole_signals = st.builds(
    Signals,
    num_responses=st.integers(-1, 10**7),
    reward_std=st.none() | st.floats(),
    log_ratio_std=st.none() | st.floats(),
    correlation=st.none() | st.floats(),
    response_length=st.none() | st.floats(),
    momentum=st.floats(0, 0.999) | st.floats(),
    age=st.integers(-1, 70),
    applied=st.booleans(),
)
steps = st.lists(
    st.tuples(
        st.floats() | st.floats(0, 100),
        st.none() | st.floats() | st.floats(0, 10),
        whole_signals,
        st.sampled_from(["exact", "k1"]),
    ),
    max_size=12,
)


def plain(spread: float = 1.0) -> Signals:
    return Signals(
        num_responses=512,
        reward_std=spread,
        log_ratio_std=2.0,
        correlation=0.5,
        response_length=20.0,
    )


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
@settings(max_examples=40)
@given(shown=steps)
def test_whatever_is_shown_beta_stays_finite_on_its_rails_and_within_its_slew(
    name: str, reading: Reading, shown: list[tuple]
) -> None:
    """Pitfall 5: NaN, infinities, negative KL and absurd signals among the readings."""
    config = CONFIGS[name].model_copy(update={"kl_coef_min": 1e-3, "kl_coef_max": 50.0})
    state = control.init(config)
    for value, error, signals, estimator in shown:
        after = control.update(state, reading(value, error, estimator=estimator), signals)
        assert math.isfinite(after.kl_coef)
        if name in TARGETED:
            assert 1e-3 <= after.kl_coef <= 50.0
        if name in SLEW:
            bound = SLEW[name] * (1 + 1e-9)
            assert state.kl_coef / bound <= after.kl_coef <= state.kl_coef * bound
        state = after


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
@settings(max_examples=40)
@given(shown=steps)
def test_a_stored_state_continues_exactly_where_it_was(
    name: str, reading: Reading, shown: list[tuple]
) -> None:
    """Through JSON at every step, to the last bit."""
    whole = resumed = control.init(CONFIGS[name])
    for value, error, signals, estimator in shown:
        seen = reading(value, error, estimator=estimator)
        whole = control.update(whole, seen, signals)
        stored = json.loads(json.dumps(resumed.to_json(), allow_nan=False))
        resumed = control.update(control.from_json(stored, CONFIGS[name]), seen, signals)

    assert resumed == whole


@pytest.mark.parametrize("name", TARGETED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -5.0])
def test_an_impossible_reading_holds_beta_and_says_so(
    name: str, reading: Reading, value: float
) -> None:
    """Pitfall 5: the published code keeps a NaN for ever, and lowers the penalty on a negative KL."""
    before = control.update(control.init(CONFIGS[name]), reading(6.0, 0.3), plain())
    held = control.update(before, reading(value), plain())

    assert held.kl_coef == before.kl_coef
    assert held.note.startswith("held: ")
    assert math.isfinite(control.update(held, reading(6.0, 0.3), plain()).kl_coef)


@pytest.mark.parametrize("name", sorted(set(TARGETED) - {"tilt"}))
def test_nothing_is_left_of_an_impossible_reading(name: str, reading: Reading) -> None:
    """Not so `tilt`, which knows that the policy moves on while nothing is read."""
    before = control.init(CONFIGS[name])
    held = control.update(before, reading(math.nan), plain())
    one, other = (control.update(state, reading(9.0), plain()) for state in (held, before))

    assert (one.kl_coef, one.memory) == (other.kl_coef, other.memory)


@pytest.mark.parametrize("name", TARGETED)
def test_a_reading_of_no_responses_holds(name: str, reading: Reading) -> None:
    after = control.update(control.init(CONFIGS[name]), reading(0.0), Signals(num_responses=0))

    assert (after.kl_coef, after.note) == (0.15, "held: the reading is of no responses")


@pytest.mark.parametrize("name", TARGETED)
def test_rounding_below_zero_is_a_reading_of_zero(name: str, reading: Reading) -> None:
    config = CONFIGS[name]
    below, at = (
        control.update(control.init(config), reading(value), plain()) for value in (-1e-7, 0.0)
    )

    assert below.kl_coef == pytest.approx(at.kl_coef, rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(TARGETED) - {"tilt"}))
@given(one=st.floats(0, 1e6), other=st.floats(0, 1e6))
def test_more_drift_never_means_less_penalty(
    name: str, reading: Reading, one: float, other: float
) -> None:
    low, high = (
        control.update(control.init(CONFIGS[name]), reading(value), plain()).kl_coef
        for value in sorted((one, other))
    )

    assert low <= high


@pytest.mark.parametrize("name", sorted(set(TARGETED) - {"tilt"}))
def test_at_target_nothing_moves(name: str, reading: Reading) -> None:
    state = control.init(CONFIGS[name])
    for _ in range(3):
        state = control.update(state, reading(TARGET), plain())

    assert state.kl_coef == 0.15


@pytest.mark.parametrize("name", TARGETED)
def test_the_rails_stop_a_lasting_error_and_let_go_again(name: str, reading: Reading) -> None:
    """And nothing has wound up behind them: the first reading on the other side moves β off the rail."""
    config = CONFIGS[name].model_copy(update={"kl_coef_min": 0.1, "kl_coef_max": 0.2})
    state = control.init(config)
    for _ in range(300):
        state = control.update(state, reading(0.01, 0.001), plain())
    assert state.kl_coef == 0.1
    assert "rail" in state.note
    for _ in range(4):
        state = control.update(state, reading(60.0, 1.0), plain())

    assert state.kl_coef > 0.1


@pytest.mark.parametrize("name", TARGETED)
@pytest.mark.parametrize("wrong", [{"unit": "token"}, {"direction": "new_old"}])
def test_another_kl_than_the_targets_is_refused(name: str, reading: Reading, wrong: dict) -> None:
    with pytest.raises(ConfigError, match="kl_policy_ref_per_response"):
        control.update(control.init(CONFIGS[name]), reading(6.0, **wrong), plain())


@pytest.mark.parametrize("name", TARGETED)
def test_a_budget_is_held_with_the_upper_end_of_the_interval(name: str, reading: Reading) -> None:
    """kl_at_most: what counts is what KL may be, not what it is most likely."""
    budget = CONFIGS[name].model_copy(update={"kl_at_most": True})
    seen = replace(reading(5.0), low=4.0, high=9.0)
    mean, most = (control.update(control.init(c), seen, plain()) for c in (CONFIGS[name], budget))
    as_if = control.update(control.init(CONFIGS[name]), replace(seen, value=9.0), plain())

    assert most.kl_coef == as_if.kl_coef
    assert most.kl_coef >= mean.kl_coef


@pytest.mark.parametrize(
    "change",
    [
        {"kl_coef": "nan"},
        {"kl_coef": math.nan},
        {"kl_coef": -1.0},
        {"kl_coef": "0.15"},
        {"kl_coef": True},
        {"step": -1},
        {"step": 1.0},
        {"controller": "pid"},
        {"note": 3},
        {"memory": {"kl": 1.0}},
        {"memory": []},
        {"extra": 1},
    ],
)
def test_a_state_that_was_not_written_here_is_refused(change: dict) -> None:
    stored = control.init(CONFIGS["tilt"]).to_json()
    with pytest.raises(InputError, match="controller state"):
        control.from_json({**stored, **change}, CONFIGS["tilt"])


def test_a_state_with_a_field_missing_is_refused() -> None:
    stored = control.init(CONFIGS["tilt"]).to_json()
    del stored["note"]

    with pytest.raises(InputError, match="Field required"):
        control.from_json(stored, CONFIGS["tilt"])


def test_the_default_rails_are_those_of_the_room() -> None:
    assert (CONFIGS["tilt"].kl_coef_min, CONFIGS["tilt"].kl_coef_max) == (MIN_KL_COEF, MAX_KL_COEF)


def test_laws_use_only_arithmetic_that_every_machine_rounds_alike() -> None:
    """exp, log, powers and sum() differ in the last bit between C libraries and Pythons, and a replay must not."""
    allowed = {"sqrt", "isfinite", "inf"}
    for path in Path(control.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "math":
                assert {name.name for name in node.names} <= allowed, path.name
            assert not (isinstance(node, ast.Import) and node.names[0].name == "math"), path.name
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                # 10**12 is a whole number, and exact.
                assert isinstance(node.left, ast.Constant), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("sum", "pow"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("name", TARGETED)
@pytest.mark.parametrize("high", [math.nan, math.inf])
def test_a_budget_without_an_upper_end_holds_beta(name: str, reading: Reading, high: float) -> None:
    budget = CONFIGS[name].model_copy(update={"kl_at_most": True})
    after = control.update(control.init(budget), replace(reading(5.0), low=4.0, high=high), plain())

    assert after.kl_coef == 0.15
    assert after.note.startswith("held: ")


@pytest.mark.parametrize("name", TARGETED)
def test_a_start_that_nobody_named_is_on_the_rails_too(name: str, reading: Reading) -> None:
    config = ControlConfig.model_validate(
        {"controller": name, "kl_target": TARGET, "kl_coef_min": 1.0}
    )

    assert control.update(control.init(config), reading(math.nan), plain()).kl_coef == 1.0


def test_a_controller_whose_own_numbers_overflow_holds_beta(reading: Reading) -> None:
    """Gains of 1e308 are allowed; what they make of an error of 1e5 is no number, and is not put in force."""
    gains = PIDConfig(kp=0.0, ki=1.7e308, kd=1.7e308, smoothing=1.0)
    state = control.init(ControlConfig(controller="pid", kl_target=1.0, pid=gains))
    for kl in (0.0, 3.0, 1e5, 1.0, 1.0):
        state = control.update(state, reading(kl), Signals(num_responses=64))
        assert math.isfinite(state.kl_coef)
        assert control.from_json(state.to_json(), state.config) == state


def test_at_most_without_an_interval_holds_the_mean_and_says_so(reading: Reading) -> None:
    state = control.init(
        ControlConfig(controller="ppo", kl_target=1.0, kl_coef=1.0, kl_at_most=True)
    )
    alone = replace(reading(1.4), low=None, high=None)
    after = control.update(state, alone, Signals(num_responses=1))

    assert after.kl_coef == 1.0  # within its band of 1.5
    assert "no interval" in after.note
    assert control.update(state, reading(1.4, 0.2), Signals(num_responses=64)).note == ""
