"""Writing a ledger: one writer, one line an entry, on disk and signed before `append` returns."""

import os
import secrets
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kleash.errors import InputError, RepeatError, ResourceError, TamperError
from kleash.ledger import layout
from kleash.ledger.chain import verify_chain
from kleash.ledger.durable import replace_file, sync_data, sync_directory
from kleash.ledger.entry import MAX_LINE, ZERO_LEAF, Entry, encode, encode_entry, parse_entry
from kleash.ledger.found import Chain, Head
from kleash.ledger.layout import (
    GENESIS_FILE,
    HEAD_NOTE,
    LOCK_FILE,
    NOTE_DIRECTORY,
    SEGMENT_DIRECTORY,
    Genesis,
    is_kept,
    note_name,
    segment_name,
)
from kleash.ledger.merkle import Frontier
from kleash.ledger.note import Signer, sign_checkpoint
from kleash.ledger.paths import refusal
from kleash.ledger.version1 import HEAD_FILE, LEDGER_FILE

REPEATED = {"update", "update.intent"}
"""Types of the entries that a run which goes on makes again; others say what happened to it, once."""


@dataclass(frozen=True, slots=True)
class _State:
    """A ledger after its last whole entry. Replaced in one assignment: an interrupt sees one or the other."""

    head: Head
    tree: Frontier
    note: bytes
    """The signed checkpoint of it."""
    segment: int
    file: int
    """Of the segment."""
    length: int
    """Bytes of the segment."""


class Ledger:
    """The one writer of a ledger directory; `Ledger.create` makes it, `Ledger.open` goes on with one.

    An entry is written, or it is not: whatever interrupts `append`, Ctrl-C included, the files are put back as they
    were. After an error of the disk the ledger takes no more entries, because a failed sync leaves it unknown what is
    on disk and a retry would hide that.
    """

    def __init__(self, directory: Path, signers: Iterable[Signer]) -> None:
        self._directory = directory
        self._signers: Sequence[Signer] = tuple(signers)
        if not self._signers:
            raise InputError(
                "a ledger needs a key that signs it", do="give one: open_signing_key()"
            )
        self._genesis = Genesis(
            origin=f"kleash/{secrets.token_hex(8)}", keys=tuple(s.public for s in self._signers)
        )
        self._lock_file = -1
        self._state: _State | None = None
        self._clean = True
        """Whether the files are as the state says."""
        self._expected: deque[Entry] = deque()

    @classmethod
    def create(cls, directory: Path, signers: Iterable[Signer]) -> Self:
        """Start an empty ledger in `directory`, made if need be, and lock out other writers.

        Args:
            directory: where.
            signers: who signs each head; all of them do.

        Raises:
            ResourceError: another process is writing there, or the disk fails.
            InputError: there is a ledger already, or nobody signs.
        """
        ledger = cls(directory, signers)
        with ledger._closing_on_failure():
            directory.mkdir(parents=True, exist_ok=True)
            ledger._lock()
            ledger._start()
        return ledger

    @classmethod
    def open(cls, directory: Path, signers: Iterable[Signer]) -> tuple[Self, Chain]:
        """Go on with the ledger in `directory`, once what a crash left is mended, and lock out other writers.

        A line that was not written whole is moved to a file of its own; one that was, and that nobody signed yet, is
        an entry.

        Args:
            directory: where.
            signers: those that it was begun with.

        Returns:
            The writer, and what was read: its notes say what was mended.

        Raises:
            ResourceError: another process is writing there, or the disk fails.
            TamperError: it is not as it was written.
            InputError: there is no ledger, or it was begun with another key.
        """
        ledger = cls(directory, signers)
        if what := refusal(directory, directory / GENESIS_FILE):
            raise InputError(f"{GENESIS_FILE}: {what}")
        if not (directory / GENESIS_FILE).exists():
            what = "a ledger of version 1: it can be verified, but not gone on with"
            is_old = (directory / LEDGER_FILE).is_file()
            raise InputError(what if is_old else "no ledger here", got=ascii(str(directory)))
        with ledger._closing_on_failure():
            ledger._lock()
            return ledger, ledger._recover()

    def expect(self, entries: Iterable[Entry]) -> None:
        """Have updates made again, in their order, before others follow: what `append` is given must be theirs.

        A run that goes on from before its last entry repeats them; whether it does is what shows that it is the same
        run.
        """
        self._expected = deque(entries)

    @property
    def is_repeating(self) -> bool:
        """Whether entries are still to be made again."""
        return bool(self._expected)

    @property
    def head(self) -> Head:
        """Size and hash of what was written: kept elsewhere, it shows later any change."""
        return self._now.head

    @property
    def note(self) -> bytes:
        """The signed checkpoint of what was written: kept elsewhere, it shows later any change, and by whom."""
        return self._now.note

    def append(self, type: str, body: Mapping[str, Any]) -> Entry:
        """Write one entry; it is on disk when this returns. Of those that are expected none is written again.

        Raises:
            ResourceError: the disk failed or the ledger is closed. Nothing was appended, unless the disk failed when
                all was written: then the entry is whole, and found when the ledger is next read.
            RepeatError: another entry is expected; nothing was appended.
            InputError: the entry is too long.
        """
        if not self._clean:  # the undoing of the last entry was interrupted too
            self._undo()
        if self._lock_file < 0:
            raise ResourceError(
                f"the ledger of run {self._run} is closed: it takes no more entries"
            )
        if self._expected and type in REPEATED:
            return self._repeat(type, body)
        head = self._now.head
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        line = encode_entry(seq=head.size, type=type, time=time, body=body, prev=head.leaf)
        if len(line) > MAX_LINE:
            raise InputError(
                "the ledger entry is too long",
                expected=f"at most {MAX_LINE} bytes",
                got=str(len(line)),
            )
        entry = parse_entry(line)
        try:
            self._clean = False
            self._write(entry, line)
            self._clean = True
        except OSError as error:
            self._give_up()
            raise _disk_error(self._directory, error) from error
        except BaseException:
            self._undo()
            raise
        return entry

    def _repeat(self, type: str, body: Mapping[str, Any]) -> Entry:
        """The entry that is expected, if this is it."""
        entry = self._expected[0]
        if (type, encode(body)) == (entry.type, encode(entry.body)):
            return self._expected.popleft()
        names = sorted({*body, *entry.body})
        differing = [n for n in names if encode(body.get(n)) != encode(entry.body.get(n))]
        raise RepeatError(
            f"the run does not repeat itself: entry {entry.seq} of its ledger was not made again",
            expected=f"the {entry.type} of step {entry.body.get('step')}, to the last bit",
            got=f"{type} of step {body.get('step')} with another {', '.join(differing)}",
            do="go on where it was begun: the same machine, threads and versions, and a reward that repeats itself",
        )

    def close(self) -> None:
        """Release the lock. Nothing is lost by not calling it, or by calling it twice."""
        files = [self._lock_file, -1 if self._state is None else self._state.file]
        if self._lock_file >= 0:
            self._lock_file = -1
            for file in files:
                if file >= 0:
                    os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _run(self) -> str:
        return ascii(self._directory.resolve().parent.name)

    @property
    def _now(self) -> _State:
        assert self._state is not None, "neither create nor open made it"
        return self._state

    @contextmanager
    def _closing_on_failure(self) -> Generator[None]:
        """What fails inside leaves nothing open and nothing locked."""
        try:
            yield
        except OSError as error:
            self.close()
            raise _disk_error(self._directory, error) from error
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        import fcntl  # POSIX only; reading and verifying a ledger must not need it

        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._lock_file = os.open(self._directory / LOCK_FILE, flags, 0o644)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(
                f"another process is writing the ledger of run {self._run}",
                do="wait for it to end, or give this run another directory",
            ) from error

    def _start(self) -> None:
        """Makes the files, the one that says there is a ledger last."""
        if any(
            (self._directory / name).exists() for name in (GENESIS_FILE, LEDGER_FILE, HEAD_FILE)
        ):
            raise InputError(
                f"run {self._run} has a ledger already",
                do="give this run another directory: a ledger is never written over",
            )
        for name in (SEGMENT_DIRECTORY, NOTE_DIRECTORY):
            (self._directory / name).mkdir(exist_ok=True)
        file = self._open_segment(0)
        if os.fstat(file).st_size:
            os.close(file)
            raise InputError(f"there are entries of another ledger in {str(self._directory)!a}")
        self._state = self._state_of(Frontier(), ZERO_LEAF, 0, file, 0)
        replace_file(self._directory / HEAD_NOTE, self._state.note)
        replace_file(self._directory / GENESIS_FILE, self._genesis.to_bytes())

    def _recover(self) -> Chain:
        """Reads what is there, and mends what a crash left."""
        chain = verify_chain(self._directory)
        if chain.problems:
            raise TamperError(
                f"the ledger of run {self._run} is not as it was written",
                got=str(chain.problems[0]),
                do="look at it with kleash verify; a run goes on from what it wrote alone",
            )
        if set(chain.keys) != set(self._genesis.keys):
            raise InputError(
                f"the ledger of run {self._run} was begun with another key",
                expected=", ".join(key.vkey for key in chain.keys),
                got=", ".join(key.vkey for key in self._genesis.keys),
                do="go on with the key that it was begun with: set KLEASH_HOME to where it lies",
            )
        self._genesis = Genesis(origin=chain.origin, keys=chain.keys)
        index = max(0, len(chain.entries) - 1) // layout.SEGMENT_ENTRIES
        last = chain.entries[index * layout.SEGMENT_ENTRIES :]
        if chain.entries and (self._directory / segment_name(index + 1)).exists():
            index, last = index + 1, ()
        whole = sum(len(entry.line) + 1 for entry in last)
        file = self._open_segment(index)
        tree = Frontier.of(bytes.fromhex(entry.leaf) for entry in chain.entries)
        self._state = self._state_of(tree, chain.head.leaf, index, file, whole)
        if whole < (length := os.fstat(file).st_size):
            self._set_aside(whole, length)
        replace_file(self._directory / HEAD_NOTE, self._state.note)
        kept = self._directory / note_name(tree.size)
        for entry in chain.entries[-1:]:  # whose checkpoint a crash may have come before
            if is_kept(tree.size, entry.type, entry.body) and not kept.exists():
                replace_file(kept, self._state.note)
        return chain

    def _set_aside(self, whole: int, length: int) -> None:
        """Moves a torn tail out of the ledger; what it is stays to be seen."""
        file = self._now.file
        torn = os.pread(file, length - whole, whole)
        name = f"torn-{self._now.segment:06d}-{whole}.bin"
        replace_file(self._directory / name, torn)
        os.ftruncate(file, whole)
        sync_data(file)

    def _state_of(self, tree: Frontier, leaf: str, segment: int, file: int, length: int) -> _State:
        note = sign_checkpoint(self._genesis.origin, tree.size, tree.root, self._signers)
        return _State(Head(size=tree.size, leaf=leaf), tree, note, segment, file, length)

    def _open_segment(self, index: int) -> int:
        """A segment to add to, made where there is none, its name on the disk."""
        path = self._directory / segment_name(index)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        if path.exists() and not os.access(path, os.W_OK):  # a full one, as it is opened again
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(path, flags, 0o644)
        try:
            os.fsync(file)
            sync_directory(path.parent)
        except BaseException:
            os.close(file)
            raise
        return file

    def _write(self, entry: Entry, line: bytes) -> None:
        """The line, the head over it, and where it is due the checkpoint that is kept: each on disk before the next."""
        before = self._now
        if before.head.size == (before.segment + 1) * layout.SEGMENT_ENTRIES:
            before = self._next_segment(before)
        if os.write(before.file, line + b"\n") != len(line) + 1:
            raise OSError(0, "no space for the whole entry")
        sync_data(before.file)
        tree = before.tree.append(bytes.fromhex(entry.leaf))
        length = before.length + len(line) + 1
        after = self._state_of(tree, entry.leaf, before.segment, before.file, length)
        replace_file(self._directory / HEAD_NOTE, after.note)
        if is_kept(tree.size, entry.type, entry.body):
            replace_file(self._directory / note_name(tree.size), after.note)
        self._state = after

    def _next_segment(self, full: _State) -> _State:
        """Seals a full segment, and begins the next."""
        os.fsync(full.file)
        os.fchmod(full.file, 0o444)
        file = self._open_segment(full.segment + 1)
        new = _State(full.head, full.tree, full.note, full.segment + 1, file, 0)
        self._state = new
        os.close(full.file)
        return new

    def _undo(self) -> None:
        """Puts the files back to the last entry that was appended whole.

        The signatures go first: at no moment is one there of more entries than there are, which is what a rollback
        looks like.
        """
        now = self._now
        try:
            (self._directory / note_name(now.head.size + 1)).unlink(missing_ok=True)
            sync_directory(self._directory / NOTE_DIRECTORY)
            replace_file(self._directory / HEAD_NOTE, now.note)
            os.ftruncate(now.file, now.length)
            sync_data(now.file)
        except OSError:  # what cannot be put back is one whole line more, and an entry
            self.close()
        self._clean = True

    def _give_up(self) -> None:
        """Takes back an entry that was not signed yet, and closes. No sync is tried again: it would hide the first."""
        now = self._now
        with suppress(OSError):
            if (self._directory / HEAD_NOTE).read_bytes() == now.note:
                os.ftruncate(now.file, now.length)
        self._clean = True
        self.close()


def _disk_error(directory: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"the ledger in {str(directory)!a} cannot be written",
        got=error.strerror or str(error),
        do="check the space and the permissions there; what was appended before is safe",
    )
