"""Pieces of work that are made once: kept by what they are made from, and done side by side.

    work = Work(directory, observer, jobs=2)
    proxies = work.do([Piece("proxy 0", fit_proxy, settings) for …])

A piece is a function, its settings and the files that these name; on nothing else may its result depend. It is kept
under the digest of them all: a study that was stopped finds what it had finished, one that is asked again with one more
seed makes one more, and two studies that need the same run share it.

    DIRECTORY/pieces/<name of the function>-<digest>/     result.json, and whatever else the function leaves there
    DIRECTORY/pieces/<…>.part/                            one that is being made, or was stopped
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

import kleash
from kleash.errors import InputError, ResourceError
from kleash.lab.study.inputs import contents
from kleash.lab.study.workers import Told, Workers

Result = dict[str, Any]
Make = Callable[[Any, Path, "Desk"], Result]
"""(settings, a directory of its own, its desk) → a result that JSON can carry. Of a module, so that it pickles."""
RESULT = "result.json"


class Piece(NamedTuple):
    """One piece of work."""

    label: str
    """As the progress bar names it; nothing depends on it."""
    make: Make
    settings: BaseModel
    """All that the result depends on."""

    @property
    def key(self) -> str:
        """What it is kept under: its function's name and the digest of its settings, and of kleash's version."""
        return key_of(self.make, self.settings)


def key_of(make: Make, settings: BaseModel) -> str:
    """As of `Piece`, with the contents of the files that the settings name."""
    kind = getattr(make, "__name__", "piece")
    said = settings.model_dump(mode="json")
    held = {
        "kind": kind,
        "kleash": kleash.__version__,
        "settings": said,
        "files": contents(said),
    }
    text = json.dumps(held, sort_keys=True, separators=(",", ":"))
    return f"{kind.strip('_').replace('_', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Event(NamedTuple):
    """How far a piece of work has come."""

    label: str
    step: int
    steps: int
    figures: str
    """What a person watches."""


class Desk:
    """What a piece of work has beside its settings: where other pieces are, and whom it tells how far it is."""

    def __init__(self, pieces: Path, label: str, told: Told) -> None:
        self.pieces, self.label, self._told = pieces, label, told

    def tell(self, step: int, steps: int, figures: str = "") -> None:
        """Says how far it has come."""
        self._told(Event(self.label, step, steps, figures))

    def of(self, make: Make, settings: BaseModel) -> Path:
        """The directory of another piece, which is done.

        Raises:
            InputError: it isn't.
        """
        found = self.pieces / key_of(make, settings)
        if not (found / RESULT).is_file():
            raise InputError(
                f"{found} is not there", expected="a piece of work that was done before this one"
            )
        return found


class Work:
    """Where pieces of work are done and kept; used as a context, which ends the processes.

    Args:
        directory: of the study; made if it isn't there.
        observer: told how far each piece is.
        jobs: how many are done at once.

    Raises:
        InputError: somebody else is at work in the directory.
    """

    def __init__(self, directory: Path, observer: Callable[[Event], None], jobs: int) -> None:
        self.pieces, self.observer, self.workers = directory / "pieces", observer, Workers(jobs)
        self.made = self.found = 0
        """Pieces that were done here, and that had been done before."""

    @contextmanager
    def open(self) -> Generator["Work"]:
        """Takes the directory, and gives it back."""
        try:
            self.pieces.mkdir(parents=True, exist_ok=True)
            lock = (self.pieces / ".lock").open("w")
        except OSError as error:
            raise unwritable(self.pieces, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"another kleash lab is at work in {self.pieces.parent}",
                    do="wait for it, or name another directory with --out",
                ) from error
            with self.workers.running():
                yield self

    def do(self, pieces: Iterable[Piece]) -> list[Result]:
        """The results of the pieces, in their order; what was done before is not done again.

        Raises:
            InputError: a result that is there can't be read.
            ResourceError: a process died, or the disk failed.
            Exception: whatever a piece raised; those that run beside it are stopped.
        """
        wanted = list(pieces)
        missing = {
            piece.key: piece for piece in wanted if not (self.pieces / piece.key / RESULT).exists()
        }
        self.found += len({piece.key for piece in wanted}) - len(missing)
        tasks = [(_make, (piece, self.pieces)) for piece in missing.values()]
        for _ in self.workers.results(tasks, self.observer):
            self.made += 1
        return [_read(self.pieces / piece.key / RESULT) for piece in wanted]


def _make(piece: Piece, pieces: Path, told: Told) -> None:
    """Does one piece, and leaves its directory in one move. Runs in a process of its own."""
    target = pieces / piece.key
    part = target.with_name(f"{target.name}.part")
    part.mkdir(exist_ok=True)
    result = piece.make(piece.settings, part, Desk(pieces, piece.label, told))
    text = json.dumps(plain(result), indent=1, allow_nan=False)
    kept = {"settings": piece.settings.model_dump(mode="json"), "result": json.loads(text)}
    try:
        (part / RESULT).write_text(json.dumps(kept, indent=1), encoding="utf-8")
        part.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error


def _read(path: Path) -> Result:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["result"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read",
            expected="a result as kleash lab writes it",
            got=str(error)[:200],
            do=f"remove {path.parent}: it is then made again",
        ) from error


def plain(value: Any) -> Any:
    """A result as JSON can carry it: what is no finite number is None, as nothing was measured."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def clear(directory: Path) -> None:
    """Empties a directory that a piece was stopped in, where it can't be gone on with."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def cores() -> int:
    """How many pieces to do at once, where nothing is said."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unwritable(path: Path, error: OSError) -> ResourceError:
    """That something can't be made or written, and what to do: a full disk is another matter than a wrong place."""
    is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    where = "free some space, or name" if is_full else "name"
    return ResourceError(
        f"{path} cannot be made or written",
        got=error.strerror or str(error),
        do=f"{where} another directory with --out; what is finished is kept",
    )
