"""A record of measurements proves its verdicts, and that none was left out, though the chain was computed again."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash.guard import GuardConfig, judge_policy
from kleash.ledger import MeasurementEntry, digest_run, encode, steps_made, verify_chain
from kleash.records import KLReading
from kleash.replay import verify_run
from tests.ledger.version1 import Version1

KL = KLReading(
    value=0.0,
    low=None,
    high=None,
    n=8,
    clusters=4,
    unit="response",
    direction="policy_ref",
    estimator="exact",
    reference="base",
)
CONFIG = {"dpo": {"beta": 0.1}, "train": {"steps": 25, "meter_every": 10}}
KLS = {0: 0.0, 10: 1.5, 20: 4.0, 25: 5.0}


def make_run(
    run: Path,
    *,
    kls: dict[int, float] = KLS,
    max_kl: float | None = None,
    ending: str = "run.finished",
) -> Path:
    """Write a run directory as a metering loop would."""
    limits = GuardConfig(max_kl=max_kl)
    started = {
        "config": CONFIG | {"guard": limits.model_dump(mode="json")},
        "versions": {"kleash": "0.2.0"},
        "digests": {"policy": "p" * 64},
    }
    (run / "final").mkdir(parents=True)
    (run / "final" / "model.safetensors").write_bytes(b"weights")
    (run / "config.json").write_text(json.dumps(started))
    with Version1.create(run / "ledger") as ledger, (run / "metrics.jsonl").open("wb") as metrics:
        ledger.append("run.started", {**started, "kleash": "0.2.0"})
        for step, value in kls.items():
            line = encode({"step": step, KL.name: value}) + b"\n"
            kl = replace(KL, value=value)
            entry = MeasurementEntry(
                step=step,
                kl=kl,
                verdict=judge_policy(limits, kl),
                rollout_sha256="a" * 64,
                metrics_sha256=hashlib.sha256(line).hexdigest(),
            )
            ledger.append("measurement", entry.to_json())
            metrics.write(line)
        metrics.flush()
        ledger.append(ending, {"steps": max(kls, default=0), "files": digest_run(run)})
    return run


def forge(run: Path, edit: Callable[[list[Any]], None]) -> None:
    """Edit the entries, then compute chain and head again, as whoever holds the files can."""
    ledger = run / "ledger"
    entries = [json.loads(line) for line in (ledger / "ledger.jsonl").read_bytes().splitlines()]
    edit(entries)
    prev, lines = "0" * 64, []
    for seq, entry in enumerate(entries):
        entry |= {"seq": seq, "prev": prev}
        lines.append(encode(entry))
        prev = hashlib.sha256(b"\x00" + lines[-1]).hexdigest()
    (ledger / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (ledger / "head.json").write_bytes(encode({"size": len(lines), "leaf": prev}) + b"\n")


@pytest.mark.parametrize(
    ("kls", "ending", "status", "steps"),
    [
        (KLS, "run.finished", "finished", 25),
        ({0: 0.0, 10: 1.5}, "run.interrupted", "interrupted", 10),
        ({}, "run.failed", "failed", 0),
    ],
)
def test_a_run_of_measurements_verifies(
    kls: dict[int, float], ending: str, status: str, steps: int, tmp_path: Path
) -> None:
    found = verify_run(make_run(tmp_path / "run", kls=kls, ending=ending))
    assert found.problems == ()
    assert (found.status, found.steps, found.notes) == (status, steps, ())
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


def test_a_halt_is_replayed_and_ends_the_run(tmp_path: Path) -> None:
    over = {0: 0.0, 10: 1.5, 20: 4.0}
    run = make_run(tmp_path / "run", kls=over, max_kl=3.0, ending="run.failed")
    assert verify_run(run).ok
    on = make_run(tmp_path / "on", max_kl=3.0)
    assert [p.what for p in verify_run(on).problems] == ["a step after the guard's halt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_is_no_kl_halts_under_every_configuration(value: float) -> None:
    verdict = judge_policy(GuardConfig(), replace(KL, value=value))
    assert verdict.action == "halt"
    assert "not a KL to act on" in verdict.reasons[0]
    assert judge_policy(GuardConfig(max_kl=1.0), replace(KL, value=1.0)).action == "accept"


def body(place: int, *path: str, value: Any) -> Callable[[list[Any]], None]:
    def edit(entries: list[Any]) -> None:
        target = entries[place]["body"]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return edit


def drop(place: int) -> Callable[[list[Any]], None]:
    return lambda entries: entries.pop(place)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (drop(1), "not step 0"),
        (drop(2), "not step 10"),
        (drop(4), "does not count the 20 steps"),
        (body(2, "step", value=11), "not step 10"),
        (body(2, "step", value=True), "not step 10"),
        (body(3, "verdict", "action", value="halt"), "the verdict is halt; the guard gives accept"),
        (body(3, "verdict", "action", value="reject"), "the guard gives accept"),
        (body(3, "kl", "value", value=3.9), "not what the ledger says"),
        (body(3, "kl", "direction", value="new_old"), "kl_new_old_per_response"),
        (body(3, "kl", "value", value="four"), "not the body of a measurement"),
        (body(3, "kl_coef", value=0.1), "not the body of a measurement"),
        (body(0, "config", "rl", value={"kl_target": 4.0}), "measurement belongs here"),
        (body(0, "config", "guard", value={"max_kl": 1.0}), "the guard gives halt"),
        (body(0, "config", "guard", value=None), "no usable configuration of the guard"),
        (body(0, "config", "train", "meter_every", value=5), "not step 5"),
        (body(0, "config", "train", "meter_every", value=0), "not a step that is due"),
        (body(5, "steps", value=20), "does not count the 25 steps"),
        (lambda entries: entries[2].update(type="update"), "no entry of type update"),
        (lambda entries: entries.insert(5, entries[4] | {}), "not a step that is due"),
    ],
)
def test_forged_records_are_found(
    edit: Callable[[list[Any]], None], what: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", max_kl=20.0)
    forge(run, edit)
    found = verify_run(run)
    assert any(what in str(problem) for problem in found.problems), found.problems


def test_a_finish_without_its_last_measurement_is_found(tmp_path: Path) -> None:
    def cut(entries: list[Any]) -> None:
        entries.pop(4)
        entries[4]["body"]["steps"] = 20

    run = make_run(tmp_path / "run")
    forge(run, cut)
    assert any("was due" in problem.what for problem in verify_run(run).problems)


def test_any_altered_byte_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("ledger/ledger.jsonl", "metrics.jsonl", "config.json", "final/model.safetensors"):
        path = run / name
        whole = path.read_bytes()
        for place in range(0, len(whole), 11):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert not verify_run(run).ok, (name, place)
        path.write_bytes(whole)
    assert verify_run(run).ok


def test_steps_are_counted_whatever_was_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    forge(run, body(2, "step", value="ten"))
    assert steps_made(verify_chain(run / "ledger").entries) == 25
