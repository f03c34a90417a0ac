"""What a verification of a ledger found: its entries, what is wrong, and up to where it is signed."""

from dataclasses import asdict, dataclass
from typing import Any

from kleash.errors import TamperError
from kleash.ledger.entry import VERSION, ZERO_LEAF, Entry, encode
from kleash.ledger.keys import PublicKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that a verification found wrong."""

    where: str
    """A file, or a file and a line of it."""
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """How long the ledger is and the hash of its last entry: with it goes everything before."""

    size: int
    leaf: str

    def to_bytes(self) -> bytes:
        """The content of a head.json of version 1."""
        return encode(asdict(self)) + b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A ledger as read: the entries up to the first problem, and what was found."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """By whom and up to where it is signed, and traces of a crash: not tampering, but worth knowing."""
    version: int = VERSION
    """Of the format that it is written in."""
    origin: str = ""
    """Which ledger, in the words of its genesis; empty in version 1."""
    keys: tuple[PublicKey, ...] = ()
    """Those of its genesis, by each of which its head is signed; none in version 1."""
    signed: int = 0
    """Entries under the newest signature; 0 in version 1."""

    @property
    def traces(self) -> tuple[str, ...]:
        """What a crash left: the notes, but for the first of a signed ledger, which says who signed it."""
        return self.notes[1:] if self.keys else self.notes

    @property
    def head(self) -> Head:
        """The head of the entries read."""
        return Head(
            size=len(self.entries), leaf=self.entries[-1].leaf if self.entries else ZERO_LEAF
        )


def linked(entry: Entry, before: list[Entry]) -> Entry:
    """The entry, if it follows those before it.

    Raises:
        TamperError: it doesn't.
    """
    if entry.seq != len(before):
        raise TamperError("out of sequence", expected=f"seq {len(before)}", got=f"seq {entry.seq}")
    if entry.prev != (before[-1].leaf if before else ZERO_LEAF):
        raise TamperError("prev is not the hash of the line before: one of the two was changed")
    return entry
