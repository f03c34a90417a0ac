"""Reading a ledger: each line's bytes, its link to the line before, and the signatures over them all."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kleash.errors import InputError, TamperError
from kleash.ledger import layout
from kleash.ledger.entry import MAX_LINE, VERSION, Entry, parse_entry
from kleash.ledger.found import Chain, Problem, linked
from kleash.ledger.keys import PublicKey
from kleash.ledger.layout import (
    GENESIS_FILE,
    HEAD_NOTE,
    NOTE_DIRECTORY,
    SEGMENT_DIRECTORY,
    Genesis,
    is_kept,
    note_name,
    parse_genesis,
    place_of,
    read_bounded,
    segment_name,
)
from kleash.ledger.merkle import Frontier
from kleash.ledger.note import MAX_NOTE, Checkpoint, open_checkpoint
from kleash.ledger.paths import LEADS_OUT, leads_out, open_regular, refusal
from kleash.ledger.version1 import HEAD_FILE, LEDGER_FILE, verify_version_1

HELD = "the checkpoint you hold"
"""Where a problem is that `since` shows."""

_NOTE = re.compile(r"(0|[1-9][0-9]{0,18})\.note")


def verify_chain(
    directory: Path, keys: Iterable[PublicKey] | None = None, since: bytes | None = None
) -> Chain:
    """Check the bytes, the links, the head and every kept checkpoint of the ledger in `directory`, not its meaning.

    A writer killed between writing a line and signing it leaves one line, or a part of one, beyond the head. Those
    are notes, and the part is no entry; anything else out of place is a problem.

    Args:
        directory: the ledger.
        keys: those whose word is taken; one of them must sign. None: the ledger's own word for whose it is.
        since: a checkpoint of it that was kept elsewhere: nothing up to it may have changed since.

    Raises:
        InputError: there is no ledger to read.
    """
    if os.path.lexists(directory / GENESIS_FILE):
        return _verify_signed(directory, keys, since)
    chain = verify_version_1(directory)
    if keys is None and since is None:
        return chain
    what = (
        "the ledger is of version 1, which nobody signs; no key and no checkpoint can vouch for it"
    )
    return Chain(
        entries=chain.entries,
        problems=(*chain.problems, Problem(where=HEAD_FILE, what=what)),
        notes=chain.notes,
        version=1,
    )


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


def first_entry(directory: Path) -> Entry | None:
    """The first entry of a ledger, of which nothing is checked; None where none can be read."""
    try:
        return parse_entry(read_bounded(directory, segment_name(0), 2 * MAX_LINE).split(b"\n")[0])
    except TamperError:
        return None


def has_ledger(directory: Path) -> bool:
    """Whether there is a ledger, of whatever version, as far as its names tell."""
    return os.path.lexists(directory / GENESIS_FILE) or (directory / LEDGER_FILE).is_file()


def kept_notes(directory: Path) -> list[tuple[str, bytes]]:
    """Every checkpoint that a ledger keeps, with its name, by size, and the head: to hand on, once it is verified.

    Raises:
        TamperError: one cannot be read.
    """
    names = [f"{NOTE_DIRECTORY}/{name}" for name in _note_names(directory)]
    return [(name, read_bounded(directory, name, MAX_NOTE)) for name in (*names, HEAD_NOTE)]


@dataclass(slots=True)
class _Signed:
    """Checkpoints that hold, by where they are, and what was wrong with others."""

    checkpoints: list[tuple[str, Checkpoint]] = field(default_factory=list[tuple[str, Checkpoint]])
    problems: list[Problem] = field(default_factory=list[Problem])

    def take(self, where: str, checkpoint: Checkpoint) -> Checkpoint:
        self.checkpoints.append((where, checkpoint))
        return checkpoint


@dataclass(slots=True)
class _Lines:
    """The entries of all segments, up to the first that is none."""

    entries: list[Entry] = field(default_factory=list[Entry])
    torn: int = 0
    """Bytes of an unfinished last line."""
    problem: Problem | None = None


def _verify_signed(directory: Path, keys: Iterable[PublicKey] | None, since: bytes | None) -> Chain:
    try:
        genesis = parse_genesis(read_bounded(directory, GENESIS_FILE, MAX_LINE))
        if keys is not None:
            _check_trusted(genesis, list(keys))
    except TamperError as error:
        return Chain(entries=(), problems=(Problem(where=GENESIS_FILE, what=str(error)),))
    signed = _Signed()
    try:
        # What is read before the entries is of them: a writer at work only adds to them.
        first = _read_head(directory, genesis)
        _read_notes(directory, genesis, signed)
        before = signed.take(HEAD_NOTE, _read_head(directory, genesis))
        extra = _extra_segment(directory)
        lines = _read_lines(directory)
        later = signed.take(HEAD_NOTE, _read_head(directory, genesis))
    except TamperError as error:
        problems = [*signed.problems, Problem(where=HEAD_NOTE, what=str(error))]
        return Chain(entries=(), problems=tuple(problems), origin=genesis.origin, keys=genesis.keys)
    held = None
    if since is not None:
        taken = list(keys) if keys is not None else list(genesis.keys)
        held = _take_held(since, genesis, taken, signed)
    problems = [lines.problem] if lines.problem else []
    if not problems:
        problems += _held_against_heads(before, later, lines)
        problems += _held_against_roots(lines.entries, signed)
        problems += signed.problems
        problems += _missing_notes(lines.entries[: max(0, first.size - 1)], signed)
        last = len(lines.entries) // layout.SEGMENT_ENTRIES
        if extra is not None and extra > last:
            what = "a segment that the entries do not reach"
            problems.append(Problem(where=segment_name(extra), what=what))
    size = later.size if later.size <= len(lines.entries) else before.size
    return Chain(
        entries=tuple(lines.entries),
        problems=tuple(problems),
        notes=(*_notes(genesis, size, lines), *_note_of_held(held, lines)),
        origin=genesis.origin,
        keys=genesis.keys,
        signed=size,
    )


def _check_trusted(genesis: Genesis, keys: Sequence[PublicKey]) -> None:
    """The ledger names a key that is taken; that this one signed each checkpoint is checked with the others."""
    if not set(keys) & set(genesis.keys):
        raise TamperError(
            "the ledger is signed by another key than the one you trust",
            expected=" or ".join(key.vkey for key in keys[:4]),
            got=", ".join(key.vkey for key in genesis.keys[:4]),
        )


def _read_head(directory: Path, genesis: Genesis) -> Checkpoint:
    return genesis.open(read_bounded(directory, HEAD_NOTE, MAX_NOTE))


def _read_notes(directory: Path, genesis: Genesis, signed: _Signed) -> None:
    """Every kept checkpoint, by size."""
    root = directory / NOTE_DIRECTORY
    if leads_out(directory, root) or not root.is_dir():
        what = LEADS_OUT if leads_out(directory, root) else "missing, or not a directory"
        signed.problems.append(Problem(where=NOTE_DIRECTORY, what=what))
        return
    for name in _note_names(directory):
        where = f"{NOTE_DIRECTORY}/{ascii(name)[1:-1]}"
        try:
            if not _NOTE.fullmatch(name):
                raise TamperError("no checkpoint has such a name")
            checkpoint = genesis.open(read_bounded(root, name, MAX_NOTE))
            if note_name(checkpoint.size) != f"{NOTE_DIRECTORY}/{name}":
                raise TamperError("the checkpoint is of another size", got=str(checkpoint.size))
            signed.take(where, checkpoint)
        except TamperError as error:
            signed.problems.append(Problem(where=where, what=str(error)))


def _missing_notes(entries: Sequence[Entry], signed: _Signed) -> list[Problem]:
    """Checkpoints that were kept after one of these entries and are gone; which were, the entries say.

    Of the head's own size none is missed: whoever is killed writes the head and not yet that one.
    """
    there = {c.size for where, c in signed.checkpoints if where.startswith(NOTE_DIRECTORY)}
    told = {problem.where for problem in signed.problems}
    due = [e.seq + 1 for e in entries if is_kept(e.seq + 1, e.type, e.body)]
    names = [note_name(size) for size in due if size not in there]
    what = "a checkpoint that was kept there is gone"
    return [Problem(where=name, what=what) for name in names if not told & {name, NOTE_DIRECTORY}]


def _note_names(directory: Path) -> list[str]:
    """By size; without what a crash leaves of a checkpoint that was being written."""
    names = [entry.name for entry in os.scandir(directory / NOTE_DIRECTORY)]
    kept = [name for name in names if not name.endswith(".note.tmp")]
    return sorted(kept, key=lambda name: (len(name), name))


def _take_held(
    note: bytes, genesis: Genesis, keys: Sequence[PublicKey], signed: _Signed
) -> int | None:
    """How many entries the checkpoint in hand is of; None where it is no such thing."""
    try:
        return signed.take(HELD, open_checkpoint(note, keys, origin=genesis.origin)).size
    except TamperError as error:
        signed.problems.append(Problem(where=HELD, what=str(error)))
        return None


def _extra_segment(directory: Path) -> int | None:
    """The last segment that there is by name."""
    root = directory / SEGMENT_DIRECTORY
    if not root.is_dir() or leads_out(directory, root):
        return None
    found = [re.fullmatch(r"([0-9]{6,12})\.jsonl", entry.name) for entry in os.scandir(root)]
    return max((int(match[1]) for match in found if match), default=None)


def _read_lines(directory: Path) -> _Lines:
    """The entries of the segments, one after the other."""
    lines, index = _Lines(), 0
    while len(lines.entries) == index * layout.SEGMENT_ENTRIES:
        path = directory / segment_name(index)
        is_there = os.path.lexists(path)
        if what := refusal(directory, path) or ("" if is_there or index else "missing"):
            lines.problem = Problem(where=segment_name(index), what=what)
        elif is_there:
            _read_segment(path, lines)
        else:
            break
        if lines.problem or lines.torn:
            break
        index += 1
    return lines


def _read_segment(path: Path, lines: _Lines) -> None:
    """One segment's entries, as many as it may have."""
    start = len(lines.entries)
    try:
        with open_regular(path) as file:
            while line := file.readline(MAX_LINE + 2):
                if len(lines.entries) - start == layout.SEGMENT_ENTRIES:
                    raise TamperError("the segment is longer than a full one")
                if not line.endswith(b"\n") and len(line) <= MAX_LINE:
                    lines.torn = len(line)
                    return
                entry = parse_entry(line.removesuffix(b"\n"))
                if entry.v != VERSION:
                    raise TamperError("the entry is of another version", got=f"v {entry.v}")
                lines.entries.append(linked(entry, lines.entries))
    except OSError as error:
        raise InputError("the ledger cannot be read", got=error.strerror or "") from error
    except TamperError as error:
        lines.problem = Problem(where=place_of(len(lines.entries)), what=str(error))


def _held_against_heads(before: Checkpoint, later: Checkpoint, lines: _Lines) -> list[Problem]:
    """Hold the number of entries against the head from before they were read and the one from after.

    At rest the two are one. While a run goes on, what the earlier head counts must be there, and no more may lie
    beyond the later head than the one line that is being appended.
    """
    count, what = len(lines.entries), ""
    if count < before.size:
        what = f"the ledger has {count} whole entries; the head counts {before.size}: it was cut"
    elif count - later.size + (lines.torn > 0) > 1:
        what = "more than one line lies beyond the head; a crash leaves at most one"
    return [Problem(where=HEAD_NOTE, what=what)] if what else []


def _held_against_roots(entries: Sequence[Entry], signed: _Signed) -> list[Problem]:
    """Hold every checkpoint against the tree over as many entries, and name where the first wrong one may be."""
    wanted: dict[int, list[tuple[str, Checkpoint]]] = {}
    problems: list[Problem] = []
    for where, checkpoint in signed.checkpoints:
        wanted.setdefault(checkpoint.size, []).append((where, checkpoint))
    tree, good = Frontier(), 0
    for size in range(len(entries) + 1):
        if size:
            tree = tree.append(bytes.fromhex(entries[size - 1].leaf))
        at_size = wanted.pop(size, [])
        wrong = [where for where, checkpoint in at_size if checkpoint.root != tree.root]
        for where in dict.fromkeys(wrong):
            what = f"the root over {size} entries is not the one that was signed"
            what += f": an entry from {place_of(good)} on was changed"
            problems.append(Problem(where=where, what=what))
        good = size if at_size and not wrong else good
    for where, checkpoint in (each for size in sorted(wanted) for each in wanted[size]):
        shorter = "shorter than the checkpoint you hold" if where == HELD else "shorter than signed"
        what = f"the ledger was cut: it has {len(entries)} entries, {shorter}, {checkpoint.size}"
        if where != HEAD_NOTE:  # a head beyond the entries was named, or is of a writer at work
            problems.append(Problem(where=where, what=what))
    return problems


def _notes(genesis: Genesis, size: int, lines: _Lines) -> tuple[str, ...]:
    names, beyond = ", ".join(key.name for key in genesis.keys), len(lines.entries) - size
    upto = f"up to seq {size - 1}" if size else "while it was empty"
    notes = [f"signed by {names} {upto}"]
    if beyond == 1:
        notes.append("the last entry is beyond the head: its writer stopped, or is at work")
    if lines.torn:
        notes.append(f"torn tail: {lines.torn} bytes of an unfinished line, which is no entry")
    return tuple(notes)


def _note_of_held(held: int | None, lines: _Lines) -> list[str]:
    """What a checkpoint in hand can't show."""
    after = 0 if held is None else len(lines.entries) - held
    if after <= 0:
        return []
    plural = "entry follows" if after == 1 else "entries follow"
    return [f"{after} {plural} the checkpoint you hold: had more been cut off, it would not show"]
