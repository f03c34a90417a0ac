"""Limits that change in the middle of a run."""

from typing import Any

import pytest

from kleash.errors import ConfigError
from kleash.guard import (
    Drift,
    GuardConfig,
    amend,
    carry,
    limits_of,
    observe,
    reconcile,
    refusals,
    spend,
    start,
)

PLANNED = GuardConfig.model_validate(
    {
        "max_kl": 20.0,
        "max_kl_canary": 5.0,
        "max_path_log_ratio": 8.0,
        "alarms": {"kl": {"mean": 1.0}, "entropy": {"mean": 2.0}},
    }
)


def test_what_is_set_is_all_that_changes() -> None:
    values = {
        "guard.max_kl": 30.0,
        "guard.min_entropy": 0.5,
        "guard.on_breach": "reject",
        "guard.alarms.kl": {"mean": 2.0},
    }
    before, after = limits_of(PLANNED), limits_of(amend(PLANNED, values))
    assert {name for name in after if after[name] != before[name]} == set(values)
    assert amend(PLANNED, {}) == PLANNED
    assert amend(PLANNED, limits_of(PLANNED) and {"guard.max_kl": 20.0}) == PLANNED


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"guard.canary_prompts": 3}, "can't be overridden"),
        ({"guard.canary": "x"}, "can't be overridden"),
        ({"rl.kl_target": 3.0}, "can't be overridden"),
        ({"max_kl": 3.0}, "can't be overridden"),
        ({"guard.alarms.reward": None}, "can't be overridden"),
        ({"guard.max_kl": -1.0}, "max_kl"),
        ({"guard.max_kl": "30"}, "max_kl"),
        ({"guard.alarms.kl": {"mean": -1.0}}, "alarms"),
        ({"guard.max_path_log_ratio": None}, "switched on or off"),
        ({"guard.max_path_variation": 1.0}, "switched on or off"),
        ({"guard.alarms.concordance": {"mean": 0.0}}, "switched on or off"),
    ],
    ids=str,
)
def test_what_can_not_be_changed_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        amend(PLANNED, values)


def test_a_canary_set_is_not_made_in_the_middle_of_a_run() -> None:
    with pytest.raises(ConfigError, match="the canary set can't be switched"):
        amend(GuardConfig(), {"guard.max_kl_canary": 1.0})
    assert amend(PLANNED, {"guard.max_kl_slice": 1.0}).max_kl_slice == 1.0


def test_what_was_spent_stays_spent_under_another_budget() -> None:
    state = start(PLANNED, steps=8)
    assert state.budget is not None
    cost = Drift(sup_log_ratio=1.5)
    budget = reconcile(spend(state.budget, [cost]), Drift(sup_log_ratio=1.0))
    state = type(state)(refused=(3,), rollbacks=1, good=2, budget=budget, detectors=state.detectors)
    more = carry(state, PLANNED, amend(PLANNED, {"guard.max_path_log_ratio": 16.0}), steps=8)
    assert more.budget is not None
    assert (more.refused, more.rollbacks, more.good) == ((3,), 1, 2)
    assert (more.budget.spent, more.budget.updates, more.budget.measured) == (
        budget.spent,
        1,
        budget.measured,
    )
    assert more.budget.remaining.sup_log_ratio == pytest.approx(14.5)
    less = carry(state, PLANNED, amend(PLANNED, {"guard.max_path_log_ratio": 1.0}), steps=8)
    assert less.budget is not None
    assert less.budget.remaining.sup_log_ratio == 0.0
    assert refusals(less.budget, Drift(sup_log_ratio=0.1))


def test_an_alarm_with_another_plan_starts_anew_and_the_others_go_on() -> None:
    state = start(PLANNED, steps=8)
    plans = PLANNED.alarms.plans()
    seen = {name: observe(each, plans[name][1], 3.0) for name, each in state.detectors.items()}
    state = type(state)(budget=state.budget, detectors=seen)
    values = {"guard.alarms.kl": {"mean": 2.0}, "guard.alarms.length": {"mean": 4.0}}
    after = carry(state, PLANNED, amend(PLANNED, values), steps=8)
    assert sorted(after.detectors) == ["entropy", "kl", "length"]
    assert after.detectors["entropy"] == seen["entropy"]
    assert seen["kl"].count == 1
    assert (after.detectors["kl"].count, after.detectors["length"].count) == (0, 0)
    gone = carry(after, PLANNED, amend(PLANNED, {"guard.alarms.kl": None}), steps=8)
    assert sorted(gone.detectors) == ["entropy"]
    # What an alarm does is no part of its plan.
    acting = amend(PLANNED, {"guard.alarms.kl": {"mean": 1.0, "action": "halt"}})
    assert carry(state, PLANNED, acting, steps=8).detectors["kl"] == seen["kl"]
    assert carry(start(GuardConfig(), 8), GuardConfig(), GuardConfig(max_kl=1.0), 8).budget is None
