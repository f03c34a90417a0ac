"""Every call to the disk fails once, as it can: the run says so, loses nothing, and goes on when all is well again."""

import gc
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kleash.errors import InputError, KleashError, ResourceError, TamperError
from kleash.replay import verify_run
from kleash.train.config import RunConfig
from kleash.train.run import train
from tests.train.disk import KINDS, Disk, Killed, Kind, watched
from tests.train.small import in_memory, remains, small_settings

_numbers = count()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with in_memory() as directory:
        yield directory


@pytest.fixture(scope="module")
def config(place: Path) -> RunConfig:
    """Two steps and two checkpoints."""
    settings: dict[str, Any] = small_settings(
        place, steps=3, checkpoint_every=1, num_samples=1, sample_every=3
    )
    settings["rollout"] = {"num_prompts": 2, "group_size": 2, "max_new_tokens": 2}
    return RunConfig.model_validate(settings)


def go(config: RunConfig, run: Path, steps: int | None = None) -> None:
    """Begins a run, or goes on with it; to its end, or to where it is killed."""
    for record in train(config, run, skip_self_test=True, resume=True):
        if record.step == steps:
            raise Killed


@pytest.fixture(scope="module")
def whole(place: Path, config: RunConfig) -> dict[str, bytes]:
    go(config, place / "whole")
    return remains(place / "whole")


@pytest.fixture(
    scope="module",
    params=[
        "a run",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("going on", "going on from the one before")
        ),
    ],
)
def before(request: pytest.FixtureRequest, place: Path, config: RunConfig) -> Path | None:
    """What there is of a run: nothing; or what a kill left, its newest checkpoint damaged or not, and some rubbish."""
    if request.param == "a run":
        return None
    live, left = (place / f"{request.param}, {name}" for name in ("live", "left"))
    steps = train(config, live, skip_self_test=True)
    next(steps)
    next(steps)
    shutil.copytree(live, left)
    steps.close()
    if request.param != "going on":
        (left / "checkpoints/step-000002/state.json").write_bytes(b"{}")
        shutil.copytree(left / "checkpoints/step-000002", left / "checkpoints/.step-000003.tmp")
        shutil.copytree(left / "checkpoints/step-000002", left / "checkpoints/.step-000001.old")
    return left


@pytest.fixture
def new(place: Path, before: Path | None) -> Any:
    """Makes the run anew, each time in the same place: it is as it was before."""

    def make() -> Path:
        run = place / f"run-{next(_numbers)}" / "run"
        run.parent.mkdir()
        if before is not None:
            shutil.copytree(before, run)
        return run

    return make


def open_files(run: Path) -> list[str]:
    """Files below a run that this process has open."""
    gc.collect()
    names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    paths = [os.readlink(name) for name in names if os.path.lexists(name)]
    return [path for path in paths if path.startswith(str(run))]


def fail(config: RunConfig, run: Path, nth: int, kind: Kind) -> str:
    """Has a run's nth call fail; what is wrong with what came of it, empty where nothing is."""
    disk, said = Disk(run.parent, nth, kind), ""
    try:
        with watched(disk):
            go(config, run)
    except (ResourceError, InputError, TamperError) as error:
        said = str(error)
        if isinstance(error, TamperError) and "cannot be read" not in said:
            return f"{disk.calls[nth]}: {said}"
    except Killed:
        said = "killed"
    name = disk.calls[nth]
    if files := open_files(run):
        return f"{name}: left open: {files}"
    if kind in ("kill", "ENOSPC") and not said:
        return f"{name}: nothing was said of it"
    try:
        found = verify_run(run)
    except InputError:  # before its first entry
        pass
    else:
        known = "checkpoints/step-000002"  # where it is damaged from the beginning
        if found.entries and any(known not in p.where for p in found.problems):
            return f"{name}: {found.problems} after {said}"
    return ""


def goes_on(config: RunConfig, run: Path, whole: dict[str, bytes]) -> str:
    """Goes on with a run; what is wrong with that."""
    try:
        go(config, run)
    except InputError as error:
        if "has finished" not in str(error):
            return f"can't go on: {error}"
    except KleashError as error:
        return f"can't go on: {error}"
    found = verify_run(run)
    if not found.ok:
        return str(found.problems)
    left = remains(run)
    return ", ".join(sorted(n for n in {*left, *whole} if left.get(n) != whole.get(n)))


def calls_of(config: RunConfig, run: Path) -> list[str]:
    with watched(Disk(run.parent)) as disk:
        go(config, run)
    return disk.calls


def broken(
    config: RunConfig, new: Any, whole: dict[str, bytes], points: list[tuple[int, Kind]]
) -> list[str]:
    """Calls after whose failure something is wrong."""
    wrong: list[str] = []
    for nth, kind in points:
        run = new()
        what = fail(config, run, nth, kind) or goes_on(config, run, whole)
        if what:
            wrong.append(f"call {nth} fails by {kind}: {what}")
        shutil.rmtree(run.parent)
    return wrong


def test_what_is_watched_is_what_is_not(config: RunConfig, new: Any, whole: Any) -> None:
    run = new()
    calls = calls_of(config, run)
    assert remains(run) == whole
    assert len(calls) > 100
    seen = {"os.fsync", "os.fdatasync", "os.rename", "os.replace", "file.write", "save_file"}
    assert seen <= {*calls}, sorted({*calls})


def test_a_call_to_the_disk_that_fails_is_told_and_loses_nothing(
    config: RunConfig, new: Any, whole: Any
) -> None:
    """Some of them; all are in the slow test."""
    size = len(calls_of(config, new()))
    points: list[tuple[int, Kind]] = [
        (nth, KINDS[i % 5]) for i, nth in enumerate(range(3, size, size // 5))
    ]
    assert broken(config, new, whole, points) == []


@pytest.mark.slow
def test_each_call_to_the_disk_that_fails_is_told_and_loses_nothing(
    config: RunConfig, new: Any, whole: Any
) -> None:
    """Every 23rd in one way; all five come in turn. `benchmarks/syscalls.py` goes through all of them."""
    size = len(calls_of(config, new()))
    assert broken(config, new, whole, [(nth, KINDS[nth % 5]) for nth in range(0, size, 23)]) == []


def with_limit(config: RunConfig, run: Path, size: int) -> str:
    """Goes on where no file can be longer than that; what is said of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        go(config, run)
    except ResourceError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 700, 1500, 2500, 4000, 6000, 9000])
def test_where_there_is_no_room_for_a_file_a_run_says_so_and_goes_on_once_there_is(
    config: RunConfig, place: Path, whole: dict[str, bytes], size: int
) -> None:
    """By a limit that the kernel keeps."""
    run = place / f"limit-{size}" / "run"
    run.parent.mkdir()
    said = with_limit(config, run, size)
    assert "cannot" in said
    assert open_files(run) == []
    with suppress(InputError):  # before its first entry
        found = verify_run(run)
        assert found.ok or not found.entries, found.problems
    assert goes_on(config, run, whole) == ""


ALLOCATIONS: dict[str, tuple[str, str]] = {
    "sampling": ("kleash.train.progress", "sample"),
    "reading": ("kleash.train.loop", "meter"),
    "update": ("kleash.train.loop", "propose_update"),
    "copy": ("kleash.train.learner", "Snapshot"),
    "entry": ("kleash.ledger.store", "encode_entry"),
    "line": ("kleash.train.directory", "metrics_line"),
    "streams": ("kleash.train.directory", "random_tensors"),
    "weights": ("kleash.train.checkpoint", "save_language_model"),
    "state": ("kleash.train.checkpoint", "save_file"),
    "seal": ("kleash.train.checkpoint", "seal"),
    "reading again": ("kleash.train.checkpoint", "check_sealed"),
    "final": ("kleash.train.directory", "save_language_model"),
    "digests": ("kleash.train.directory", "digest_run"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ALLOCATIONS)
def test_where_there_is_no_memory_a_run_says_so_and_goes_on_once_there_is(
    config: RunConfig,
    place: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    run, calls = place / f"memory-{next(_numbers)}" / "run", count()
    run.parent.mkdir()
    module, name = ALLOCATIONS[what]
    real = getattr(sys.modules[module], name)

    def scarce(*arguments: Any, **options: Any) -> Any:
        if next(calls) == (what not in ("final", "digests")):  # the second time, where there is one
            raise MemoryError
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[module], name, scarce)
        with pytest.raises(ResourceError, match="no memory left"):
            go(config, run)
    assert open_files(run) == []
    assert verify_run(run).ok, verify_run(run).problems
    assert goes_on(config, run, whole) == ""
