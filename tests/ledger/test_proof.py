"""The offline proof of an entry: it holds for that entry, at that place, in that ledger, and for nothing else."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import InputError, TamperError
from kleash.ledger import (
    SigningKey,
    check_proof,
    hash_line,
    inclusion_proof,
    prove,
    root_of,
    sign_checkpoint,
)
from kleash.ledger.entry import encode_entry
from kleash.ledger.note import MAX_NOTE

KEY = SigningKey.generate()
TIME = "2030-01-02T03:04:05.678901Z"


def entries(number: int) -> list[bytes]:
    lines: list[bytes] = []
    prev = "0" * 64
    for seq in range(number):
        body = {"step": seq}
        lines.append(encode_entry(seq=seq, type="update", time=TIME, body=body, prev=prev))
        prev = hash_line(lines[-1])
    return lines


LINES = entries(33)
LEAVES = [bytes.fromhex(hash_line(line)) for line in LINES]


def head_of(size: int) -> bytes:
    return sign_checkpoint("kleash/run-1", size, root_of(LEAVES[:size]), [KEY])


def holds(proof: bytes, line: bytes) -> bool:
    try:
        check_proof(proof, line, [KEY.public])
    except TamperError:
        return False
    return True


@given(size=st.integers(1, 33), data=st.data())
def test_a_proof_is_of_one_entry(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = prove(LEAVES, index, head_of(size))
    proven = check_proof(proof, LINES[index], [KEY.public], origin="kleash/run-1")
    assert (proven.entry.seq, proven.entry.body) == (index, {"step": index})
    assert (proven.checkpoint.size, proven.checkpoint.root) == (size, root_of(LEAVES[:size]))
    assert [at for at in range(33) if holds(proof, LINES[at])] == [index]


def test_the_bytes_of_a_proof() -> None:
    """C2SP tlog-proof@v1: header, index, hashes from the leaf up, blank line, the checkpoint as it is."""
    note = head_of(3)
    assert prove(LEAVES, 2, note).split(b"\n\n", 1)[1] == note
    assert prove(LEAVES, 2, note).startswith(b"c2sp.org/tlog-proof@v1\nindex 2\n")
    assert len(prove(LEAVES, 2, note).split(b"\n\n")[0].split(b"\n")) == 3
    assert prove(LEAVES, 0, head_of(1)) == b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + head_of(1)


def test_each_flipped_bit_of_proof_or_entry_is_seen() -> None:
    proof, line = prove(LEAVES, 4, head_of(7)), LINES[4]
    assert holds(proof, line)
    for at in range(len(proof)):
        for bit in range(8):
            assert not holds(proof[:at] + bytes([proof[at] ^ 1 << bit]) + proof[at + 1 :], line)
    for at in range(len(line)):
        for bit in range(8):
            assert not holds(proof, line[:at] + bytes([line[at] ^ 1 << bit]) + line[at + 1 :])


def test_each_byte_cut_off_or_put_in_is_seen() -> None:
    proof, line = prove(LEAVES, 4, head_of(7)), LINES[4]
    assert not [end for end in range(len(proof)) if holds(proof[:end], line)]
    for at in range(len(proof) + 1):
        for byte in (b"\n", b" ", b"A", b"0"):
            assert not holds(proof[:at] + byte + proof[at:], line)
    assert not holds(proof, line + b"\n")


def test_a_signature_by_nobody_known_proves_nothing() -> None:
    proof = prove(LEAVES, 4, head_of(7))
    with pytest.raises(TamperError, match="no signature by a known key"):
        check_proof(proof, LINES[4], [SigningKey.generate().public])
    with pytest.raises(TamperError, match="another ledger"):
        check_proof(proof, LINES[4], [KEY.public], origin="kleash/run-2")


def test_an_entry_at_another_place_than_it_says_is_refused() -> None:
    """A ledger whose own key put an entry elsewhere."""
    moved = [LEAVES[0], LEAVES[2]]
    note = sign_checkpoint("kleash/run-1", 2, root_of(moved), [KEY])
    with pytest.raises(TamperError, match="seq 1; got: seq 2"):
        check_proof(prove(moved, 1, note), LINES[2], [KEY.public])


def test_what_cannot_be_proved_is_not() -> None:
    with pytest.raises(InputError, match="not in the tree"):
        prove(LEAVES, 7, head_of(7))
    with pytest.raises(InputError, match="not in the tree"):
        prove(LEAVES[:6], 1, head_of(7))
    other = [hashlib.sha256(leaf).digest() for leaf in LEAVES]
    with pytest.raises(InputError, match="roots differ"):
        prove(other, 1, head_of(7))
    with pytest.raises(TamperError, match="not a note"):
        prove(LEAVES, 1, b"")
    assert inclusion_proof(LEAVES, 0, 1) == ()


HEADER = b"c2sp.org/tlog-proof@v1\n"
HASH = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (b"", "not a proof; expected: c2sp"),
        (b"c2sp.org/tlog-proof@v2\nindex 0\n", "not a proof; expected: c2sp"),
        (HEADER, "not an index"),
        (HEADER + b"extra AAAA\nindex 0\n", "not an index"),
        (HEADER + b"index 00\n", "not an index"),
        (HEADER + b"index +1\n", "not an index"),
        (HEADER + b"index -1\n", "not an index"),
        (HEADER + b"index  1\n", "not an index"),
        (HEADER + b"index 1\r\n", "not an index"),
        (HEADER + b"index " + b"9" * 20 + b"\n", "not an index"),
        (HEADER + "index \u0667\n".encode(), "not ASCII"),
        (HEADER + b"index 0\n" + HASH[:-2] + b"\n", "canonical base64"),
        (HEADER + b"index 0\nAAAA\n", "not a hash"),
        (HEADER + b"index 0\n" + HASH, "too many hashes"),
        (HEADER + b"index 0\n" + 64 * HASH, "at most 63"),
        (HEADER + b"index 1\n", "beyond the tree"),
        (HEADER + b"index 0\n" + b"x" * 2 * MAX_NOTE + b"\n", "too long"),
    ],
)
def test_what_is_no_proof_is_refused(head: bytes, why: str) -> None:
    note = head_of(1)
    check_proof(HEADER + b"index 0\n\n" + note, LINES[0], [KEY.public])
    with pytest.raises(TamperError, match=why):
        check_proof(head + b"\n" + note, LINES[0], [KEY.public])


@given(data=st.binary(max_size=300), at=st.integers(0, 700), cut=st.integers(0, 40))
def test_whatever_is_read_is_a_proof_or_refused(data: bytes, at: int, cut: int) -> None:
    proof = prove(LEAVES, 4, head_of(7))
    assert not holds(data, LINES[4])
    changed = proof[:at] + data + proof[at + cut :]
    assert holds(changed, LINES[4]) == (changed == proof)
    assert not holds(proof, data)


def test_a_proof_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(TamperError, match="a blank line and a checkpoint"):
        check_proof(HEADER + b"index 0\n", LINES[0], [KEY.public])
    with pytest.raises(TamperError, match="not a note"):
        check_proof(HEADER + b"index 0\n\n", LINES[0], [KEY.public])
