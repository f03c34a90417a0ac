"""Which checkpoints a ledger keeps follows from its entries: one that was deleted is missed."""

from pathlib import Path

import pytest

from kleash.ledger import Ledger, layout, verify_chain
from tests.ledger.written import KEY


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven entries, of which a checkpoint is kept after the 2nd, 3rd, 4th, 6th and 7th."""
    monkeypatch.setattr(layout, "NOTE_EVERY", 3)
    with Ledger.create(tmp_path, [KEY]) as writer:
        for action in ("accept", "reject", "accept"):
            writer.append("update", {"verdict": {"action": action}})
        writer.append("checkpoint.saved", {"step": 3})
        writer.append("update", {"verdict": {"action": "accept"}})
        writer.append("update", {"verdict": {"action": "accept"}})
        writer.append("run.finished", {"steps": 5})
    return tmp_path


def test_each_that_was_deleted_is_missed_but_the_heads_own(ledger: Path) -> None:
    kept = sorted((ledger / "checkpoints").iterdir(), key=lambda path: int(path.stem))
    assert [path.name for path in kept] == ["2.note", "3.note", "4.note", "6.note", "7.note"]
    assert verify_chain(ledger).problems == ()
    for path in kept[:-1]:
        content = path.read_bytes()
        path.unlink()
        said = [str(problem) for problem in verify_chain(ledger).problems]
        assert said == [f"checkpoints/{path.name}: a checkpoint that was kept there is gone"]
        # One that you hold is not in its place.
        since = verify_chain(ledger, [KEY.public], since=content)
        assert [problem.where for problem in since.problems] == [f"checkpoints/{path.name}"]
        path.write_bytes(content)
    kept[-1].unlink()
    assert verify_chain(ledger).problems == ()


def test_one_that_is_damaged_is_said_once(ledger: Path) -> None:
    (ledger / "checkpoints" / "4.note").write_bytes(b"")
    assert [p.where for p in verify_chain(ledger).problems] == ["checkpoints/4.note"]


def test_where_all_are_gone_with_their_directory_that_is_said(ledger: Path) -> None:
    for path in (ledger / "checkpoints").iterdir():
        path.unlink()
    assert len(verify_chain(ledger).problems) == 4
    (ledger / "checkpoints").rmdir()
    assert [p.where for p in verify_chain(ledger).problems] == ["checkpoints"]


def test_one_that_a_crash_came_before_is_made_up_for(ledger: Path) -> None:
    note = (ledger / "checkpoints" / "7.note").read_bytes()
    (ledger / "checkpoints" / "7.note").unlink()
    writer, _ = Ledger.open(ledger, [KEY])
    with writer:
        writer.append("run.resumed", {"step": 3})
    assert (ledger / "checkpoints" / "7.note").read_bytes() == note
    assert verify_chain(ledger).problems == ()
    writer, _ = Ledger.open(ledger, [KEY])
    writer.close()
    assert not (ledger / "checkpoints" / "8.note").exists()


def test_an_empty_ledger_keeps_none(tmp_path: Path) -> None:
    Ledger.create(tmp_path, [KEY]).close()
    writer, chain = Ledger.open(tmp_path, [KEY])
    writer.close()
    assert (chain.problems, list((tmp_path / "checkpoints").iterdir())) == ((), [])
