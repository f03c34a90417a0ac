"""A sample of what benchmarks/tamper.py does whole: both verifiers find every kind of change to a signed ledger."""

from pathlib import Path

import pytest

from tests.ledger import tamper


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tamper.sized(monkeypatch.setattr)
    return tamper.write_ledger(tmp_path / "ledger")


def test_both_find_changes_of_every_kind(ledger: Path) -> None:
    tally = tamper.all_changes(ledger, every=211)
    assert tally.missed == []
    assert tally.made == tally.first == tally.second
    assert tally.made["bit flipped"] > 100
    orders = ["file removed", "entry dropped", "entry repeated", "entries swapped"]
    assert [tally.made[kind] for kind in orders] == [4, 5, 30, 10]


def test_a_change_that_is_missed_is_counted_as_missed(ledger: Path) -> None:
    """A kept checkpoint that is gone: `kleash verify` knows that there was one; the other reads what is there."""
    (ledger / "checkpoints" / "2.note").unlink()
    tally = tamper.Tally()
    trial = tamper.Trial("file removed", "checkpoints/2.note", {})
    tally.add(trial, first=tamper.finds(ledger), second=not tamper.accepts(ledger))
    assert (tally.made.total(), tally.first.total(), tally.second.total()) == (1, 1, 0)
    assert tally.missed == ["file removed: checkpoints/2.note"]


def test_a_cut_back_to_a_signed_state_is_found_with_a_later_checkpoint_alone(ledger: Path) -> None:
    cuts = tamper.all_cuts(ledger)
    assert {(cut.size, cut.held) for cut in cuts if cut.said} == {(2, 4), (2, 5), (4, 5)}
    assert {(cut.size, cut.held) for cut in cuts if not cut.said} == {
        *((2, 0), (4, 0), (5, 0)),
        *((2, 2), (4, 2), (5, 2), (4, 4), (5, 4), (5, 5)),
    }
    assert all(map(tamper.is_right, cuts))
