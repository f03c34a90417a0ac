"""Reading a ledger: each line's bytes, its link to the line before, and the head over them all."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kleash.errors import InputError, TamperError
from kleash.ledger.entry import MAX_LINE, ZERO_LEAF, Entry, encode, parse_entry, parse_object
from kleash.ledger.paths import open_regular

LEDGER_FILE = "ledger.jsonl"
HEAD_FILE = "head.json"


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
        """The content of head.json."""
        return encode(asdict(self)) + b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A ledger as read: the entries up to the first problem, and what was found."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """Traces of a crash: not tampering, but worth knowing."""

    @property
    def head(self) -> Head:
        """The head of the entries read."""
        return Head(
            size=len(self.entries), leaf=self.entries[-1].leaf if self.entries else ZERO_LEAF
        )


def verify_chain(directory: Path) -> Chain:
    """Check the bytes, the links and the head of the ledger in `directory`, not its meaning.

    A writer killed between writing a line and acknowledging it in head.json leaves one line, or a
    part of one, beyond the head. Those are notes, and the part is no entry; anything else out of
    place is a problem.

    Raises:
        InputError: there is no ledger to read.
    """
    path = directory / LEDGER_FILE
    if not path.is_file():
        raise InputError("no ledger here", expected=LEDGER_FILE, got=ascii(str(directory)))
    before = _head_bytes(directory)
    entries: list[Entry] = []
    torn = 0
    try:
        with open_regular(path) as lines:
            while line := lines.readline(MAX_LINE + 2):
                if not line.endswith(b"\n") and len(line) <= MAX_LINE:
                    torn = len(line)
                    break
                entries.append(_linked(parse_entry(line.removesuffix(b"\n")), entries))
    except OSError as error:
        raise InputError("the ledger cannot be read", got=error.strerror or "") from error
    except TamperError as error:
        where = f"{LEDGER_FILE} line {len(entries) + 1}"
        return Chain(entries=tuple(entries), problems=(Problem(where=where, what=str(error)),))
    return _held_against_heads(before, _head_bytes(directory), tuple(entries), torn)


def read(directory: Path) -> list[Entry]:
    """The entries of a ledger whose chain and head are whole.

    Raises:
        InputError: there is no ledger to read.
        TamperError: it is not as written; the message names the file and the line.
    """
    chain = verify_chain(directory)
    if chain.problems:
        raise TamperError(str(chain.problems[0]))
    return list(chain.entries)


def _linked(entry: Entry, before: list[Entry]) -> Entry:
    if entry.seq != len(before):
        raise TamperError("out of sequence", expected=f"seq {len(before)}", got=f"seq {entry.seq}")
    if entry.prev != (before[-1].leaf if before else ZERO_LEAF):
        raise TamperError("prev is not the hash of the line before: one of the two was changed")
    return entry


def _held_against_heads(
    before: bytes, after: bytes, entries: tuple[Entry, ...], torn: int
) -> Chain:
    """Hold the entries against the head from before they were read and the one from after.

    At rest the two are one. While a run goes on, what the earlier head counts must be there, and no
    more may lie beyond the later head than the one line that is being appended.
    """
    try:
        head, later = _parse_head(before), _parse_head(after)
    except TamperError as error:
        return Chain(entries=entries, problems=(Problem(where=HEAD_FILE, what=str(error)),))
    problems: list[str] = []
    beyond = len(entries) - later.size
    if len(entries) < head.size:
        problems.append(f"the ledger has {len(entries)} whole entries; the head counts {head.size}")
    elif head.leaf != (entries[head.size - 1].leaf if head.size else ZERO_LEAF):
        problems.append(f"the head's hash is not that of entry {head.size}")
    elif beyond + (torn > 0) > 1:
        problems.append("more than one line lies beyond the head; a crash leaves at most one")
    notes: list[str] = []
    if beyond == 1:
        notes.append("the last entry is beyond the head: its writer stopped, or is at work")
    if torn:
        notes.append(f"torn tail: {torn} bytes of an unfinished line, which is no entry")
    return Chain(
        entries=entries,
        problems=tuple(Problem(where=HEAD_FILE, what=what) for what in problems),
        notes=tuple(notes),
    )


def _head_bytes(directory: Path) -> bytes:
    """The content of head.json; nothing where there is none, which no head parses from."""
    try:
        with open_regular(directory / HEAD_FILE) as file:
            return file.read(MAX_LINE)
    except OSError:
        return b""


def _parse_head(content: bytes) -> Head:
    if not content:
        raise TamperError("the head is missing, or cannot be read")
    data = parse_object(content.removesuffix(b"\n"))
    size, leaf = data.get("size"), data.get("leaf")
    if not isinstance(size, int) or size < 0 or not isinstance(leaf, str):
        raise TamperError("not a head", expected="size and leaf")
    head = Head(size=size, leaf=leaf)
    if head.to_bytes() != content:
        raise TamperError("not a head", expected="size and leaf, and a line feed")
    return head
