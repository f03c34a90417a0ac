"""What a controller's configuration refuses, before anything is trained."""

import math

import pytest
from pydantic import ValidationError

from kleash.control import ControlConfig


def test_defaults_with_a_target() -> None:
    config = ControlConfig(kl_target=4.0)

    assert (config.controller, config.kl_coef, config.kl_unit) == ("tilt", None, "response")
    assert (config.ziegler.horizon, config.ziegler.error_clip) == (10_000, 0.2)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "kl_target, in nats"),
        ({"kl_target": 0.0}, "greater than or equal to 0.000000000000001"),
        ({"kl_target": -4.0}, "greater than or equal to 0.000000000000001"),
        ({"kl_target": 1e-16}, "greater than or equal to 0.000000000000001"),
        ({"kl_target": 1e7}, "less than or equal to 1000000"),
        ({"kl_target": math.nan}, "finite number"),
        ({"kl_target": math.inf}, "finite number"),
        ({"kl_target": 4.0, "kl_coef": 0.0}, "kl_coef from 1e-09 to 1e\\+09"),
        ({"kl_target": 4.0, "kl_coef": 1e-10}, "kl_coef from 1e-09 to 1e\\+09"),
        ({"kl_target": 4.0, "kl_coef": 1e10}, "less than or equal to 1000000000"),
        ({"kl_target": 4.0, "kl_coef_min": 0.5, "kl_coef": 0.1}, "kl_coef from 0.5 to 1e\\+09"),
        ({"kl_target": 4.0, "kl_coef_min": 2.0, "kl_coef_max": 1.0}, "kl_coef_min no larger"),
        ({"controller": "fixed", "kl_coef": -0.1}, "greater than or equal to 0"),
        ({"controller": "fixed", "kl_coef": math.nan}, "finite number"),
        ({"controller": "fixed", "kl_coef": math.inf}, "finite number"),
        ({"controller": "fixed", "kl_ramp": 5}, "the fixed controller has none"),
        ({"controller": "schedule", "kl_at_most": True}, "the schedule controller has none"),
        ({"kl_target": 4.0, "ziegler": {"horizon": 0}}, "greater than 0"),
        ({"kl_target": 4.0, "ziegler": {"gain": 0.0}}, "greater than 0"),
        ({"kl_target": 4.0, "ziegler": {"error_clip": 1.0}}, "less than 1"),
        ({"kl_target": 4.0, "pid": {"slew": 1.0}}, "less than 1"),
        ({"kl_target": 4.0, "tilt": {"slew": 1.0}}, "greater than 1"),
        ({"kl_target": 4.0, "tilt": {"steps_to_target": 0.5}}, "greater than or equal to 1"),
        ({"kl_target": 4.0, "kl_unit": "batch"}, "'response' or 'token'"),
        ({"kl_target": 4.0, "controller": "adaptive"}, "controller = 'ziegler'"),
        ({"kl_target": 4.0, "target_kl": 6.0}, "Extra inputs"),
        ({"kl_target": 4.0, "kl_horizon": 500}, "ziegler.horizon, as kl_horizon"),
        ({"kl_target": 4.0, "pid": {"kp": 2.0}}, "no \\[rl.pid\\], which the tilt controller"),
        ({"kl_target": 4.0, "kl_ramp": 10**200}, "less than or equal to 1000000000"),
    ],
)
def test_refused(section: dict, words: str) -> None:
    """Pitfall 6: a target, a horizon or an adaptive β of 0 among them."""
    with pytest.raises(ValidationError, match=words):
        ControlConfig.model_validate(section)


def test_no_penalty_is_a_fixed_zero() -> None:
    assert ControlConfig(controller="fixed", kl_coef=0.0).kl_coef == 0.0


def test_a_linear_ramp_spends_the_same_nats_every_step() -> None:
    config = ControlConfig(kl_target=6.0, kl_ramp=4)

    assert [config.target_at(step) for step in (1, 2, 3, 4, 5)] == [1.5, 3.0, 4.5, 6.0, 6.0]


def test_a_quadratic_ramp_goes_the_same_way_every_step() -> None:
    """√(2 KL), the length of the way, grows evenly."""
    config = ControlConfig(kl_target=6.0, kl_ramp=4, kl_ramp_shape="quadratic")
    way = [math.sqrt(2 * config.target_at(step)) for step in (1, 2, 3, 4)]

    assert [b - a for a, b in zip([0.0, *way], way, strict=False)] == pytest.approx([way[0]] * 4)
