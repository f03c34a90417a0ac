"""The configuration of a run where it computes something."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.config import build
from kleash.errors import ConfigError
from kleash.train.config import OptimizerConfig, RunConfig


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "rates"),
    [
        ("constant", 0, {1: 1.0, 5: 1.0, 10: 1.0}),
        ("linear", 0, {1: 1.0, 2: 0.9, 6: 0.5, 10: 0.1}),
        ("constant", 4, {1: 0.25, 3: 0.75, 4: 1.0, 10: 1.0}),
        ("linear", 4, {1: 0.25, 3: 0.75 * 0.8, 4: 0.7, 10: 0.1}),
    ],
)
def test_the_learning_rate_by_hand(
    schedule: str, warmup_steps: int, rates: dict[int, float]
) -> None:
    config = OptimizerConfig.model_validate(
        {"learning_rate": 2.0, "schedule": schedule, "warmup_steps": warmup_steps}
    )
    assert {step: config.rate_at(step, 10) / 2.0 for step in rates} == pytest.approx(rates)


@given(st.integers(1, 60), st.integers(0, 60))
def test_a_linear_schedule_falls_by_equal_steps_and_every_step_moves(
    num_steps: int, warmup_steps: int
) -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=warmup_steps, schedule="linear")
    rates = [config.rate_at(step, num_steps) for step in range(1, num_steps + 1)]
    assert 0.0 < min(rates) <= max(rates) <= 0.5
    after = rates[max(0, warmup_steps - 1) :]
    falls = [a - b for a, b in pairwise(after)]
    assert falls == pytest.approx([0.5 / num_steps] * len(falls))


def test_a_length_penalty_that_no_response_can_reach_is_refused() -> None:
    """A setting that does nothing is a mistake that nobody sees."""
    settings = {"length_penalty": 0.5, "length_free": 23}
    rollout = {"max_new_tokens": 24}
    config = build(RunConfig, {"reward": settings, "rollout": rollout}, "run.toml")
    assert config.reward.length_free == 23
    with pytest.raises(ConfigError, match=r"length_free below rollout\.max_new_tokens, 24"):
        build(
            RunConfig, {"reward": {**settings, "length_free": 24}, "rollout": rollout}, "run.toml"
        )


def test_chi_squared_goes_with_a_kl_of_whole_responses_and_one_reference() -> None:
    """Beside a penalty of each token by itself it would be of no common objective."""
    for placement in ("exact", "reward"):
        penalty = {"placement": placement, "chi_squared": 0.5}
        resolved = build(RunConfig, {"penalty": penalty}, "run.toml").penalty.resolved
        assert (resolved.placement, resolved.chi_squared) == (placement, 0.5)
    for placement in ("loss", "forward"):
        penalty = {"placement": placement, "chi_squared": 0.5}
        with pytest.raises(ConfigError, match='placement = "exact" or "reward" beside chi_squared'):
            build(RunConfig, {"penalty": penalty}, "run.toml")
    several = {"model": {"reference": {"a": 0.5, "b": 0.5}}, "penalty": {"chi_squared": 0.5}}
    with pytest.raises(ConfigError, match=r"no penalty\.chi_squared with several references"):
        build(RunConfig, several, "run.toml")
    alone = {
        "rollout": {"num_prompts": 1, "group_size": 1},
        "algorithm": {"num_minibatches": 1},
        "penalty": {"chi_squared": 0.5},
    }
    with pytest.raises(ConfigError, match=r"rollout\.group_size of at least 2 with penalty\.chi"):
        build(RunConfig, alone, "run.toml")
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        build(RunConfig, {"penalty": {"chi_squared": -0.1}}, "run.toml")
