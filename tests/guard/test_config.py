"""Alarms as they are planned, and the plans that can't be."""

import pytest
from pydantic import ValidationError

from kleash.guard import GuardConfig
from kleash.guard.config import WATCHED, AlarmConfig


def test_a_concordance_is_watched_as_a_mean_of_what_lies_between_0_and_2() -> None:
    plan = AlarmConfig(mean=0.5, mean_time=100.0).plan("concordance")
    assert (plan.bound, plan.mean, plan.mean_time, plan.side) == (2.0, 1.5, 100.0, "lower")
    assert plan.share == 0.25


@pytest.mark.parametrize("name", sorted(set(WATCHED) - {"concordance"}))
def test_the_bound_that_none_was_given_is_a_multiple_of_the_mean(name: str) -> None:
    plan = AlarmConfig(mean=3.0).plan(name)
    assert plan.bound == (60.0 if WATCHED[name] == "upper" else 12.0)
    assert AlarmConfig(mean=3.0, bound=9.0).plan(name).bound == 9.0


@pytest.mark.parametrize(
    ("name", "alarm", "why"),
    [
        ("kl", {"mean": 2.0, "bound": 1.0}, "0 < mean < bound, not mean = 2, bound = 1"),
        ("kl", {"mean": 0.0}, "0 < mean < bound, not mean = 0, bound = 0"),
        ("kl", {"mean": 1e-9, "bound": 1.0}, "a mean of X from 1e-06 to 1, not 1e-09"),
        ("concordance", {"mean": 1.0}, "0 < mean < bound, not mean = 2, bound = 2"),
        ("entropy", {"mean": 1.0, "mean_time": 1e13}, "1 to 1e\\+12 updates, not 1e\\+13"),
    ],
)
def test_an_alarm_that_cannot_be_is_refused_by_name(name: str, alarm: dict, why: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}.mean and {name}.bound of a detector: {why}"):
        GuardConfig.model_validate({"alarms": {name: alarm}})


def test_a_canary_is_needed_where_something_is_measured_on_it() -> None:
    assert not GuardConfig(max_kl=1.0).needs_canary
    for name in ("max_kl_canary", "max_kl_slice", "max_path_log_ratio", "max_path_variation"):
        assert GuardConfig.model_validate({name: 1.0}).needs_canary
    assert GuardConfig(canary="prompts.txt").needs_canary
