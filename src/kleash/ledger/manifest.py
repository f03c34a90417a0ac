"""A directory's files by size and digest, so that one hash vouches for all of them, their names included."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kleash.errors import TamperError
from kleash.ledger.durable import sync_directory, sync_file
from kleash.ledger.entry import MAX_LINE, encode, parse_object
from kleash.ledger.paths import open_regular, refusal

MANIFEST_FILE = "manifest.json"


def seal(directory: Path) -> str:
    """Writes the manifest of all files in a directory, with everything on the disk before it.

    Returns:
        SHA-256 of the manifest, in hex.
    """
    files: dict[str, Any] = {}
    for path in _files(directory):
        sync_file(path)
        files[path.relative_to(directory).as_posix()] = _describe(path)
    for parent, _, _ in os.walk(directory, topdown=False):
        sync_directory(Path(parent))
    content = encode({"files": files, "v": 1}) + b"\n"
    (directory / MANIFEST_FILE).write_bytes(content)
    sync_file(directory / MANIFEST_FILE)
    sync_directory(directory)
    return hashlib.sha256(content).hexdigest()


def check_sealed(directory: Path, digest: str) -> None:
    """That a directory is as its manifest says, and the manifest the one with that digest.

    Raises:
        TamperError: it isn't: a file was changed, added or taken away, or leads out of the directory.
    """
    if what := refusal(directory, directory / MANIFEST_FILE):
        raise TamperError(f"{MANIFEST_FILE}: {what}")
    try:
        with open_regular(directory / MANIFEST_FILE) as file:
            content = file.read(MAX_LINE + 2)
    except OSError as error:
        raise TamperError(f"{MANIFEST_FILE} is missing, or can't be read") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise TamperError(f"{MANIFEST_FILE} is not the one that was recorded")
    recorded = parse_object(content.removesuffix(b"\n")).get("files")
    if not isinstance(recorded, dict):
        raise TamperError(f"{MANIFEST_FILE} names no files")
    found = {path.relative_to(directory).as_posix(): path for path in _files(directory)}
    for name in sorted({*recorded, *found}):
        if name not in found:
            raise TamperError(f"{name!a} is missing")
        if name not in recorded:
            raise TamperError(f"{name!a} was added")
        what = refusal(directory, found[name])
        if what or _describe(found[name]) != recorded[name]:
            raise TamperError(f"{name!a}: {what or 'changed since it was written'}")


def _describe(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "size": file.tell()}


def _files(directory: Path) -> Iterator[Path]:
    """All but the manifest, links to directories among them."""
    for path in sorted(directory.rglob("*")):
        is_manifest = path == directory / MANIFEST_FILE
        if not is_manifest and (path.is_symlink() or not path.is_dir()):
            yield path
