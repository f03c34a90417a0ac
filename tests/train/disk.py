"""A disk that fails when it is told to: every call by which Python code touches files below a directory, counted.

What safetensors and tokenizers write through Rust counts as one call each.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

Kind = Literal["EIO", "ENOSPC", "EINTR", "short", "kill"]
KINDS: tuple[Kind, ...] = ("EIO", "ENOSPC", "EINTR", "short", "kill")
WRITES = {"os.write", "file.write"}
BY_PATH = ("open", "mkdir", "rmdir", "unlink", "rename", "replace", "scandir")
BY_FILE = ("write", "fsync", "fdatasync", "ftruncate", "pread")


class Killed(BaseException):
    """The process is gone: nothing that it does after this reaches the disk."""


class Disk:
    """Below `root`, the calls from the nth on fail as told.

    Args:
        root: only what is below it counts.
        nth: the call that fails, from 0; None: none does.
        kind: how. There is no more space after ENOSPC, and nothing after a kill; the others happen once.
    """

    def __init__(self, root: Path, nth: int | None = None, kind: Kind = "EIO") -> None:
        self.root, self.nth, self.kind = str(root), nth, kind
        self.calls: list[str] = []

    def happens(self, name: str, short: Callable[[], Any] | None = None) -> Any:
        """Counts a call, and fails it if it is to fail; what a short write returns, else None."""
        number = len(self.calls)
        self.calls.append(name)
        if self.nth is None or number < self.nth:
            return None
        if self.kind == "kill":
            raise Killed
        if self.kind == "ENOSPC" and (number == self.nth or name in WRITES):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if number > self.nth:
            return None
        if self.kind == "short" and short is not None:
            return short()
        code = errno.EINTR if self.kind == "EINTR" else errno.EIO
        raise OSError(code, os.strerror(code))

    def holds(self, where: Any, dir_fd: int | None = None) -> bool:
        """Whether a path or an open file is below the root."""
        if isinstance(where, int):
            path = os.readlink(f"/proc/self/fd/{where}") if where >= 0 else ""
        elif dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fspath(where))
        else:
            path = os.path.abspath(os.fspath(where))
        return str(path).startswith(self.root)


class File:
    """An open file whose reads and writes count."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk, self._file = disk, file

    def write(self, data: Any) -> Any:
        half = data[: len(data) // 2]
        if (done := self._disk.happens("file.write", lambda: self._file.write(half))) is None:
            return self._file.write(data)
        if isinstance(self._file, io.RawIOBase):
            return done
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._file, name)
        if name not in ("read", "readinto", "readline", "truncate"):
            return member

        def call(*arguments: Any) -> Any:
            self._disk.happens(f"file.{name}")
            return member(*arguments)

        return call

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _counting(disk: Disk, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        dir_fd = options.get("dir_fd", options.get("src_dir_fd"))
        if not arguments or not disk.holds(arguments[0], dir_fd):
            return real(*arguments, **options)

        def short() -> Any:
            return real(arguments[0], arguments[1][: len(arguments[1]) // 2])

        done = disk.happens(f"os.{name}", short if name == "write" else None)
        return real(*arguments, **options) if done is None else done

    return call


def _opening(disk: Disk) -> Callable[..., Any]:
    real = io.open

    def call(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, int) or not disk.holds(file):
            return real(file, *arguments, **options)
        disk.happens("open")
        return File(disk, real(file, *arguments, **options))

    return call


def _in_rust(disk: Disk, module: Any, name: str, position: int) -> Callable[..., Any]:
    real = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if disk.holds(str(arguments[position])):
            disk.happens(name)
        return real(*arguments, **options)

    return call


@contextmanager
def watched(disk: Disk) -> Generator[Disk]:
    """Has all calls go by way of it."""
    import transformers.modeling_utils as hub

    from kleash.train import checkpoint

    with pytest.MonkeyPatch.context() as patch:
        for name in (*BY_PATH, *BY_FILE):
            patch.setattr(os, name, _counting(disk, name, getattr(os, name)))
        opening = _opening(disk)
        patch.setattr(io, "open", opening)
        patch.setattr(builtins, "open", opening)
        for module, name, position in (
            (checkpoint, "save_file", 1),
            (checkpoint, "load_file", 0),
            (hub, "safe_save_file", 1),
        ):
            patch.setattr(module, name, _in_rust(disk, module, name, position))
        yield disk
