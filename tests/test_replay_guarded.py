"""A run with budget, alarms and a canary replays; what its record leaves out or makes up is found; it never crashes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kleash.records import Distance, KLReading, StepTails
from kleash.replay import check_sequence, replay
from tests.guarded_run import CONFIG, FACTS, GUARD, KL, MOVED, bodies, entries_of, unmoved

Bodies = list[tuple[str, dict[str, Any]]]
BROKEN = replace(
    FACTS,
    finite=False,
    kl_new_old=None,
    tails=None,
    entropy=None,
    kl_proposed=None,
    canary=None,
)


def problems(made: Bodies) -> list[str]:
    return [str(problem) for problem in replay(entries_of(made))]


def updates(made: Bodies) -> list[dict[str, Any]]:
    return [body for kind, body in made if kind == "update"]


def test_an_honest_run_replays() -> None:
    tails = StepTails(kl_p99=0.5, kl_max=1.0, log_ratio_max=0.2)
    over = replace(FACTS, kl_new_old=replace(MOVED, value=0.2), tails=tails)
    far = unmoved(FACTS, moved=Distance(sup_log_ratio=7.0, total_variation=0.0))
    made = bodies(facts=[FACTS, FACTS, over, over, BROKEN, FACTS, far])
    actions = [body["verdict"]["action"] for body in updates(made)]
    assert actions == ["accept", "accept", "reject", "reject", "rollback", "accept", "reject"]
    assert problems(made) == []
    assert check_sequence(entries_of(made)) == []


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda facts: facts.pop("tails"), "facts.tails is missing"),
        (lambda facts: facts.pop("entropy"), "facts.entropy is missing"),
        (lambda facts: facts.pop("kl_proposed"), "facts.kl_proposed is missing, and max_kl limits"),
        (lambda facts: facts.pop("canary"), "facts.canary is missing, and there is a canary set"),
        (lambda facts: facts.update(finite=False), "tails of an update that is not finite"),
    ],
)
def test_a_measurement_that_is_left_out_or_made_up_is_found(
    edit: Callable[[dict[str, Any]], object], what: str
) -> None:
    made = bodies()
    edit(updates(made)[-1]["facts"])
    assert any(what in problem for problem in problems(made))


def test_an_update_that_is_not_finite_has_no_measurements() -> None:
    made = bodies(facts=[FACTS, BROKEN])
    assert updates(made)[-1]["verdict"]["action"] == "reject"
    assert problems(made) == []


def test_what_a_configuration_does_not_limit_may_go_unmeasured() -> None:
    config = {**CONFIG, "guard": {"max_mismatch": 1.0}}
    facts = replace(FACTS, kl_proposed=None, canary=None)
    assert problems(bodies(config, [facts, facts], concordance=None)) == []
    assert any("concordance is there" in problem for problem in problems(bodies(config, [facts])))


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda body: body.pop("guard"), "the guard's state is missing"),
        (lambda body: body["verdict"].update(alarms=["kl has run wild"]), "1 alarms are told"),
        (lambda body: body["facts"].update(fraction=0.0), "fraction is no part"),
        (lambda body: body["facts"].update(fraction=1.0), "fraction is no part"),
        (lambda body: body["facts"].update(fraction=-1.0), "fraction is no part"),
        (lambda body: body["facts"].update(over=["far"]), "over is there without"),
        (lambda body: body["facts"].pop("kl_new_old"), "kl_new_old"),
        (lambda body: body["facts"]["kl_new_old"].update(estimator="k3"), "new_old is not exact"),
        (lambda body: body["facts"]["kl_proposed"].update(n=1), "are not readings of one rollout"),
        (lambda body: body["facts"]["tails"].update(kl_max=0.0), "is under the mean"),
    ],
)
def test_what_the_rule_cannot_have_written_is_found(
    edit: Callable[[dict[str, Any]], object], what: str
) -> None:
    made = bodies()
    edit(updates(made)[-1])
    assert any(what in problem for problem in problems(made)), problems(made)


def test_an_update_is_not_shortened_where_it_is_to_be_refused() -> None:
    config = {**CONFIG, "guard": {**CONFIG["guard"], "on_breach": "reject"}}
    made = bodies(config, [FACTS, replace(FACTS, fraction=0.5)])
    assert any("nothing is to be shortened" in problem for problem in problems(made))


def edited(name: str, value: Any) -> Bodies:
    made = bodies()
    updates(made)[1]["guard"][name] = value
    return made


def test_a_state_that_its_readings_do_not_lead_to_is_found_and_gone_on_from() -> None:
    assert problems(edited("rollbacks", 1)) == [
        "segments/000000.jsonl line 6: the guard's state is not the one its readings lead to",
        "segments/000000.jsonl line 8: the guard's state is not the one its readings lead to",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("refused", ["x"]),
        ("rollbacks", "many"),
        ("good", {}),
        ("budget", 0.0),
        ("budget", {"spent": {"sup_log_ratio": "x"}, "updates": 2, "measured": {}}),
        ("detectors", {"kl": None}),
    ],
)
def test_what_is_no_state_is_found_and_passed_over(name: str, value: Any) -> None:
    """Anyone can sign such a ledger with a key of their own: it must not stop the verifier."""
    assert problems(edited(name, value)) == [
        "segments/000000.jsonl line 6: the guard's state is not a state at all"
    ]


def test_measured_budgets_are_read_as_numbers() -> None:
    made = edited("budget", updates(bodies())[1]["guard"]["budget"])
    updates(made)[1]["guard"]["budget"]["measured"]["sup_log_ratio"] = [0]
    assert problems(made) == [
        "segments/000000.jsonl line 6: the guard's state is not a state at all"
    ]


@pytest.mark.parametrize(
    "train",
    [{"steps": 0}, {"steps": -1}, {"steps": 10**12}, {"steps": 10**400}, {"steps": "nan"}, []],
)
def test_a_configuration_that_no_run_can_begin_with_is_a_problem(train: Any) -> None:
    """Of a budget over no steps there is no share."""
    made = bodies()
    made[0] = ("run.started", {"config": {**CONFIG, "train": train}})
    assert problems(made) == [
        "segments/000000.jsonl line 1: no usable configuration of controller, guard and optimizer"
    ]


def test_a_plan_is_the_configurations_own() -> None:
    made = bodies()
    made[1] = ("plan.committed", {"guard": {**GUARD, "max_kl": 99.0}, "rl": CONFIG["rl"]})
    assert [problem.what for problem in check_sequence(entries_of(made))] == [
        "guard: not as the run was started"
    ]


ORIGIN = replace(KL, value=1.5, direction="policy_origin")


@pytest.mark.parametrize(
    ("every", "origin", "what"),
    [
        (None, None, ""),
        (None, ORIGIN, "kl_origin is there, though the reference stays"),
        (9, ORIGIN, ""),
        (9, None, "kl_origin is not kl_policy_origin_per_response, though the reference changes"),
        (9, KL, "the limit max_kl was shown another KL than it is for"),
        (9, replace(ORIGIN, n=63), "kl_origin and kl are not readings of one rollout"),
    ],
)
def test_the_drift_from_the_first_reference_is_there_where_that_was_refreshed(
    every: int | None, origin: KLReading | None, what: str
) -> None:
    made = bodies({**CONFIG, "model": {"refresh_every": every}}, [FACTS])
    if origin is not None:
        updates(made)[0]["kl_origin"] = origin.to_json()
    said = [problem.partition(": ")[2] for problem in problems(made)]
    assert [each.partition("; ")[0] for each in said] == ([what] if what else [])
