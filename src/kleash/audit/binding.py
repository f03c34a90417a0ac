"""Which bytes a model is: every file by path, size and digest, and one digest that binds all three."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kleash.errors import InputError
from kleash.ledger import Problem, encode
from kleash.ledger.paths import open_regular


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class FileDigest:
    """One file of a model."""

    path: str
    """Relative to the model's directory, with `/`; the name alone of a model that is one file."""
    size: int
    """Bytes."""
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def list_files(path: Path) -> tuple[FileDigest, ...]:
    """Every regular file of a model, by its path: of a directory, or the one file that a model is.

    The links of a snapshot in a Hugging Face cache, which lead to the `blobs` beside it, are followed.

    Raises:
        InputError: there is none, or something is no regular file, leads out of the directory, has a name that is not
            UTF-8, or cannot be read.
    """
    files: list[FileDigest] = []
    for name, found in _scan(path):
        if isinstance(found, str):
            raise InputError(
                f"the model's file {name!a} cannot be listed",
                expected="regular files inside the model's directory",
                got=found,
            )
        files.append(found)
    if not files:
        raise InputError(f"there are no files in {str(path)!a}", expected="a model")
    return tuple(sorted(files))


def binding_digest(files: Iterable[FileDigest]) -> str:
    """SHA-256 over the canonical JSON of each file's path, size and SHA-256, by path.

    Two models have the same only where the same bytes have the same names: digests alone would let names be swapped.

    Examples:
        >>> empty = hashlib.sha256().hexdigest()
        >>> binding_digest([FileDigest(path="a", size=0, sha256=empty)])[:16]
        'fa42072f855d5153'
        >>> binding_digest([FileDigest(path="b", size=0, sha256=empty)])[:16]
        '03d29f379f65eb56'
    """
    return hashlib.sha256(encode([each.to_json() for each in sorted(files)])).hexdigest()


def scan_files(role: str, path: Path) -> dict[str, FileDigest | str]:
    """What there is of a model, by path: each file's digest, or why it was not opened.

    Raises:
        InputError: there is nothing at `path`.
    """
    if not path.exists():
        raise InputError(
            f"there is no {role} at {str(path)!a}", expected="its directory, or its file"
        )
    return dict(_scan(path))


def compare_files(
    role: str, there: Mapping[str, FileDigest | str], recorded: Iterable[FileDigest]
) -> list[Problem]:
    """Each file that is not there as it was recorded, or that was not recorded.

    Args:
        role: which model it is; in front of each file's path.
        there: what `scan_files` found.
        recorded: its files.
    """
    by_path = {each.path: each for each in recorded}
    wrong: dict[str, str] = dict.fromkeys(by_path.keys() - there.keys(), "recorded, but not there")
    for name, found in there.items():
        if isinstance(found, str):
            wrong[name] = found
        elif name not in by_path:
            wrong[name] = "not in the record: it was added"
        elif found != by_path[name]:
            wrong[name] = f"changed since it was recorded{_sizes(by_path[name], found)}"
    return [
        Problem(where=ascii(f"{role}/{name}").strip("'"), what=what)
        for name, what in sorted(wrong.items())
    ]


def _sizes(recorded: FileDigest, found: FileDigest) -> str:
    if recorded.size == found.size:
        return ""
    return f": {found.size} bytes, where it had {recorded.size}"


def _scan(path: Path) -> Iterator[tuple[str, FileDigest | str]]:
    """Each file with its digest, or with why it was not opened."""
    if not path.is_dir():
        yield path.name, _digest(path, path.name)
        return
    root = Path(os.path.realpath(path))
    allowed = [root]
    if root.parent.name == "snapshots":  # of a Hugging Face cache: models--a--b/snapshots/COMMIT
        allowed.append(root.parent.parent / "blobs")
    errors: list[OSError] = []
    for parent, directories, files in os.walk(root, onerror=errors.append):
        here = Path(parent)
        links = [each for each in directories if (here / each).is_symlink()]
        for name in sorted([*files, *links]):
            file = here / name
            shown = file.relative_to(root).as_posix()
            target = Path(os.path.realpath(file))
            if name in links:
                yield shown, "a link to a directory; it was not followed"
            elif not any(target.is_relative_to(each) for each in allowed):
                yield shown, "the path leads out of the model's directory; it was not opened"
            else:
                yield shown, _digest(file, shown)
    for error in errors:  # what cannot be listed may hold anything
        shown = Path(error.filename).relative_to(root).as_posix()
        yield shown, f"it cannot be read: {error.strerror}"


def _digest(file: Path, name: str) -> FileDigest | str:
    if any("\ud800" <= char <= "\udfff" for char in name):
        return "its name is not UTF-8; it was not opened"
    try:
        with open_regular(file) as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            return FileDigest(path=name, size=opened.tell(), sha256=sha256)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
