"""Version 2: the plan before the first step, the intent before each update, and whose word it all is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash import guard
from kleash.guard import GuardConfig, GuardState
from kleash.ledger import Entry, Ledger, UpdateEntry, kind_of, read
from kleash.records import StepTails
from kleash.replay import check_sequence, verify_run
from tests.ledger.written import KEY, OTHER, SEGMENT, entry, forge
from tests.test_replay import Script, make_run

INTENT = ("step", "rollout_sha256", "kl_coef")


def measured(
    update: UpdateEntry, limits: GuardConfig, state: GuardState
) -> tuple[dict[str, Any], GuardState]:
    """The update with what version 2 has of it, and the guard's state after it."""
    facts, kl = update.facts, update.kl
    if facts.finite:
        facts = replace(
            facts,
            kl_new_old=replace(
                kl, value=0.01, low=None, high=None, unit="token", direction="new_old"
            ),
            tails=StepTails(kl_p99=1.0, kl_max=1.0, log_ratio_max=1.0),
            entropy=2.0,
            kl_proposed=replace(kl, value=0.0),
        )
    seen = guard.observed(guard.Evidence(kl=kl, facts=facts), update.signals, None)
    evidence = guard.Evidence(kl=kl, facts=facts)
    decision = guard.decide(limits, state, update.step, evidence, seen, None)
    whole = replace(update, facts=facts, guard=decision.state.to_json())
    return whole.to_json(), decision.state


def sign_run(run: Path) -> Path:
    """The same run as version 2 has it, written by the ledger's own writer."""
    old = read(run / "ledger")
    shutil.rmtree(run / "ledger")
    config = old[0].body["config"]
    limits = GuardConfig.model_validate(config["guard"])
    state = guard.start(limits, 1)
    with Ledger.create(run / "ledger", [KEY]) as ledger:
        for each in old:
            body = each.body
            if each.type == "update":
                ledger.append("update.intent", {name: body[name] for name in INTENT})
                body, state = measured(UpdateEntry.from_json(body), limits, state)
            ledger.append(each.type, body)
            if each.type == "run.started":
                plan = {"guard": config["guard"], "rl": config["rl"], "canary": None}
                ledger.append("plan.committed", plan)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Start, plan, three times intent and update, ending."""
    return sign_run(make_run(tmp_path / "run"))


def test_an_honest_run_verifies_and_says_whose_it_is(run: Path) -> None:
    found = verify_run(run)
    assert found.problems == ()
    assert (found.entries, found.steps, found.status) == (9, 3, "finished")
    assert found.checks[:5] == ("chain", "head", "signatures", "sequence", "replay")
    assert (found.keys, found.trusted) == ((KEY.public,), False)
    assert found.notes == (f"signed by {KEY.public.name} up to seq 8",)
    trusted = verify_run(run, keys=[KEY.public], since=(run / "ledger" / "head").read_bytes())
    assert (trusted.ok, trusted.trusted) == (True, True)
    assert trusted.checks[:5] == ("chain", "head", "signatures", "key", "checkpoint")
    assert trusted.to_json()["keys"] == [KEY.public.vkey]
    assert verify_run(run / "ledger").ok
    assert verify_run(run / "ledger" / "genesis.json").ok


def test_a_run_of_another_key_or_head_is_not_the_one_that_was_asked_for(run: Path) -> None:
    assert not verify_run(run, keys=[OTHER.public]).ok
    found = verify_run(run, "0" * 64)
    assert [problem.where for problem in found.problems] == ["ledger"]


def test_a_ledger_that_lies_elsewhere_is_not_this_runs(run: Path) -> None:
    (run / "ledger").rename(run.parent / "elsewhere")
    (run / "ledger").symlink_to(run.parent / "elsewhere")
    assert [str(problem) for problem in verify_run(run).problems] == [
        "ledger/genesis.json: the path leads out of the run; it was not opened"
    ]


Entries = list[dict[str, Any]]


def body(at: int, *path: str, value: Any) -> Callable[[Entries], object]:
    def edit(entries: Entries) -> None:
        target = entries[at]["body"]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "line", "what"),
    [
        (lambda e: e.pop(1), 2, "plan.committed does not come before it"),
        (lambda e: e.insert(4, e[1]), 5, "the plan is not the second entry, or not the only one"),
        (body(1, "guard", "max_kl", value=99.0), 2, "guard: not as the run was started"),
        (body(1, "rl", value=None), 2, "rl: not as the run was started"),
        (lambda e: e.pop(4), 5, "an update without its intent before it"),
        (lambda e: e.insert(4, e[4]), 6, "an intent, where the one before has no update yet"),
        (body(4, "step", value=7), 5, "not the intent of step 2"),
        (body(4, "kl_coef", value=0.5), 6, "not the update that was intended"),
        (body(4, "rollout_sha256", value="b" * 64), 6, "not the update that was intended"),
        (body(4, "extra", value=1), 6, "not the update that was intended"),
        (lambda e: e.insert(4, entry("override.granted")), 5, "no entry of type override.granted"),
        (lambda e: e.insert(0, entry("update.intent")), 1, "a run starts with run.started"),
        (lambda e: e.clear(), 1, "a run starts with run.started"),
    ],
)
def test_what_the_keys_own_holder_cannot_say(
    run: Path, edit: Callable[[Entries], object], line: int, what: str
) -> None:
    """Chain, root and signature are right: it is the order that no run can have made."""
    forge(run / "ledger", edit)
    found = verify_run(run)
    where = f"{SEGMENT} line {line}"
    assert any(p.where == where and what in p.what for p in found.problems), found.problems


def entries_of(*types: tuple[str, dict[str, Any]], config: dict[str, Any]) -> list[Entry]:
    started = ("run.started", {"config": config})
    return [
        Entry(seq=seq, type=type, time="", body=body, prev="", leaf="")
        for seq, (type, body) in enumerate([started, *types])
    ]


RL = {"guard": {}, "rl": {}}
PLAN = ("plan.committed", {"guard": {}, "rl": {}, "canary": None})


def intent(step: int) -> tuple[str, dict[str, Any]]:
    return "update.intent", {"step": step, "rollout_sha256": "a", "kl_coef": 0.1}


def update(step: int, action: str = "accept") -> tuple[str, dict[str, Any]]:
    return "update", {**intent(step)[1], "verdict": {"action": action}}


def resumed(step: int) -> tuple[str, dict[str, Any]]:
    return "run.resumed", {"step": step}


def ended(type: str, steps: int) -> tuple[str, dict[str, Any]]:
    return type, {"steps": steps}


@pytest.mark.parametrize(
    "types",
    [
        (),
        (PLAN,),
        (PLAN, intent(1)),
        (PLAN, intent(1), ended("run.interrupted", 0)),
        (PLAN, intent(1), update(1), intent(2), ended("run.failed", 1), resumed(1), update(2)),
        (PLAN, intent(1), update(1), intent(2), resumed(0), update(2), ended("run.finished", 2)),
        (PLAN, intent(1), update(1), intent(2), ("checkpoint.saved", {"step": 1}), resumed(1)),
        (PLAN, intent(1), resumed(0), ended("run.failed", 0), resumed(0), update(1)),
    ],
)
def test_what_a_run_that_was_killed_or_stopped_leaves_is_in_order(
    types: tuple[tuple[str, dict[str, Any]], ...],
) -> None:
    assert check_sequence(entries_of(*types, config=RL)) == []


@pytest.mark.parametrize(
    ("types", "what"),
    [
        ((PLAN, intent(1), resumed(0), intent(1)), "an intent, where the one before has no update"),
        ((PLAN, intent(1), update(1), resumed(1), update(2)), "an update without its intent"),
        ((PLAN, intent(1), update(1, "halt"), intent(2)), "a step after the guard's halt"),
        (
            (PLAN, intent(1), update(1, "halt"), ended("run.failed", 1), resumed(1)),
            "the run goes on, where",
        ),
        ((PLAN, ended("run.finished", 0), resumed(0)), "the run goes on, where it could not"),
        ((PLAN, ended("run.finished", 0), intent(1)), "an entry after the run's ending"),
        ((PLAN, resumed(1)), "run.resumed is of a step that was not made"),
        ((PLAN, intent(2)), "not the intent of step 1"),
        ((ended("run.failed", 0),), "plan.committed does not come before it"),
    ],
)
def test_what_no_run_leaves(types: tuple[tuple[str, dict[str, Any]], ...], what: str) -> None:
    found = check_sequence(entries_of(*types, config=RL))
    assert [problem.where for problem in found] == [f"{SEGMENT} line {len(types) + 1}"]
    assert what in found[0].what


@pytest.mark.parametrize("config", [None, [], {"rl": {}}])
def test_a_plan_of_a_run_without_a_configuration_is_none(config: Any) -> None:
    assert "guard" in check_sequence(entries_of(PLAN, config=config))[0].what


def test_a_run_of_measurements_has_no_plan_and_no_intent() -> None:
    config = {"guard": {}, "train": {"steps": 1, "meter_every": 1}}
    measured = [("measurement", {"step": step, "verdict": {}}) for step in (0, 1)]
    entries = entries_of(*measured, ended("run.finished", 1), config=config)
    assert kind_of(entries) == "measurement"
    assert check_sequence(entries) == []
    for extra in (PLAN, intent(1)):
        found = check_sequence(entries_of(extra, *measured, config=config))
        assert f"no entry of type {extra[0]} belongs here" in found[0].what
    more = entries_of(*measured, measured[1], config=config)
    assert "not a step that is due" in check_sequence(more)[0].what
    short = entries_of(measured[0], ended("run.finished", 0), config=config)
    assert "a measurement that was due" in check_sequence(short)[0].what
    saved = entries_of(measured[0], ("checkpoint.saved", {"step": 0}), config=config)
    assert "a checkpoint of a run that has none" in check_sequence(saved)[0].what


@pytest.mark.parametrize("script", [Script(drifts=()), Script(ending=None), Script(max_kl=4.0)])
def test_every_kind_of_run_is_whole_in_version_2_too(tmp_path: Path, script: Script) -> None:
    assert verify_run(sign_run(make_run(tmp_path / "run", script))).problems == ()
