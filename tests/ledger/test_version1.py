"""Ledgers of version 1 are read as they were: what was a problem is one, and what a crash left is told apart."""

from pathlib import Path

import pytest

from kleash.errors import InputError
from kleash.ledger import HEAD_FILE, LEDGER_FILE, hash_line, read, verify_chain
from kleash.ledger.entry import MAX_LINE, encode, encode_entry
from tests.ledger.version1 import TIME, Version1


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Of four entries."""
    with Version1.create(tmp_path) as writer:
        for number in range(4):
            writer.append("update", {"step": number})
    return tmp_path


def line(prev: str, seq: int) -> bytes:
    return encode_entry(seq=seq, type="update", time=TIME, body={}, prev=prev, v=1) + b"\n"


def problem(ledger: Path) -> str:
    return str(verify_chain(ledger).problems[0])


def test_an_untouched_ledger_is_whole(ledger: Path) -> None:
    chain = verify_chain(ledger)
    assert (chain.problems, chain.notes, len(chain.entries), chain.version) == ((), (), 4, 1)
    assert (chain.keys, chain.signed) == ((), 0)


@pytest.mark.parametrize("name", [LEDGER_FILE, HEAD_FILE])
def test_every_flipped_byte_and_every_truncation_is_found(ledger: Path, name: str) -> None:
    path = ledger / name
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        for changed in (flipped, content[:place]):
            path.write_bytes(changed)
            assert verify_chain(ledger).problems, place


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n",
        b"{}\n",
        b'{"leaf":1,"size":4}\n',
        b'{"leaf":"","size":-1}\n',
        b'{"extra":1,"leaf":"","size":0}\n',
        b'{"leaf":"","size":true}\n',
        b'{"leaf":"","size":4}\n',
        b'{"leaf":"","size":0}\n',
    ],
)
def test_a_head_of_another_form_is_found(ledger: Path, head: bytes) -> None:
    (ledger / HEAD_FILE).write_bytes(head)
    assert problem(ledger).startswith(HEAD_FILE)


def test_what_a_crash_leaves_is_a_note_and_more_is_a_problem(ledger: Path) -> None:
    whole = (ledger / LEDGER_FILE).read_bytes()
    fifth = line(read(ledger)[-1].leaf, 4)
    sixth = line(hash_line(fifth[:-1]), 5)
    (ledger / LEDGER_FILE).write_bytes(whole + fifth)
    assert "beyond the head" in verify_chain(ledger).notes[0]
    (ledger / LEDGER_FILE).write_bytes(whole + fifth[:20])
    assert "torn tail: 20 bytes" in verify_chain(ledger).notes[0]
    for more in (fifth + sixth, fifth + sixth[:9]):
        (ledger / LEDGER_FILE).write_bytes(whole + more)
        assert "more than one line" in problem(ledger)


def test_a_line_without_end_is_not_read(ledger: Path) -> None:
    whole = (ledger / LEDGER_FILE).read_bytes()
    (ledger / LEDGER_FILE).write_bytes(whole + encode({"a": "x" * MAX_LINE}) + b"\n")
    assert problem(ledger).startswith(f"{LEDGER_FILE} line 5: the line is too long")


def test_a_head_that_is_missing_is_found(ledger: Path) -> None:
    (ledger / HEAD_FILE).unlink()
    assert "missing" in problem(ledger)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_ledger_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match="cannot be read"):
        verify_chain(tmp_path)
