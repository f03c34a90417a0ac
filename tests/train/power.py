"""What may be on a disk once the power was lost: a model of what a file system promises, and of no more.

Recorded are writes, cuts, names given, moved and taken away, and syncs, in their order. After a loss of power between
two of them, a file holds what was in it when it was last synced, a directory the names that it had when *it* was; of
everything after that, any part: a name, but not the one given before it; a write, or its first so many times 512
bytes, with nothing or with zeros after that.

T. S. Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.
"""

import hashlib
import os
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from kleash.ledger import Ledger

SECTOR = 512


class Op(NamedTuple):
    """One thing that happened."""

    kind: Literal["name", "move", "take", "write", "cut", "sync"]
    node: int
    """The file or directory; of `name`, `move` and `take` the directory whose names change."""
    name: str = ""
    target: str = ""
    """Of a move, the other name."""
    child: int = 0
    offset: int = 0
    data: bytes = b""


@dataclass
class Image:
    """A disk's content: directories by number, of names to numbers, and files."""

    directories: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def copy(self) -> "Image":
        names = {number: dict(each) for number, each in self.directories.items()}
        return Image(names, dict(self.files))

    def apply(self, op: Op, keep: int | None = None, zeros: bool = False) -> None:
        """What an operation does; of a write, its first `keep` bytes, and zeros for the rest or nothing."""
        names = self.directories.setdefault(op.node, {}) if op.kind in _NAMES else {}
        if op.kind == "name":
            names[op.name] = op.child
        elif op.kind == "move":
            names.pop(op.name, None)
            names[op.target] = op.child
        elif op.kind == "take":
            names.pop(op.name, None)
        elif op.kind == "cut":
            self.files[op.node] = self.files.get(op.node, b"")[: op.offset]
        elif op.kind == "write":
            old = self.files.get(op.node, b"").ljust(op.offset, b"\0")
            data = op.data if keep is None else op.data[:keep]
            data = data.ljust(len(op.data), b"\0") if zeros else data
            self.files[op.node] = old[: op.offset] + data + old[op.offset + len(data) :]

    def tree(self, number: int = 0, path: str = "") -> Iterator[tuple[str, bytes | None]]:
        """All that is reachable: paths, with the content of files."""
        for name, child in sorted(self.directories.get(number, {}).items()):
            where = f"{path}{name}"
            if child in self.directories:
                yield where, None
                yield from self.tree(child, f"{where}/")
            else:
                yield where, self.files.get(child, b"")

    def write(self, root: Path) -> None:
        """Puts it on a real disk."""
        for path, content in self.tree():
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)

    def digest(self) -> bytes:
        return hashlib.sha256(repr([*self.tree()]).encode()).digest()


_NAMES = ("name", "move", "take")


class Trace:
    """What happened below a directory, seen each time something is synced, moved or taken away.

    Args:
        root: the directory, as it is on the disk for good.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.ops, self.live = root, list[Op](), Image()
        self.acknowledged: list[tuple[int, int]] = []
        """Of the ledger's entries: how many, and operations before that."""
        self._numbers = count(1)
        self.look()
        self.base, self.ops = self.live.copy(), []

    def look(self) -> None:
        """Takes note of what was made and written since."""
        self._look(self.root, 0)

    def _look(self, directory: Path, number: int) -> None:
        for entry in sorted(os.scandir(directory), key=lambda each: each.name):
            names = self.live.directories[number]
            if entry.name not in names:
                child = next(self._numbers)
                if entry.is_dir():
                    self.live.directories[child] = {}
                self._add(Op("name", number, entry.name, child=child))
            child = names[entry.name]
            if entry.is_dir():
                self._look(Path(entry.path), child)
                continue
            old, new = self.live.files.get(child, b""), _read(entry.path)
            if not new.startswith(old):
                self._add(Op("cut", child, offset=_common(old, new)))
                old = self.live.files[child]
            if len(new) > len(old):
                self._add(Op("write", child, offset=len(old), data=new[len(old) :]))

    def _add(self, op: Op) -> None:
        self.ops.append(op)
        self.live.apply(op)

    def find(self, path: str) -> tuple[int, str, int]:
        """The directory of a path, its name there, and its number."""
        number, parent, name = 0, 0, ""
        for name in Path(path).relative_to(self.root).parts:
            parent, number = number, self.live.directories[number][name]
        return parent, name, number

    def happens(self, kind: str, path: str, target: str = "") -> None:
        """Takes note of a sync, or of what is done to a name."""
        parent, name, number = self.find(path)
        if kind == "sync":
            self._add(Op("sync", number))
        elif kind == "take":
            self._add(Op("take", parent, name))
        else:
            assert Path(target).parent == Path(path).parent, "moves are within a directory"
            self._add(Op("move", parent, name, Path(target).name, child=number))

    def states(self, seed: int, per_point: int) -> Iterator[tuple[Image, int]]:
        """Different states after a loss of power at any point, with how many entries were acknowledged before it.

        Args:
            seed: of those that are drawn, where there are more.
            per_point: at most so many of a point.
        """
        draw, seen = random.Random(seed), set[bytes]()
        for point in range(len(self.ops) + 1):
            counts = [entries for entries, ops in self.acknowledged if ops <= point]
            for _ in range(per_point):
                image = self.state(point, draw)
                if (digest := image.digest() + bytes([counts[-1] if counts else 0])) not in seen:
                    seen.add(digest)
                    yield image, counts[-1] if counts else 0

    def state(self, point: int, draw: random.Random) -> Image:
        """One that a loss of power after so many operations may leave."""
        synced, promised = set[int](), list[bool]()
        for op in reversed(self.ops[:point]):
            if op.kind == "sync":
                synced.add(op.node)
            promised.append(op.node in synced)
        image, share = self.base.copy(), draw.choice([0.1, 0.5, 0.9])
        for op, is_promised in zip(self.ops[:point], reversed(promised), strict=True):
            if is_promised:
                image.apply(op)
            elif draw.random() < share:
                is_torn = op.kind == "write" and draw.random() < 0.6
                keep = draw.randrange(0, len(op.data) + 1, SECTOR) if is_torn else None
                image.apply(op, keep, zeros=draw.random() < 0.5)
        for number in self.live.directories:
            image.directories.setdefault(number, {})
        return image


def _common(old: bytes, new: bytes) -> int:
    """How many bytes at the beginning are the same."""
    return next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
        min(len(old), len(new)),
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@contextmanager
def traced(root: Path) -> Generator[Trace]:
    """Records what happens below a directory."""
    trace = Trace(root)

    def path_of(where: Any, dir_fd: int | None = None) -> str:
        if isinstance(where, int):
            return os.readlink(f"/proc/self/fd/{where}")
        base = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        return os.path.abspath(os.path.join(base, os.fspath(where)))

    def hooked(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, dir_fd: int | None = None) -> Any:
            path = path_of(arguments[0], dir_fd)
            options = {} if dir_fd is None else {"dir_fd": dir_fd}
            if not path.startswith(str(root)):
                return real(*arguments, **options)
            trace.look()
            target = path_of(arguments[1]) if kind == "move" else ""
            done = real(*arguments, **options)
            trace.happens(kind, path, target)
            return done

        return call

    append = Ledger.append

    def acknowledged(self: Ledger, type: str, body: Any) -> Any:
        entry = append(self, type, body)
        trace.look()
        trace.acknowledged.append((entry.seq + 1, len(trace.ops)))
        return entry

    hooks = {"fsync": "sync", "fdatasync": "sync", "rename": "move", "replace": "move"}
    hooks |= {"unlink": "take", "rmdir": "take"}
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in hooks.items():
            patch.setattr(os, name, hooked(kind, getattr(os, name)))
        patch.setattr(Ledger, "append", acknowledged)
        yield trace
    trace.look()
