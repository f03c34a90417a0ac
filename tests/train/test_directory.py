"""A run's files: lines that are written again, disks that fail, and a run that has no checkpoints."""

import os
import resource
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash.errors import InputError, LimitError, ResourceError
from kleash.ledger import Ledger, read
from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel
from kleash.records import StepRecord, Verdict
from kleash.train.directory import Conclusion, Ending, Lines, RunDirectory, begin
from kleash.train.resume import find_earlier
from kleash.train.trackers import Trackers
from tests.guarded_run import KL
from tests.ledger.written import KEY
from tests.train.small import save_small_model

STARTED = {"config": {"sft": {}, "train": {"steps": 1, "meter_every": 1}}, "versions": {}}
RECORD = StepRecord(
    step=0,
    kl=KL,
    kl_coef=None,
    verdict=Verdict(action="accept"),
    metrics={"step": 0, "kl": 1.0},
    samples=({"step": 0, "text": "a"},),
    breakdown={"step": 0},
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(str(save_small_model(tmp_path_factory.mktemp("model"))))


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """A disk with room for so many bytes in a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_lines_that_are_there_already_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthree\n")
    lines = Lines(path, 4)
    assert (lines.length, lines.ahead) == (4, b"two\nthree\n")
    lines.write(b"")
    lines.write(b"two\n")
    assert (lines.length, lines.ahead) == (8, b"three\n")
    lines.write(b"3\n")  # another than it was: what follows goes with it
    assert lines.ahead == b""
    lines.close()
    lines.close()
    assert path.read_bytes() == b"one\ntwo\n3\n"
    assert lines.extent.length == 10


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_file_that_cannot_be_read_is_not_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Input/output error"):
        Lines(Path("/proc/self/mem"), 0)
    assert os.listdir("/proc/self/fd") == before


def test_a_line_that_the_disk_takes_a_part_of_is_an_error(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines")
    with largest_file(10), pytest.raises(OSError, match="no space for the whole"):
        lines.write(b"x" * 20 + b"\n")
    assert lines.extent.length == 0
    lines.write(b"whole\n")  # what was taken of the other is taken off
    lines.close()
    assert (tmp_path / "lines").read_bytes() == b"whole\n"


def open_run(run: Path, policy: LanguageModel, conclude: Any = None) -> RunDirectory:
    def saved(ending: Ending) -> Conclusion:
        assert ending.last is None or ending.last.step == RECORD.step
        return Conclusion(policy, "A card.\n", KL if ending.measured else None)

    ledger = begin(run, STARTED, [KEY])
    return RunDirectory(run, ledger, conclude or saved, Trackers((), "cpu"))


def ending_of(run: Path) -> tuple[str, dict[str, Any]]:
    last = read(run / "ledger")[-1]
    return last.type, last.body


def test_a_run_without_checkpoints_has_its_files_and_its_ending(
    tmp_path: Path, policy: LanguageModel
) -> None:
    run = tmp_path / "run"
    with open_run(run, policy) as directory:
        directory.write(RECORD)
    kind, body = ending_of(run)
    assert (kind, body["kl"]) == ("run.finished", KL.to_json())
    assert {"config.json", "metrics.jsonl", "final/model.safetensors"} <= body["files"].keys()
    assert (run / "metrics.jsonl").read_bytes() == b'{"kl":1.0,"step":0}\n'
    assert (run / "drift.jsonl").read_bytes() == b'{"step":0}\n'
    with pytest.raises(InputError, match="can't be gone on with") as error:
        find_earlier(run, [KEY])
    assert error.value.got == "a run whose updates TRL made, which has no checkpoints"
    assert error.value.do == "choose another --run"


def test_what_else_the_figures_go_to_is_told_of_those_that_were_measured(
    tmp_path: Path, policy: LanguageModel
) -> None:
    run = tmp_path / "run"
    ledger = begin(run, STARTED, [KEY])
    concluded = Conclusion(policy, "A card.\n", None)
    trackers = Trackers(("tensorboard",), "cpu")
    with RunDirectory(run, ledger, lambda ending: concluded, trackers) as directory:
        metrics = {"step": 0, "kl": 1.0, "unmeasured": None}
        directory.write(replace(RECORD, metrics=metrics, seconds={"rollout": 2.0}))
    (events,) = (run / "tensorboard").glob("events.*")
    content = events.read_bytes()
    assert b"seconds/rollout" in content
    assert b"unmeasured" not in content


@pytest.mark.parametrize(
    ("error", "kind", "measured"),
    [(LimitError("over"), "run.failed", True), (KeyboardInterrupt(), "run.interrupted", False)],
)
def test_how_a_run_ended_is_recorded_and_measured_where_nobody_waits(
    tmp_path: Path, policy: LanguageModel, error: BaseException, kind: str, measured: bool
) -> None:
    run = tmp_path / "run"
    with pytest.raises(type(error)), open_run(run, policy):
        raise error
    found, body = ending_of(run)
    assert (found, body["kl"] is not None) == (kind, measured)


def test_a_run_whose_files_cannot_be_opened(tmp_path: Path, policy: LanguageModel) -> None:
    run = tmp_path / "run"
    (run / "samples.jsonl").mkdir(parents=True)
    with pytest.raises(ResourceError, match="cannot write to") as error:
        open_run(run, policy)
    assert error.value.got == "Is a directory"
    assert "free some space" in error.value.do


def test_a_step_that_there_is_no_room_for(tmp_path: Path, policy: LanguageModel) -> None:
    run = tmp_path / "run"
    directory = open_run(run, policy)
    directory.write(RECORD)
    with pytest.raises(ResourceError, match="cannot write to"), directory, largest_file(25):
        directory.write(RECORD)
    assert ending_of(run)[0] == "run.started"  # the disk that failed is not asked for an ending


def test_a_final_that_cannot_be_written_is_said_and_recorded(
    tmp_path: Path, policy: LanguageModel
) -> None:
    run = tmp_path / "run"
    directory = open_run(run, policy)
    (run / ".final.tmp").touch()  # in the way
    with pytest.raises(ResourceError, match=r"cannot write to .*final") as error, directory:
        pass
    assert isinstance(error.value.__cause__, OSError)
    kind, body = ending_of(run)
    assert (kind, body["reason"]) == ("run.failed", error.value.what)
    assert not (run / "final").exists()


def test_an_ending_that_the_disk_fails_at_leaves_the_ledger_to_the_next(
    tmp_path: Path, policy: LanguageModel
) -> None:
    def failing(ending: Ending) -> Conclusion:
        raise OSError(5, "Input/output error")

    run = tmp_path / "run"
    with pytest.raises(ResourceError) as error, open_run(run, policy, failing):
        pass
    assert error.value.got == "Input/output error"
    ledger, _ = Ledger.open(run / "ledger", [KEY])  # it is not locked any more
    ledger.close()


def test_a_run_that_cannot_be_begun_says_why_and_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write to") as error:
        begin(tmp_path / "file" / "run", STARTED, [KEY])
    assert error.value.got == "Not a directory"
    run = tmp_path / "run"
    (run / "config.json").mkdir(parents=True)
    with pytest.raises(ResourceError, match="cannot write to"):
        begin(run, STARTED, [KEY])
    ledger, _ = Ledger.open(run / "ledger", [KEY])
    ledger.close()


def test_what_a_ledger_does_not_take_begins_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too long"):
        begin(tmp_path / "run", {**STARTED, "config": "x" * (1 << 20)}, [KEY])
    ledger, chain = Ledger.open(tmp_path / "run" / "ledger", [KEY])
    ledger.close()
    assert chain.entries == ()
