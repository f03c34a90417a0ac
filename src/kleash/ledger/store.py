"""Writing a ledger: one writer, one line an entry, on disk before `append` returns."""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kleash.errors import InputError, ResourceError
from kleash.ledger.chain import HEAD_FILE, LEDGER_FILE, Head
from kleash.ledger.entry import MAX_LINE, ZERO_LEAF, Entry, encode_entry, parse_entry


class Ledger:
    """The one writer of a ledger directory; `Ledger.create` makes it.

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

    @property
    def head(self) -> Head:
        """Size and hash of what was written: kept elsewhere, it shows later any change."""
        return self._state[0]

    def append(self, type: str, body: Mapping[str, Any]) -> Entry:
        """Write one entry; it is on disk when this returns.

        Raises:
            ResourceError: the disk failed or the ledger is closed; nothing was appended.
            InputError: the entry is too long.
        """
        if not self._open:
            raise ResourceError(
                f"the ledger of run {self._run} is closed: it takes no more entries"
            )
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

    def _start(self) -> None:
        import fcntl  # POSIX only; reading and verifying a ledger must not need it

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(
                f"another process is writing the ledger of run {self._run}",
                do="wait for it to end, or give this run another directory",
            ) from error
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
        temporary = self._directory / f"{HEAD_FILE}.tmp"
        with temporary.open("wb") as file:
            file.write(head.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._directory / HEAD_FILE)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _undo(self) -> None:
        """Put file and head back to the last entry that was appended whole."""
        head, length = self._state
        with suppress(OSError):  # what cannot be put back, verification reports as beyond the head
            os.ftruncate(self._file, length)
            _sync_data(self._file)
            self._write_head(head)


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
