"""The page that fixes the format is true: its fields exist, and its verifier of version 1 agrees with ours."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from kleash.ledger import (
    OVERRIDE,
    Change,
    MeasurementEntry,
    OverrideEntry,
    UpdateEntry,
    layout,
    verify_chain,
)
from kleash.ledger.override import MAX_REASON, TAG
from kleash.records import KLReading, Signals, UpdateFacts
from kleash.replay.sequence import ENDINGS, INTENT
from tests.ledger.version1 import Version1
from tests.ledger.written import KEY, write

PAGE = (Path(__file__).parents[2] / "docs" / "ledger-format.md").read_text(encoding="utf-8")


@pytest.fixture
def verifier(tmp_path: Path) -> Path:
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    path = tmp_path / "verifier.py"
    path.write_text(found.group(1))
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    with Version1.create(tmp_path / "ledger") as writer:
        for number in range(3):
            writer.append("update", {"step": number})
    return tmp_path / "ledger"


def run_verifier(verifier: Path, ledger: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(verifier), str(ledger)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_second_verifier_agrees_on_a_whole_ledger(verifier: Path, ledger: Path) -> None:
    done = run_verifier(verifier, ledger)

    assert done.returncode == 0
    assert done.stdout == f"3 entries, head {verify_chain(ledger).head.leaf}\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"step":0', b'"step":9'), (b'"step":2', b'"step":9'), (b'"step":2},', b'"step":2},\n')],
)
def test_the_second_verifier_finds_an_edit(
    verifier: Path, ledger: Path, old: bytes, new: bytes
) -> None:
    path = ledger / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(old, new))

    assert run_verifier(verifier, ledger).returncode != 0
    assert verify_chain(ledger).problems


def test_the_second_verifier_finds_a_cut(verifier: Path, ledger: Path) -> None:
    path = ledger / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))

    assert "shorter than its head" in run_verifier(verifier, ledger).stderr


RECORDS = [
    UpdateEntry,
    MeasurementEntry,
    OverrideEntry,
    Change,
    KLReading,
    Signals,
    UpdateFacts,
]


@pytest.mark.parametrize("record", RECORDS)
def test_the_page_names_every_field(record: type) -> None:
    missing = [field.name for field in fields(record) if not re.search(rf"\b{field.name}\b", PAGE)]
    assert missing == []


def test_the_page_names_every_type_of_entry() -> None:
    others = ("run.started", "plan.committed", "update.intent", "checkpoint.saved")
    others = (*others, "run.resumed", OVERRIDE)
    assert f"`{TAG.decode().strip()}`, a line feed" in PAGE
    assert f"1 to {MAX_REASON} characters" in PAGE
    assert all(
        f"`{name}`" in PAGE for name in (*ENDINGS, *others, *INTENT, "guard", "rl", "canary")
    )


def test_a_ledger_is_laid_out_as_the_page_says(tmp_path: Path) -> None:
    ledger = write(tmp_path / "ledger")
    assert {path.name for path in ledger.iterdir()} == {
        *("genesis.json", "segments", "head", "checkpoints", "lock")
    }
    origin = verify_chain(ledger).origin
    genesis = f'{{"keys":["{KEY.public.vkey}"],"origin":"{origin}","v":2}}\n'
    assert (ledger / "genesis.json").read_text() == genesis
    lines = (ledger / "head").read_text().split("\n")
    assert lines[:2] == [origin, "4"]
    assert lines[3] == ""
    assert lines[4].startswith(f"— {KEY.public.name} ")
    assert f"{layout.SEGMENT_ENTRIES} a segment" in PAGE
    assert f"every {layout.NOTE_EVERY}th" in PAGE
