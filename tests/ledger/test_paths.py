"""A run to verify may come from anybody: nothing outside of it is read, and nothing that would never answer."""

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from signal import ITIMER_REAL, SIGALRM, setitimer, signal

import pytest

from kleash.errors import InputError
from kleash.ledger import (
    HEAD_FILE,
    LEDGER_FILE,
    digest_run,
    read,
    refusal,
    sha256_file,
    verify_chain,
)
from kleash.replay import Verification, verify_run
from tests.ledger.version1 import Version1

CONFIG = {
    "config": {
        "model": {},
        "rl": {"controller": "fixed", "kl_coef": 0.1},
        "guard": {},
        "optimizer": {"beta1": 0.9},
        "algorithm": {"num_epochs": 1, "num_minibatches": 1},
        "rollout": {"num_prompts": 1, "group_size": 1},
    },
    "versions": {},
    "digests": {},
}


@contextmanager
def at_once() -> Generator[None]:
    """Ends what would wait for ever."""

    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")  # no OSError, which a verification deals with

    before = signal(SIGALRM, give_up)
    setitimer(ITIMER_REAL, 10.0)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0.0)
        signal(SIGALRM, before)


@pytest.fixture(params=["run.finished", None], ids=["finished", "unfinished"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run without a step, with all that a run leaves."""
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    (run / "final" / "model.safetensors").write_bytes(b"weights")
    (run / "config.json").write_text(json.dumps(CONFIG))
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).touch()
    with Version1.create(run / "ledger") as ledger:
        ledger.append("run.started", CONFIG)
        if request.param:
            ledger.append(request.param, {"steps": 0, "files": digest_run(run)})
    return run


def verified(run: Path) -> Verification:
    with at_once():
        return verify_run(run)


def problems(run: Path) -> list[str]:
    return [str(problem) for problem in verified(run).problems]


def move_out(run: Path, name: str) -> None:
    """Leaves a link where a file or a directory was."""
    outside = run.parent / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)


def make_pipe(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)


def test_an_honest_run_verifies_and_so_does_a_link_to_it(run: Path) -> None:
    assert problems(run) == []
    link = run.parent / "latest"
    link.symlink_to(run)
    assert problems(link) == []
    assert problems(link / "ledger") == []


def test_a_link_inside_the_run_is_followed(run: Path) -> None:
    (run / "ledger").rename(run / "record")
    (run / "ledger").symlink_to("record")
    assert problems(run) == []


@pytest.mark.parametrize("name", ["ledger", "ledger/ledger.jsonl"])
def test_a_ledger_that_lies_elsewhere_is_not_this_runs(run: Path, name: str) -> None:
    move_out(run, name)
    found = verified(run)
    assert [str(problem) for problem in found.problems] == [
        "ledger/ledger.jsonl: the path leads out of the run; it was not opened"
    ]
    assert (found.entries, found.ok, found.checks) == (0, False, ("chain", "head"))


def test_a_head_that_lies_elsewhere_is_not_this_runs(run: Path) -> None:
    move_out(run, "ledger/head.json")
    assert problems(run) == ["ledger/head.json: the path leads out of the run; it was not opened"]
    assert problems(run / "ledger") == [
        "head.json: the path leads out of the run; it was not opened"
    ]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (move_out, "the path leads out of the run; it was not opened"),
        (make_pipe, "not a regular file; it was not opened"),
    ],
)
def test_evidence_is_a_regular_file_of_the_run(
    run: Path, name: str, change: Callable[[Path, str], None], what: str
) -> None:
    change(run, name)
    assert f"{name}: {what}" in problems(run)


@pytest.mark.parametrize("name", ["samples.jsonl", "final/model.safetensors"])
def test_a_pipe_in_place_of_a_recorded_file_is_found(run: Path, name: str) -> None:
    finished = verified(run).status == "finished"
    make_pipe(run, name)
    assert problems(run) == ([f"{name}: recorded, but not there"] if finished else [])


def test_a_pipe_for_a_head_is_no_head(run: Path) -> None:
    make_pipe(run, "ledger/head.json")
    assert problems(run) == ["ledger/head.json: not a regular file; it was not opened"]
    with at_once():
        assert "missing, or cannot be read" in str(verify_chain(run / "ledger").problems[0])


def test_a_pipe_for_a_ledger_is_no_ledger(run: Path) -> None:
    make_pipe(run, "ledger/ledger.jsonl")
    with at_once():
        with pytest.raises(InputError, match="nothing to verify here"):
            verify_run(run)
        with pytest.raises(InputError, match="no ledger here"):
            read(run / "ledger")


def test_a_final_directory_that_lies_elsewhere_is_not_searched(run: Path) -> None:
    finished = verified(run).status == "finished"
    (run / "final" / "model.safetensors").unlink()
    (run / "final").rmdir()
    (run / "final").symlink_to("/")
    expected = [
        "final/model.safetensors: the path leads out of the run; it was not opened",
        "final: the path leads out of the run; it was not opened",
    ]
    assert problems(run) == (expected if finished else [])


def test_a_digest_is_taken_of_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        with at_once(), pytest.raises(OSError, match=r"regular|No such file"):
            sha256_file(tmp_path / name)


def test_why_a_file_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "directory").mkdir(parents=True)
    (root / "file").touch()
    (root / "inward").symlink_to("file")
    (root / "outward").symlink_to(tmp_path / "nothing")
    (root / "broken").symlink_to("nothing")
    names = ("file", "inward", "missing", "directory", "broken", "outward", "../root2")
    assert [refusal(root, root / name).partition(";")[0] for name in names] == [
        *("", "", ""),
        *("not a regular file", "not a regular file"),
        *("the path leads out of the run", "the path leads out of the run"),
    ]


def test_the_names_of_a_ledgers_files() -> None:
    """The problems above name them, so they are written out there."""
    assert (LEDGER_FILE, HEAD_FILE) == ("ledger.jsonl", "head.json")
