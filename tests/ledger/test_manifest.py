"""One digest vouches for a directory: what was changed, added, taken away or led elsewhere is found."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kleash.errors import TamperError
from kleash.ledger import encode
from kleash.ledger.durable import discard_directory, sync_data
from kleash.ledger.evidence import check_checkpoints, check_files
from kleash.ledger.manifest import MANIFEST_FILE, check_sealed, seal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "run" / "checkpoints" / "step-000001"
    (root / "policy").mkdir(parents=True)
    (root / "state.json").write_bytes(b"{}\n")
    (root / "policy" / "weights").write_bytes(b"weights")
    return root


def test_a_directory_as_it_was_sealed(directory: Path) -> None:
    digest = seal(directory)
    check_sealed(directory, digest)
    assert seal(directory) == digest


def elsewhere(root: Path) -> None:
    (root / "policy" / "weights").rename(root.parent / "weights")
    (root / "policy" / "weights").symlink_to(root.parent / "weights")


def manifest_elsewhere(root: Path) -> None:
    (root / MANIFEST_FILE).rename(root.parent / MANIFEST_FILE)
    (root / MANIFEST_FILE).symlink_to(root.parent / MANIFEST_FILE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "state.json").write_bytes(b"[]\n"), "'state.json': changed since"),
        (lambda d: (d / "state.json").unlink(), "'state.json' is missing"),
        (lambda d: (d / "more").touch(), "'more' was added"),
        (elsewhere, "'policy/weights': the path leads out of the run"),
        (manifest_elsewhere, "manifest.json: the path leads out of the run"),
        (lambda d: (d / MANIFEST_FILE).unlink(), "manifest.json is missing"),
        (lambda d: (d / MANIFEST_FILE).write_bytes(b"{}\n"), "not the one that was recorded"),
    ],
)
def test_what_is_not_as_it_was_sealed(
    directory: Path, change: Callable[[Path], object], said: str
) -> None:
    digest = seal(directory)
    change(directory)
    with pytest.raises(TamperError) as error:
        check_sealed(directory, digest)
    assert said in str(error.value)


@pytest.mark.parametrize("content", [{"v": 1}, {"files": None}, {"files": []}])
def test_a_manifest_that_was_recorded_and_is_none(directory: Path, content: object) -> None:
    """Whoever signs can record the digest of anything."""
    line = encode(content) + b"\n"
    (directory / MANIFEST_FILE).write_bytes(line)
    with pytest.raises(TamperError, match="names no files"):
        check_sealed(directory, hashlib.sha256(line).hexdigest())


def test_checkpoints_that_lie_elsewhere_are_not_searched(directory: Path) -> None:
    run = directory.parents[1]
    directory.parent.rename(run.parent / "elsewhere")
    directory.parent.symlink_to(run.parent / "elsewhere")
    (problem,) = check_checkpoints(run, [], may_have_more=True)
    assert str(problem) == "checkpoints: the path leads out of the run; it was not opened"


def test_a_directory_below_final_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "final" / "deeper").mkdir(parents=True)
    (tmp_path / "final" / "deeper" / "weights").touch()
    empty = hashlib.sha256().hexdigest()
    assert check_files(tmp_path, {"final/deeper/weights": empty}) == []
    (problem,) = check_files(tmp_path, {})
    assert str(problem).startswith("final/deeper/weights: not in the record")


def test_what_a_broken_off_removal_left_is_removed_with_the_next(directory: Path) -> None:
    left = directory.with_name(".step-000001.old")
    (left / "rubbish").mkdir(parents=True)
    discard_directory(directory)
    assert list(directory.parent.iterdir()) == []


def test_where_there_is_no_fdatasync_the_whole_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.delattr(os, "fdatasync")
    monkeypatch.setattr(os, "fsync", synced.append)
    with (tmp_path / "file").open("wb") as file:
        sync_data(file.fileno())
        assert synced == [file.fileno()]
