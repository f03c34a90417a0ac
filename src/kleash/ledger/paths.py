"""What a verification may open: regular files that lie where the record says. A run may come from anybody."""

import os
from io import BufferedReader
from pathlib import Path

LEADS_OUT = "the path leads out of the run; it was not opened"
NOT_A_FILE = "not a regular file; it was not opened"


def leads_out(root: Path, path: Path) -> bool:
    """Whether a path, with all links followed, lies outside of `root`."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def refusal(root: Path, path: Path) -> str:
    """Why a file of `root` is not opened; empty where nothing speaks against it, or nothing is there."""
    if leads_out(root, path):
        return LEADS_OUT
    return NOT_A_FILE if os.path.lexists(path) and not path.is_file() else ""


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file to read; to open a pipe would be to wait for whoever writes to it.

    Raises:
        OSError: it is none, or it cannot be opened.
    """
    if os.path.lexists(path) and not path.is_file():
        raise OSError(0, "not a regular file")
    return path.open("rb")
