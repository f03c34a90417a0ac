"""A format is a promise: a run of each version stays here, verifies, and its tampered copies do not."""

import shutil
from pathlib import Path

import pytest

from kleash.replay import verify_run

RUN = Path(__file__).parents[1] / "golden" / "ledger-v1"
HEAD = "43baf14f29ebadbef3fc7bda921be02880affb6c5e2ea630a74fea400b493c41"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def test_a_run_of_version_1_verifies() -> None:
    found = verify_run(RUN, HEAD)
    assert found.problems == ()
    assert (found.status, found.steps, found.entries, found.head) == ("finished", 4, 8, HEAD)
    assert (found.keys, found.notes) == ((), ())
    names = ("sequence", "replay", "config", "metrics", "checkpoints", "files")
    assert found.checks == ("chain", "head", "expected head", *names)


@pytest.mark.parametrize(
    "name",
    [
        "ledger/ledger.jsonl",
        "ledger/head.json",
        "config.json",
        "metrics.jsonl",
        "samples.jsonl",
        "final/model.safetensors",
    ],
)
def test_a_flipped_bit_is_found(run: Path, name: str) -> None:
    path = run / name
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 25)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert not verify_run(run).ok, place


@pytest.mark.parametrize("edit", ["drop", "swap", "repeat", "cut"])
def test_lines_out_of_place_are_found(run: Path, edit: str) -> None:
    path = run / "ledger" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(len(lines) - 1):
        changed = {
            "drop": lines[:at] + lines[at + 1 :],
            "swap": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
            "repeat": lines[: at + 1] + lines[at:],
            "cut": lines[:at],
        }
        path.write_bytes(b"".join(changed[edit]))
        assert not verify_run(run).ok, at


def test_an_entry_of_version_2_is_none_of_version_1(run: Path) -> None:
    path = run / "ledger" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"v":1}\n', b'"v":2}\n', 1))
    assert "another version" in str(verify_run(run).problems[0])
