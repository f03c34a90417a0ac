"""What a controller's configuration refuses, before anything is trained."""

import math

import pytest
from pydantic import ValidationError

from kleash.control import ControlConfig


def test_defaults_with_a_target() -> None:
    config = ControlConfig(kl_target=4.0)

    assert (config.controller, config.kl_coef, config.kl_unit) == ("adaptive", 0.1, "response")
    assert (config.kl_horizon, config.kl_error_clip) == (10_000, 0.2)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "needs kl_target"),
        ({"kl_target": 0.0}, "greater than 0"),
        ({"kl_target": -4.0}, "greater than 0"),
        ({"kl_target": math.nan}, "finite number"),
        ({"kl_target": math.inf}, "finite number"),
        ({"kl_target": 4.0, "kl_coef": 0.0}, "cannot start at 0"),
        ({"kl_target": 4.0, "kl_coef": 1e-10}, "cannot start at 1e-10"),
        ({"kl_target": 4.0, "kl_coef": 1e10}, "cannot start at 1e\\+10"),
        ({"controller": "fixed", "kl_coef": -0.1}, "greater than or equal to 0"),
        ({"controller": "fixed", "kl_coef": math.nan}, "finite number"),
        ({"controller": "fixed", "kl_coef": math.inf}, "finite number"),
        ({"kl_target": 4.0, "kl_horizon": 0}, "greater than 0"),
        ({"kl_target": 4.0, "kl_horizon": -1}, "greater than 0"),
        ({"kl_target": 4.0, "kl_error_clip": 0.0}, "greater than 0"),
        ({"kl_target": 4.0, "kl_error_clip": 1.0}, "less than 1"),
        ({"kl_target": 4.0, "kl_unit": "batch"}, "'response' or 'token'"),
        ({"kl_target": 4.0, "controller": "pid"}, "'fixed' or 'adaptive'"),
        ({"kl_target": 4.0, "target_kl": 6.0}, "Extra inputs"),
    ],
)
def test_refused(section: dict, words: str) -> None:
    """Pitfall 6: a target, a horizon or an adaptive β of 0 among them."""
    with pytest.raises(ValidationError, match=words):
        ControlConfig.model_validate(section)


def test_no_penalty_is_a_fixed_zero() -> None:
    assert ControlConfig(controller="fixed", kl_coef=0.0).kl_coef == 0.0
