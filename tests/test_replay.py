"""A record proves its decisions: edits are found even where the whole chain was computed again."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kleash import control
from kleash.control import ControlConfig, Signals
from kleash.errors import InputError
from kleash.guard import GuardConfig, judge
from kleash.ledger import UpdateEntry, digest_run, encode, read
from kleash.records import KLReading, UpdateFacts
from kleash.replay import Verification, replay, verify_run
from tests.ledger.version1 import Version1

KL = KLReading(
    value=4.0,
    low=None,
    high=None,
    n=512,
    clusters=64,
    unit="response",
    direction="policy_ref",
    estimator="exact",
    reference="base",
)
FACTS = UpdateFacts(finite=True, kl_new_old=None, grad_norm=1.0)
RL = {"controller": "ziegler", "kl_coef": 0.1, "kl_target": 4.0}
OPTIMISATION = {
    "optimizer": {"beta1": 0.9},
    "algorithm": {"num_epochs": 2, "num_minibatches": 2},
    "rollout": {"num_prompts": 64, "group_size": 8},
}
"""Four gradient steps an update."""
SIGNALS = Signals(num_responses=512, reward_std=1.0, correlation=0.5, momentum=0.9**4)
VERSIONS = {"kleash": "0.1.0"}
DIGESTS = {"policy": "p" * 64}


@dataclass(frozen=True)
class Script:
    """What a synthetic run measured, step by step, and how it ended."""

    drifts: tuple[KLReading, ...] = tuple(replace(KL, value=value) for value in (0.0, 3.0, 5.0))
    per_token: tuple[KLReading, ...] = ()
    facts: UpdateFacts = FACTS
    rl: tuple[tuple[str, Any], ...] = tuple(RL.items())
    max_kl: float | None = 20.0
    ending: str | None = "run.finished"


def make_run(run: Path, script: Script = Script()) -> Path:
    """Write a run directory as a training loop would."""
    rl, limits = ControlConfig.model_validate(dict(script.rl)), GuardConfig(max_kl=script.max_kl)
    config = OPTIMISATION | {
        "model": {},
        "rl": rl.model_dump(mode="json"),
        "guard": limits.model_dump(mode="json"),
    }
    started = {"config": config, "versions": VERSIONS, "digests": DIGESTS}
    (run / "final").mkdir(parents=True)
    (run / "final" / "model.safetensors").write_bytes(b"weights")
    (run / "samples.jsonl").write_text("{}\n")
    (run / "config.json").write_text(json.dumps(started, indent=2))
    state, applied = control.init(rl), True
    with Version1.create(run / "ledger") as ledger, (run / "metrics.jsonl").open("wb") as metrics:
        ledger.append("run.started", {**started, "kleash": "0.1.0"})
        for step, kl in enumerate(script.drifts, start=1):
            seen = script.per_token[step - 1] if script.per_token else kl
            signals = replace(SIGNALS, applied=applied)
            state = control.update(state, seen, signals)
            line = encode({"step": step, "kl_coef": state.kl_coef}) + b"\n"
            entry = UpdateEntry(
                step=step,
                kl=kl,
                kl_control=seen if script.per_token else None,
                signals=signals,
                kl_coef=state.kl_coef,
                facts=script.facts,
                verdict=judge(limits, kl, script.facts),
                control=state.to_json(),
                rollout_sha256="a" * 64,
                metrics_sha256=hashlib.sha256(line).hexdigest(),
            )
            ledger.append("update", entry.to_json())
            metrics.write(line)
            applied = entry.verdict.action == "accept"
        metrics.flush()
        if script.ending:
            ending = {"steps": len(script.drifts), "files": digest_run(run)}
            ledger.append(script.ending, ending)
    return run


def forge(run: Path, edit: Callable[[list[dict]], None]) -> None:
    """Edit the entries, then compute chain and head again, as whoever holds the files can."""
    ledger = run / "ledger"
    entries = [json.loads(line) for line in (ledger / "ledger.jsonl").read_bytes().splitlines()]
    edit(entries)
    prev, lines = "0" * 64, []
    for seq, entry in enumerate(entries):
        entry |= {"seq": seq, "prev": prev}
        lines.append(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode())
        prev = hashlib.sha256(b"\x00" + lines[-1]).hexdigest()
    (ledger / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (ledger / "head.json").write_bytes(encode({"size": len(lines), "leaf": prev}) + b"\n")


def assert_problem(found: Verification, where: str, what: str) -> None:
    assert not found.ok
    assert found.to_json()["ok"] is False
    assert any(p.where == where and what in p.what for p in found.problems), found.problems


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_an_honest_run_verifies(run: Path) -> None:
    found = verify_run(run)

    assert found.problems == ()
    assert (found.ok, found.status, found.steps, found.entries) == (True, "finished", 3, 5)
    assert found.checks == (
        "chain",
        "head",
        "sequence",
        "replay",
        "config",
        "metrics",
        "checkpoints",
        "files",
    )
    assert found.head == read(run / "ledger")[-1].leaf
    assert json.loads(json.dumps(found.to_json()))["status"] == "finished"


@pytest.mark.parametrize("path", ["ledger", "ledger/ledger.jsonl"])
def test_a_ledger_alone_verifies_without_the_files(run: Path, path: str) -> None:
    found = verify_run(run / path)

    assert found.ok
    assert found.checks == ("chain", "head", "sequence", "replay")


@pytest.mark.parametrize(
    "script",
    [
        Script(rl=(("controller", "fixed"), ("kl_coef", 0.0)), max_kl=None),
        Script(drifts=()),
        Script(drifts=(replace(KL, value=math.nan), KL)),
        Script(drifts=(replace(KL, value=21.0),)),
        Script(drifts=(KL, KL), facts=replace(FACTS, finite=False)),
        Script(
            per_token=tuple(replace(KL, value=value, unit="token") for value in (0.1, 0.2, 0.3)),
            rl=(("kl_target", 0.1), ("kl_unit", "token")),
        ),
    ],
    ids=["fixed", "no steps", "nan", "halt", "rejects", "target per token"],
)
def test_every_kind_of_honest_run_verifies(tmp_path: Path, script: Script) -> None:
    assert verify_run(make_run(tmp_path / "run", script)).problems == ()


@pytest.mark.parametrize(
    ("ending", "status"),
    [("run.interrupted", "interrupted"), ("run.failed", "failed"), (None, "unfinished")],
)
def test_a_run_cut_short_verifies_and_says_so(
    tmp_path: Path, ending: str | None, status: str
) -> None:
    found = verify_run(make_run(tmp_path / "run", Script(ending=ending)))

    assert (found.ok, found.status) == (True, status)
    assert ("no ending" in " ".join(found.notes)) == (ending is None)


def set_path(entries: list[dict], line: int, keys: tuple[str, ...], value: Any) -> None:
    target = entries[line - 1]["body"]
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value


@pytest.mark.parametrize(
    ("line", "keys", "value", "where", "what"),
    [
        (3, ("kl_coef",), 0.2, 3, "kl_coef is 0.2; the controller gives 0.0979"),
        (2, ("kl_coef",), 0.1, 2, "kl_coef is 0.1; the controller gives 0.09897"),
        (2, ("kl", "value"), 5.0, 2, "not the one its reading leads to"),
        (3, ("control", "kl_coef"), 0.2, 3, "not the one its reading leads to"),
        (3, ("control", "kl_coef"), 0.2, 4, "kl_coef is 0.098"),
        (3, ("control",), {}, 3, "not a state at all"),
        (3, ("verdict", "action"), "reject", 3, "the verdict is reject; the guard gives accept"),
        (3, ("kl", "value"), 21.0, 3, "the verdict is accept; the guard gives halt"),
        (3, ("facts", "finite"), False, 3, "the guard gives reject"),
        (3, ("kl", "n"), 64, 3, "signals.num_responses is 512, where the reading is of 64"),
        (3, ("signals", "num_responses"), 64, 3, "not the one its reading leads to"),
        (3, ("signals", "num_responses"), 64, 3, "where the reading is of 512"),
        (3, ("signals", "applied"), False, 3, "not whether the update before was accepted, True"),
        (2, ("signals", "applied"), False, 2, "not whether the update before was accepted, True"),
        (3, ("verdict", "action"), "reject", 4, "update before was accepted, False"),
        (
            3,
            ("signals", "momentum"),
            0.0,
            3,
            "signals.momentum is 0.0; the configuration gives 0.6",
        ),
        (3, ("signals", "momentum"), "nan", 3, "signals.momentum is nan"),
        (3, ("signals", "age"), 1, 3, "signals.age is 1, where 0 belongs"),
        (3, ("signals",), None, 3, "not the body of an update"),
        (1, ("config", "optimizer", "beta1"), 0.5, 2, "the configuration gives 0.0625"),
        (1, ("config", "algorithm", "num_epochs"), 1, 2, "the configuration gives 0.81"),
        (1, ("config", "algorithm", "num_epochs"), 10**400, 1, "no usable configuration"),
        (1, ("config", "algorithm"), None, 1, "no usable configuration"),
        (3, ("kl", "unit"), "token", 3, "another KL"),
        (3, ("kl", "value"), "much", 3, "not the body of an update"),
        (3, ("kl",), None, 3, "not the body of an update"),
        (3, ("step",), 7, 3, "not step 2"),
        (3, ("extra",), 1, 3, "not the body of an update"),
        (1, ("config", "rl", "kl_target"), 6.0, 4, "not the one its reading leads to"),
        (1, ("config", "rl", "kl_coef"), 0.3, 2, "the controller gives 0.29"),
        (1, ("config", "guard", "max_kl"), 4.5, 4, "the guard gives halt"),
        (1, ("config", "rl"), {"kl_target": 0}, 1, "no usable configuration"),
        (1, ("config",), None, 1, "no usable configuration"),
        (1, ("self_test",), "passed, honest", 1, "not a self-test that passed"),
        (1, ("self_test",), {"checks": []}, 1, "not a self-test that passed"),
        (
            1,
            ("self_test",),
            {
                "checks": [
                    {"name": "a", "value": 9.9, "limit": 1e-6, "unit": "nats", "passed": True}
                ]
            },
            1,
            "not a self-test that passed",
        ),
        (
            1,
            ("self_test",),
            {
                "checks": [
                    {"name": "a", "value": 0.0, "limit": 0.1, "unit": "nats", "passed": False}
                ]
            },
            1,
            "not a self-test that passed",
        ),
        (5, ("steps",), 2, 5, "does not count the 3 steps"),
        (5, ("files",), None, 5, "does not say which files"),
    ],
)
def test_an_edit_is_found_though_the_chain_was_computed_again(
    run: Path, line: int, keys: tuple[str, ...], value: Any, where: int, what: str
) -> None:
    forge(run, lambda entries: set_path(entries, line, keys, value))

    assert_problem(verify_run(run), f"ledger.jsonl line {where}", what)


def test_one_edited_penalty_is_one_mismatch(run: Path) -> None:
    forge(run, lambda entries: set_path(entries, 3, ("kl_coef",), 0.2))

    assert [problem.where for problem in replay(read(run / "ledger"))] == ["ledger.jsonl line 3"]


@pytest.mark.parametrize(
    ("edit", "where", "what"),
    [
        (lambda entries: entries.pop(0), 1, "a run starts with run.started"),
        (lambda entries: entries.clear(), 1, "a run starts with run.started"),
        (lambda entries: entries.pop(2), 3, "not step 2"),
        (lambda entries: entries.insert(2, entries[1].copy()), 3, "not step 2"),
        (lambda entries: entries.append(entries[-2].copy()), 6, "after the run's ending"),
        (lambda entries: entries.insert(2, entries[0].copy()), 3, "run.started belongs here"),
        (lambda entries: entries[2].update(type="run.blessed"), 3, "run.blessed belongs here"),
        (lambda entries: set_path(entries, 2, ("verdict", "action"), "halt"), 3, "halt"),
        (lambda entries: set_path(entries, 2, ("verdict",), None), 2, "not the body"),
    ],
)
def test_a_run_out_of_order_is_found(
    run: Path, edit: Callable[[list[dict]], None], where: int, what: str
) -> None:
    forge(run, edit)

    assert_problem(verify_run(run), f"ledger.jsonl line {where}", what)


def test_a_broken_chain_is_not_looked_into(run: Path) -> None:
    path = run / "ledger" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":3'))
    found = verify_run(run)

    assert_problem(found, "ledger.jsonl line 4", "prev is not the hash")
    assert found.checks == ("chain", "head")


def test_a_pinned_head_finds_a_consistent_rewrite(run: Path) -> None:
    pin = verify_run(run).head
    assert verify_run(run, expected_head=pin).ok

    forge(run, lambda entries: set_path(entries, 2, ("rollout_sha256",), "b" * 64))
    assert verify_run(run).ok  # nothing in the files can show this
    assert_problem(verify_run(run, expected_head=pin), "ledger.jsonl", "was rewritten")


def test_a_pin_taken_while_the_run_went_on_still_holds(run: Path) -> None:
    earlier = read(run / "ledger")[2].leaf

    assert verify_run(run, expected_head=earlier).ok


def edit_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def cut_last_line(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def repeat_last_line(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])


def swap_for_link(run: Path) -> None:
    path = run / "final" / "model.safetensors"
    path.rename(run.parent / "outside")
    path.symlink_to(run.parent / "outside")


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (edit_file("final/model.safetensors", b"weightz"), "final/model.safetensors", "changed"),
        (lambda run: (run / "final" / "model.safetensors").unlink(), "final/model.s", "not there"),
        (swap_for_link, "final/model.safetensors", "leads out of the run"),
        (edit_file("final/pytorch_model.bin", b"pickle"), "final/pytorch_model.bin", "was added"),
        (edit_file("samples.jsonl", b""), "samples.jsonl", "changed"),
        (lambda run: (run / "config.json").unlink(), "config.json", "missing"),
        (edit_file("config.json", b"{"), "config.json", "missing, or not"),
        (edit_file("config.json", b"[]"), "config.json", "missing, or not"),
        (edit_file("config.json", b"{}"), "config.json", "config is not what the ledger"),
        (edit_file("metrics.jsonl", b"{}\n"), "metrics.jsonl line 1", "not the line that step 1"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl", "0 lines"),
        (cut_last_line, "metrics.jsonl", "2 lines, where the ledger has 3"),
        (repeat_last_line, "metrics.jsonl", "4 lines, where the ledger has 3"),
    ],
)
def test_a_changed_file_is_found(
    run: Path, change: Callable[[Path], object], where: str, what: str
) -> None:
    change(run)
    found = verify_run(run)

    assert not found.ok
    assert any(p.where.startswith(where) and what in p.what for p in found.problems)


@pytest.mark.parametrize("ending", ["run.finished", "run.interrupted", "run.failed"])
@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (edit_file("final/model.safetensors", b"weightz"), "final/model.safetensors", "changed"),
        (lambda run: (run / "samples.jsonl").unlink(), "samples.jsonl", "not there"),
        (edit_file("final/pytorch_model.bin", b"pickle"), "final/pytorch_model.bin", "was added"),
    ],
    ids=["changed", "removed", "added"],
)
def test_whatever_way_a_run_ended_its_files_are_checked(
    tmp_path: Path, ending: str, change: Callable[[Path], object], where: str, what: str
) -> None:
    run = make_run(tmp_path / "run", Script(ending=ending))
    assert "files" in verify_run(run).checks
    change(run)

    assert_problem(verify_run(run), where, what)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", {"rl": {}, "guard": {}}),
        ("versions", {"kleash": "0.2.0"}),
        ("versions", {**VERSIONS, "torch": "2.10.0"}),
        ("digests", {"policy": "q" * 64}),
        ("digests", None),
    ],
)
@pytest.mark.parametrize("ending", ["run.finished", None])
def test_config_json_says_what_the_run_was_started_with(
    tmp_path: Path, ending: str | None, key: str, value: Any
) -> None:
    """Also in a run without an ending, where no digest of the file vouches for it."""
    run = make_run(tmp_path / "run", Script(ending=ending))
    started = json.loads((run / "config.json").read_bytes())
    (run / "config.json").write_text(json.dumps({**started, key: value}))
    found = verify_run(run)

    assert_problem(found, "config.json", f"{key} is not what the ledger recorded at the start")
    assert len([p for p in found.problems if "recorded at the start" in p.what]) == 1


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "final/../../outside", "\x00", ""])
def test_a_recorded_path_never_leads_out_of_the_run(run: Path, name: str) -> None:
    (run.parent / "outside").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    forge(run, lambda entries: entries[-1]["body"]["files"].update({name: digest}))
    found = verify_run(run)

    assert not found.ok
    assert all(str(problem).isprintable() for problem in found.problems)


def test_metrics_that_show_another_penalty_than_was_used_are_found(run: Path) -> None:
    shown = encode({"step": 2, "kl_coef": 0.5}) + b"\n"
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(lines[0] + shown + lines[2])
    digest = hashlib.sha256(shown).hexdigest()
    forge(run, lambda entries: set_path(entries, 3, ("metrics_sha256",), digest))

    assert_problem(verify_run(run), "metrics.jsonl line 2", "not what the ledger says was used")


def test_metrics_that_are_not_metrics_are_found(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b"[]\n")
    digest = hashlib.sha256(b"[]\n").hexdigest()
    forge(run, lambda entries: set_path(entries, 2, ("metrics_sha256",), digest))

    assert_problem(verify_run(run), "metrics.jsonl line 1", "not an object")


@pytest.mark.parametrize(("missing", "ok"), [(1, True), (2, False)])
def test_a_killed_run_may_lack_the_last_line_of_metrics_only(
    tmp_path: Path, missing: int, ok: bool
) -> None:
    run = make_run(tmp_path / "run", Script(ending=None))
    for _ in range(missing):
        cut_last_line(run)

    assert verify_run(run).ok == ok


def test_a_ledger_without_entries_is_no_proof_of_anything(tmp_path: Path) -> None:
    Version1.create(tmp_path).close()

    assert_problem(verify_run(tmp_path), "ledger.jsonl line 1", "a run starts with run.started")
    assert replay([]) == []


@pytest.mark.parametrize("name", [".", "missing", "file.txt"])
def test_where_there_is_no_ledger_is_bad_input(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("{}")

    with pytest.raises(InputError, match="nothing to verify here"):
        verify_run(tmp_path / name)


@pytest.mark.parametrize("pin", ["", "abc", "A" * 64, "0" * 63 + "\n"])
def test_a_pin_that_is_no_hash_is_bad_input(run: Path, pin: str) -> None:
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        verify_run(run, expected_head=pin)


def test_an_auditor_needs_no_torch() -> None:
    script = "import sys, kleash.replay; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
