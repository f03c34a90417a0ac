"""Writing a ledger: one writer, one line an entry, on disk before `append` returns."""

import os
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kleash.errors import InputError, RepeatError, ResourceError, TamperError
from kleash.ledger.chain import HEAD_FILE, LEDGER_FILE, Chain, Head, verify_chain
from kleash.ledger.durable import replace_file
from kleash.ledger.entry import MAX_LINE, ZERO_LEAF, Entry, encode, encode_entry, parse_entry
from kleash.ledger.paths import refusal

REPEATED = {"update"}
"""Types of the entries that a run which goes on makes again; others say what happened to it, once."""


class Ledger:
    """The one writer of a ledger directory; `Ledger.create` makes it, `Ledger.open` goes on with one.

    An entry is written, or it is not: whatever interrupts `append`, Ctrl-C included, the file and
    the head are put back as they were. After an error of the disk the ledger takes no more entries,
    because a failed sync leaves it unknown what is on disk and a retry would hide that.
    """

    def __init__(self, directory: Path, file: int) -> None:
        self._directory = directory
        self._file = file
        self._open = True
        # Replaced in one assignment: an interrupt sees the state before an entry or after it.
        self._state = (Head(size=0, leaf=ZERO_LEAF), 0)  # head, bytes of the file
        self._expected: deque[Entry] = deque()

    @classmethod
    def create(cls, directory: Path) -> Self:
        """Start an empty ledger in `directory`, made if need be, and lock out other writers.

        Raises:
            ResourceError: another process is writing there, or the disk fails.
            InputError: there is a ledger already.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = os.open(
                directory / LEDGER_FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise _disk_error(directory, error) from error
        ledger = cls(directory, file)
        try:
            ledger._start()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(cls, directory: Path) -> tuple[Self, Chain]:
        """Go on with the ledger in `directory`, once what a crash left is mended, and lock out other writers.

        A line that was not written whole is moved to a file of its own; one that was, and that the head does not name
        yet, is an entry.

        Returns:
            The writer, and what was read: its notes say what was mended.

        Raises:
            ResourceError: another process is writing there, or the disk fails.
            TamperError: it is not as it was written.
            InputError: there is no ledger.
        """
        path = directory / LEDGER_FILE
        if what := refusal(directory, path):
            raise InputError(f"{LEDGER_FILE}: {what}")
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise InputError("no ledger here", got=ascii(str(directory))) from error
        ledger = cls(directory, file)
        try:
            ledger._lock()
            return ledger, ledger._recover()
        except OSError as error:
            ledger.close()
            raise _disk_error(directory, error) from error
        except BaseException:
            ledger.close()
            raise

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
        return self._state[0]

    def append(self, type: str, body: Mapping[str, Any]) -> Entry:
        """Write one entry; it is on disk when this returns. Of those that are expected none is written again.

        Raises:
            ResourceError: the disk failed or the ledger is closed; nothing was appended.
            RepeatError: another entry is expected; nothing was appended.
            InputError: the entry is too long.
        """
        if not self._open:
            raise ResourceError(
                f"the ledger of run {self._run} is closed: it takes no more entries"
            )
        if self._expected and type in REPEATED:
            return self._repeat(type, body)
        head, length = self._state
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        line = encode_entry(seq=head.size, type=type, time=time, body=body, prev=head.leaf)
        if len(line) > MAX_LINE:
            raise InputError(
                "the ledger entry is too long",
                expected=f"at most {MAX_LINE} bytes",
                got=str(len(line)),
            )
        entry = parse_entry(line)
        new_head = Head(size=head.size + 1, leaf=entry.leaf)
        try:
            self._write(line + b"\n")
            self._write_head(new_head)
            self._state = (new_head, length + len(line) + 1)
        except OSError as error:
            self._undo()
            self.close()
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
        if self._open:
            self._open = False
            os.close(self._file)

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

    def _recover(self) -> Chain:
        """Reads what is there, and mends what a crash left."""
        length = os.fstat(self._file).st_size
        if not length and not (self._directory / HEAD_FILE).exists():
            self._write_head(self.head)  # it was killed as it was made
            return Chain(entries=())
        chain = verify_chain(self._directory)
        if chain.problems:
            raise TamperError(
                f"the ledger of run {self._run} is not as it was written",
                got=str(chain.problems[0]),
                do="look at it with kleash verify; a run goes on from what it wrote alone",
            )
        whole = sum(len(entry.line) + 1 for entry in chain.entries)
        if whole < length:
            self._set_aside(whole, length)
        self._state = (chain.head, whole)
        self._write_head(chain.head)
        return chain

    def _set_aside(self, whole: int, length: int) -> None:
        """Moves a torn tail out of the ledger; what it is stays to be seen."""
        torn = os.pread(self._file, length - whole, whole)
        replace_file(self._directory / f"torn-{whole}.bin", torn)
        os.ftruncate(self._file, whole)
        _sync_data(self._file)

    def _lock(self) -> None:
        import fcntl  # POSIX only; reading and verifying a ledger must not need it

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(
                f"another process is writing the ledger of run {self._run}",
                do="wait for it to end, or give this run another directory",
            ) from error

    def _start(self) -> None:
        self._lock()
        if os.fstat(self._file).st_size or (self._directory / HEAD_FILE).exists():
            raise InputError(
                f"run {self._run} has a ledger already",
                do="give this run another directory: a ledger is never written over",
            )
        try:
            self._write_head(self.head)
        except OSError as error:
            raise _disk_error(self._directory, error) from error

    def _write(self, line: bytes) -> None:
        if os.write(self._file, line) != len(line):
            raise OSError(0, "no space for the whole entry")
        _sync_data(self._file)

    def _write_head(self, head: Head) -> None:
        """Replace head.json whole: a reader, or a crash, sees the old one or the new one."""
        replace_file(self._directory / HEAD_FILE, head.to_bytes())

    def _undo(self) -> None:
        """Put file and head back to the last entry that was appended whole."""
        head, length = self._state
        with suppress(OSError):  # what cannot be put back, verification reports as beyond the head
            with suppress(OSError):
                self._write_head(head)
            # A head that counts an entry which was cut off could not be mended.
            if (self._directory / HEAD_FILE).read_bytes() == head.to_bytes():
                os.ftruncate(self._file, length)
                _sync_data(self._file)


def _sync_data(file: int) -> None:
    """`fdatasync` where there is one: the file's bytes and length, without its times."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(file)
    else:  # macOS
        os.fsync(file)


def _disk_error(directory: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"the ledger in {str(directory)!a} cannot be written",
        got=error.strerror or str(error),
        do="check the space and the permissions there; what was appended before is safe",
    )
