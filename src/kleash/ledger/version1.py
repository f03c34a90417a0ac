"""Reading a ledger of version 1: one file of entries, and a head that nobody signed. None is written any more."""

from pathlib import Path

from kleash.errors import InputError, TamperError
from kleash.ledger.entry import MAX_LINE, ZERO_LEAF, Entry, parse_entry, parse_object
from kleash.ledger.found import Chain, Head, Problem, linked
from kleash.ledger.paths import open_regular

LEDGER_FILE = "ledger.jsonl"
HEAD_FILE = "head.json"


def verify_version_1(directory: Path) -> Chain:
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
                entries.append(
                    linked(_of_version_1(parse_entry(line.removesuffix(b"\n"))), entries)
                )
    except OSError as error:
        raise InputError("the ledger cannot be read", got=error.strerror or "") from error
    except TamperError as error:
        where = f"{LEDGER_FILE} line {len(entries) + 1}"
        problem = Problem(where=where, what=str(error))
        return Chain(entries=tuple(entries), problems=(problem,), version=1)
    return _held_against_heads(before, _head_bytes(directory), tuple(entries), torn)


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
        problem = Problem(where=HEAD_FILE, what=str(error))
        return Chain(entries=entries, problems=(problem,), version=1)
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
        version=1,
    )


def _of_version_1(entry: Entry) -> Entry:
    if entry.v != 1:
        raise TamperError("the entry is of another version than the ledger", got=f"v {entry.v}")
    return entry


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
