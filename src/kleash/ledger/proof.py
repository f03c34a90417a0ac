"""One entry's place in a ledger, proved offline: what to hand to someone who has neither the run nor a network.

    c2sp.org/tlog-proof@v1
    index <seq>
    <hash in base64>          the inclusion proof, from the leaf up
    ...

    <the signed checkpoint, as it is>

Source: C2SP tlog-proof. With the entry's line and the ledger's public key this shows that the entry was in the ledger
at that place when the checkpoint was signed, and nothing about the other entries. The format's `extra` line, which
nothing signs, is neither written nor taken.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kleash.errors import InputError, TamperError
from kleash.ledger.entry import Entry, parse_entry
from kleash.ledger.keys import PublicKey, from_base64
from kleash.ledger.merkle import inclusion_proof, root_of, verify_inclusion
from kleash.ledger.note import MAX_NOTE, Checkpoint, note_text, open_checkpoint, parse_checkpoint

PROOF_HEADER = "c2sp.org/tlog-proof@v1"
PROOF_SUFFIX = ".tlog-proof"
"""How the names of files with proofs end."""
MAX_HASHES = 63
"""Hashes in the longest proof: one for each level of the largest tree."""

_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Proven:
    """What a proof showed."""

    entry: Entry
    checkpoint: Checkpoint
    """The signed head of the ledger that the entry is in."""


def prove(leaves: Sequence[bytes], index: int, note: bytes) -> bytes:
    """The proof that entry `index` is in the ledger of a signed checkpoint.

    Args:
        leaves: the leaf hashes of the ledger's entries; there may be more than the checkpoint has.
        index: the entry's `seq`.
        note: the signed checkpoint; its signatures are not checked here.

    Raises:
        InputError: the checkpoint is not of these entries, or the entry is not under it.
        TamperError: `note` is no checkpoint.
    """
    checkpoint = parse_checkpoint(note_text(note))
    hashes = inclusion_proof(leaves, index, checkpoint.size)
    if root_of(leaves[: checkpoint.size]) != checkpoint.root:
        raise InputError("the checkpoint is not of this ledger: their roots differ")
    lines = [PROOF_HEADER, f"index {index}", *(base64.b64encode(item).decode() for item in hashes)]
    return "\n".join(lines).encode() + b"\n\n" + note


def check_proof(
    proof: bytes, line: bytes, keys: Iterable[PublicKey], *, origin: str | None = None
) -> Proven:
    """Check that an entry is in a ledger that one of `keys` signed.

    Args:
        proof: as `prove` made it.
        line: the entry's line of the ledger, without its LF.
        keys: those whose word is taken, as in `open_checkpoint`.
        origin: which ledger it must be, where that is known.

    Raises:
        TamperError: it is not, by this proof.
    """
    index, hashes, note = _parse(proof)
    checkpoint = open_checkpoint(note, keys, origin=origin)
    entry = parse_entry(line)
    verify_inclusion(
        leaf=bytes.fromhex(entry.leaf),
        index=index,
        size=checkpoint.size,
        proof=hashes,
        root=checkpoint.root,
    )
    if entry.seq != index:
        raise TamperError(
            "the entry says that it has another place in the ledger",
            expected=f"seq {index}",
            got=f"seq {entry.seq}",
        )
    return Proven(entry=entry, checkpoint=checkpoint)


def _parse(proof: bytes) -> tuple[int, list[bytes], bytes]:
    """Index, hashes and note."""
    # A bound before anything is split; the note's own is checked where it is read.
    if len(proof) > 2 * MAX_NOTE:
        raise TamperError("not a proof: it is too long", expected=f"at most {2 * MAX_NOTE} bytes")
    head, blank, note = proof.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise TamperError("not a proof: it is not ASCII above the checkpoint") from error
    if lines[0] != PROOF_HEADER or not blank:
        raise TamperError(
            "not a proof",
            expected=f"{PROOF_HEADER}, an index, hashes, a blank line and a checkpoint",
        )
    found = _INDEX.fullmatch(lines[1]) if len(lines) > 1 else None
    if not found:
        raise TamperError(
            "not a proof: its second line is not an index", expected="`index` and plain digits"
        )
    if len(lines) > 2 + MAX_HASHES:
        raise TamperError("not a proof: it has too many hashes", expected=f"at most {MAX_HASHES}")
    try:
        return int(found[1]), [from_base64(line) for line in lines[2:]], note
    except ValueError as error:
        raise TamperError("not a proof: a hash is not in canonical base64") from error
