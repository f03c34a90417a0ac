"""What settings name that lies outside of them: files, models, functions. A piece is kept under their contents too."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

MODEL_FILES = ("config.json", "adapter_config.json")
"""One of which a model's directory has."""
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")


def contents(settings: Any) -> dict[str, str]:
    """The SHA-256 of every file and directory that settings name, and of the files that functions are in.

    A name that is no path here is left to what it names: an embedded model comes with the version, a hub id is itself.

    Args:
        settings: as JSON.

    Examples:
        >>> contents({"policy": "tiny-reviews/base", "rewards": ["no/such/file"], "word": ""})
        {}
    """
    found: dict[str, str] = {}
    for name in sorted(set(_texts(settings))):
        path = _path(name)
        if path is not None:
            found[name] = _digest(path, _stamp(path))
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def _path(name: str) -> Path | None:
    """Where a name leads on this machine: a file, a model's directory, or the module that a function is in.

    Any other directory that happens to be called like a setting's word is none of a study's.
    """
    if function := _FUNCTION.fullmatch(name):
        path = Path(*function[1].split(".")).with_suffix(".py")
    else:
        path = Path(name).expanduser()
    try:
        is_named = path.is_file() or any((path / name).is_file() for name in MODEL_FILES)
        return path if name and is_named else None
    except OSError:  # a text that is too long to be a name
        return None


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does: a digest is not made again where this is the same."""
    return tuple(x for each in _files(path) for x in (each.stat().st_size, each.stat().st_mtime_ns))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


@cache
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    for each in _files(path):
        with each.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{each.relative_to(path)}\0{content}\n".encode())
    return digest.hexdigest()
