"""Files that outlast a crash: on the disk before their name is, and whole or not there at all."""

import os
import shutil
from contextlib import suppress
from pathlib import Path


def sync_file(path: Path) -> None:
    """Has a file's bytes on the disk."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Has a directory's names on the disk; without it a crash may undo a rename."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_data(file: int) -> None:
    """`fdatasync` where there is one: an open file's bytes and length on the disk, without its times."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(file)
    else:  # macOS
        os.fsync(file)


def sync_tree(path: Path) -> None:
    """Has all files below a directory on the disk, and their names."""
    for parent, _, files in os.walk(path, topdown=False):
        for name in files:
            sync_file(Path(parent) / name)
        sync_directory(Path(parent))


def make_directory(path: Path) -> None:
    """Makes a directory and those above it, with their names on the disk."""
    missing = [each for each in path.parents if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in (path, *missing):
        with suppress(PermissionError):  # of a directory that is not ours to read
            sync_directory(each.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file whole: a reader, or a crash, sees the old one or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def publish_directory(temporary: Path, target: Path) -> None:
    """Gives a directory whose files are synced its name, in place of what has that name."""
    if target.exists():
        discard_directory(target)
    temporary.rename(target)
    sync_directory(target.parent)


def discard_directory(path: Path) -> None:
    """Removes a directory; half removed it no longer has its name."""
    doomed = path.with_name(f".{path.name}.old")
    if doomed.exists():
        shutil.rmtree(doomed)
    path.rename(doomed)
    sync_directory(path.parent)
    remove_directory(doomed)


def remove_directory(path: Path) -> None:
    """Removes a directory with all that is in it; it does not come back."""
    shutil.rmtree(path)
    sync_directory(path.parent)


def _sync(path: Path, flags: int) -> None:
    file = os.open(path, flags)
    try:
        os.fsync(file)
    finally:
        os.close(file)
