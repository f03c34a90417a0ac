"""The guard between steps: what is spent, what repeats itself, what rings; and a stored state that is none."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest

from kleash import guard
from kleash.errors import InputError
from kleash.guard import Decision, Evidence, GuardConfig, GuardState
from kleash.ledger import encode
from kleash.records import Distance, UpdateFacts
from tests.guarded_run import FACTS, GUARD, KL, MOVED, SAMPLER, unmoved

FULL = GuardConfig.model_validate(GUARD)
BUDGET = GuardConfig(max_path_log_ratio=4.0, burst=4.0)
"""In eight steps: half a nat a step, and two at most."""


def moved(nats: float, away: float = 0.0) -> UpdateFacts:
    """An update that costs so much."""
    return unmoved(
        FACTS,
        moved=Distance(sup_log_ratio=nats, total_variation=0.0),
        away=Distance(sup_log_ratio=away, total_variation=0.0),
    )


def decide(
    config: GuardConfig,
    state: GuardState,
    step: int,
    facts: UpdateFacts = FACTS,
    every: int | None = 2,
    **seen: float | None,
) -> Decision:
    evidence = Evidence(kl=KL, facts=facts, sampler=SAMPLER)
    return guard.decide(config, state, step, evidence, seen, every)


def start(config: GuardConfig) -> GuardState:
    return guard.start(config, steps=8)


def spent(state: GuardState) -> float:
    assert state.budget is not None
    assert state.budget.spent.sup_log_ratio is not None
    return state.budget.spent.sup_log_ratio


def test_what_is_kept_is_charged_and_what_is_refused_is_not() -> None:
    first = decide(BUDGET, start(BUDGET), 1, moved(1.5))
    assert (first.verdict.action, round(spent(first.state), 9)) == ("accept", 1.5)
    over = decide(BUDGET, first.state, 2, moved(2.5))
    assert over.verdict.action == "reject"
    assert over.verdict.reasons == (
        "sup_log_ratio of the update is 2.5, over its allowance of 2 (2.5 remains of 4)",
    )
    assert spent(over.state) == spent(first.state)
    assert over.state.refused == (2,)


def test_a_budget_that_is_spent_ends_the_run() -> None:
    state = start(BUDGET)
    for step in (1, 2):
        allowed = guard.allowance(state.budget).sup_log_ratio if state.budget else None
        assert allowed is not None
        state = decide(BUDGET, state, step, moved(allowed)).state
    ended = decide(BUDGET, state, 3, moved(0.5))
    assert ended.verdict.action == "halt"
    assert "over its allowance" in ended.verdict.reasons[0]


def test_a_budget_that_is_spent_ends_the_run_whatever_else_is_broken_and_goes_back_nowhere() -> (
    None
):
    """Going back refunds nothing."""
    config = GuardConfig(max_path_log_ratio=4.0, burst=4.0, max_kl_new_old=0.1)
    state = start(config)
    for step in (1, 2):
        allowed = guard.allowance(state.budget).sup_log_ratio if state.budget else None
        assert allowed is not None
        state = decide(config, state, step, moved(allowed)).state
    further = replace(moved(0.5), kl_new_old=replace(MOVED, value=0.2))
    for each in (state, replace(state, good=2)):
        ended = decide(config, each, 3, further)
        assert ended.verdict.action == "halt"
        assert "max_kl_new_old" in ended.verdict.reasons[0]
        assert "over its allowance" in ended.verdict.reasons[1]


def test_less_than_a_hundredth_of_a_share_is_nothing_left() -> None:
    config = GuardConfig(max_path_log_ratio=8.0, burst=8.0)  # in eight steps: one each
    for spent, action in ((7.98, "reject"), (7.995, "halt")):
        state = decide(config, start(config), 1, moved(spent)).state
        assert decide(config, state, 2, moved(0.5)).verdict.action == action


def test_where_the_canary_was_not_measured_nothing_is_accepted_on_a_budget() -> None:
    refused = decide(BUDGET, start(BUDGET), 1, replace(FACTS, canary=None))
    assert refused.verdict.action == "reject"
    assert "was not measured, and a budget of 4 limits it" in refused.verdict.reasons[0]
    breach = guard.check(BUDGET, start(BUDGET), Evidence(kl=KL, facts=replace(FACTS, canary=None)))
    assert breach.unfit == []
    assert breach.too_far == list(refused.verdict.reasons)


def test_a_policy_that_something_else_moved_is_not_updated() -> None:
    state = decide(BUDGET, start(BUDGET), 1, moved(0.5, away=3.0)).state
    assert decide(BUDGET, state, 2, moved(0.0)).verdict.reasons == (
        "sup_log_ratio was measured as 3, and the updates account for 0.5: something else moved the policy",
    )


def test_without_a_budget_nothing_is_charged() -> None:
    config = GuardConfig(max_kl=20.0)
    decision = decide(config, start(config), 1, moved(99.0))
    assert (decision.verdict.action, decision.state.budget) == ("accept", None)


@pytest.mark.parametrize(
    ("by_slice", "worst"),
    [({"a": 1.0, "b": 31.0}, 31.0), ({"a": math.nan, "b": 1.0}, math.nan), ({}, None)],
)
def test_the_worst_slice_is_what_its_limit_holds(by_slice: Any, worst: float | None) -> None:
    """NaN is worse than any number, and is refused by itself; no slice at all is a KL that was not measured."""
    config = GuardConfig(max_kl_slice=30.0)
    said = decide(config, start(config), 1, unmoved(FACTS, by_slice=by_slice)).verdict
    assert said.action == "reject"
    shown = "was not measured" if worst is None else f"is {worst:.6g} nats, over"
    assert said.reasons[-1].startswith(f"kl_policy_ref per response of a slice {shown}")


def test_where_there_is_no_canary_a_limit_on_it_was_not_measured() -> None:
    config = GuardConfig(max_kl_slice=30.0, max_kl_canary=20.0)
    said = decide(config, start(config), 1, replace(FACTS, canary=None)).verdict
    assert [reason.partition(" was ")[2] for reason in said.reasons] == [
        "not measured, and max_kl_canary limits it",
        "not measured, and max_kl_slice limits it",
    ]


def test_the_checkpoint_to_go_back_to_is_the_last_whose_policy_was_found_within_its_limits() -> (
    None
):
    config = GuardConfig(max_kl=20.0)
    state, good = start(config), list[int | None]()
    for step in range(1, 7):
        state = decide(config, state, step).state
        good.append(state.good)
    assert good == [None, None, 2, 2, 4, 4]
    assert decide(config, state, 7, every=None).state.good == 4
    over = Evidence(kl=replace(KL, value=21.0), facts=FACTS)
    back = guard.decide(config, state, 7, over, {}, 2)
    assert (back.verdict.action, back.state.good, back.state.rollbacks) == ("rollback", 4, 1)
    assert back.verdict.reasons[-1] == "back to the checkpoint after step 4"
    assert back.raise_by == 2.0


def test_a_concordance_of_nothing_is_no_observation() -> None:
    config = GuardConfig.model_validate({"alarms": {"concordance": {"mean": 0.0}}})
    first = decide(config, start(config), 1, concordance=-1.0).state
    second = decide(config, first, 2, concordance=None).state
    assert second.detectors == first.detectors
    assert first.detectors["concordance"].count == 1


def test_any_other_reading_that_is_missing_counts_as_the_worst() -> None:
    config = GuardConfig.model_validate({"alarms": {"kl": {"mean": 1.0}}})
    missing = decide(config, start(config), 1, kl=None).state.detectors["kl"]
    assert missing == decide(config, start(config), 1, kl=20.0).state.detectors["kl"]
    assert (
        missing.statistic > decide(config, start(config), 1, kl=1.0).state.detectors["kl"].statistic
    )


@pytest.mark.parametrize(
    ("action", "every", "given", "raise_by"),
    [
        ("warn", 2, "accept", 1.0),
        ("raise", 2, "accept", 2.0),
        ("rollback", 2, "rollback", 2.0),
        ("rollback", None, "halt", 1.0),  # there is nothing to go back to
        ("halt", 2, "halt", 1.0),
    ],
)
def test_what_an_alarm_does(action: str, every: int | None, given: str, raise_by: float) -> None:
    plan = {"mean": 1.0, "mean_time": 1.0, "action": action}
    config = GuardConfig.model_validate({"alarms": {"kl": plan}})
    decision = decide(config, start(config), 3, every=every, kl=20.0)
    assert (decision.verdict.action, decision.raise_by) == (given, raise_by)
    assert len(decision.verdict.alarms) == 1
    assert decision.verdict.alarms[0].startswith("kl has a mean over 1: evidence ")


def test_refusals_that_repeat_themselves_go_back_and_then_halt() -> None:
    config = GuardConfig(max_kl_new_old=0.1, rollback_after=2, rollback_window=3, max_rollbacks=1)
    over = replace(FACTS, kl_new_old=replace(MOVED, value=0.2))
    state, actions = start(config), list[str]()
    for step in range(1, 9):
        decision = decide(config, state, step, FACTS if step < 3 or step == 5 else over)
        actions.append(decision.verdict.action)
        state = decision.state
    assert actions == [*["accept"] * 2, "reject", "rollback", "accept", "reject", "halt", "halt"]
    assert state.rollbacks == 1


def test_refusals_before_there_is_a_checkpoint_are_refusals() -> None:
    config = GuardConfig(max_kl_new_old=0.1, rollback_after=2)
    over, state = replace(FACTS, kl_new_old=replace(MOVED, value=0.2)), start(config)
    for step in range(1, 5):
        decision = decide(config, state, step, over, every=None)
        assert decision.verdict.action == "reject"
        assert len(decision.verdict.reasons) == 1
        state = decision.state
    assert state.refused == (1, 2, 3, 4)


def test_what_alarms_watch() -> None:
    from tests.guarded_run import SIGNALS

    seen = guard.observed(Evidence(kl=KL, facts=FACTS), SIGNALS, 0.5)
    assert seen == {
        "kl": 1.0,
        "kl_new_old": 0.01,
        "entropy": 2.0,
        "length": 8.0,
        "concordance": 0.5,
    }
    unmeasured = Evidence(kl=KL, facts=replace(FACTS, kl_new_old=None))
    assert guard.observed(unmeasured, SIGNALS, None)["kl_new_old"] is None


@pytest.fixture
def stored() -> dict[str, Any]:
    """A state with everything in it."""
    state = start(FULL)
    for step in range(1, 4):
        state = decide(FULL, state, step, kl=1.0, concordance=0.5).state
    return copy.deepcopy(state.to_json())


def test_a_stored_state_is_read_as_it_was(stored: dict[str, Any]) -> None:
    found = guard.from_json(stored, FULL, 8)
    assert encode(found.to_json()) == encode(stored)
    assert found.good == 2
    assert found.budget is not None
    assert found.budget.updates == 3
    plain = start(GuardConfig())
    assert guard.from_json(plain.to_json(), GuardConfig(), 8) == plain


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_a_distance_that_was_not_finite_is_read_as_the_number_it_was(
    stored: dict[str, Any], value: str
) -> None:
    """JSON has the word for it: read as a word, the next step could not be computed."""
    stored["budget"]["measured"]["sup_log_ratio"] = value
    found = guard.from_json(stored, FULL, 8)
    assert encode(found.to_json()) == encode(stored)
    refused = decide(FULL, found, 4, kl=1.0, concordance=0.5)
    assert refused.verdict.action == "reject"
    assert f"sup_log_ratio was measured as {value}: not a drift" in refused.verdict.reasons


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("refused",), None, "refused"),
        (("refused",), ["x"], "refused"),
        (("refused",), [True], "refused"),
        (("rollbacks",), -1, "rollbacks"),
        (("rollbacks",), 0.0, "rollbacks"),
        (("good",), "2", "good"),
        (("budget",), None, "budget"),
        (("budget", "updates"), 1.5, "budget"),
        (("budget", "spent"), None, "budget"),
        (("budget", "spent"), {}, "budget"),
        (("budget", "spent", "sup_log_ratio"), "0.5", "budget"),
        (("budget", "spent", "sup_log_ratio"), -0.5, "budget"),
        (("budget", "spent", "sup_log_ratio"), math.inf, "budget"),
        (("budget", "measured"), [], "budget"),
        (("budget", "measured", "total_variation"), 1, "budget"),
        (("budget", "measured", "total_variation"), "much", "budget"),
        (("detectors",), {}, "detectors"),
        (("detectors", "kl"), 0.0, "detectors"),
        (("more",), 0, "fields missing or unknown"),
    ],
)
def test_what_is_no_state_is_refused_by_name(
    stored: dict[str, Any], path: tuple[str, ...], value: Any, named: str
) -> None:
    inner = stored
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(InputError, match="stored guard state") as error:
        guard.from_json(stored, FULL, 8)
    assert error.value.got == named


@pytest.mark.parametrize("state", [None, [], "state", {}])
def test_what_is_no_object_is_refused(state: Any) -> None:
    with pytest.raises(InputError, match="stored guard state"):
        guard.from_json(state, FULL, 8)


def test_a_budget_where_none_is_planned_is_refused(stored: dict[str, Any]) -> None:
    stored["detectors"] = {}
    with pytest.raises(InputError, match="stored guard state") as error:
        guard.from_json(stored, GuardConfig(), 8)
    assert error.value.got == "budget"


def test_an_alarm_begins_at_its_step() -> None:
    """What it did not watch is no evidence, for it or against it."""
    late = GuardConfig.model_validate(
        {"alarms": {"kl": {"mean": 1.0, "mean_time": 2.0, "from_step": 3}}}
    )
    state = start(late)
    for step, (count, rings) in enumerate([(0, False), (0, False), (1, True)], start=1):
        decision = decide(late, state, step, kl=20.0)
        state = decision.state
        assert (state.detectors["kl"].count, bool(decision.verdict.alarms)) == (count, rings)
