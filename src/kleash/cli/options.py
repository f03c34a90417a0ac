"""What the commands share: options that mean the same everywhere, and the rooms that need torch."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kleash.cli.console import Screen
from kleash.errors import InputError
from kleash.extras import needs
from kleash.ledger import SigningKey, default_key_path, needs_passphrase, open_signing_key

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout; progress goes to stderr.")
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as in rl.kl_target=4."),
]
ProblemFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='A problem as JSON: "vocab", "length", "ref_logits", "rewards".',
        show_default="a built-in one, 8 tokens, 4 steps",
    ),
]
PassphraseFd = Annotated[
    int | None,
    typer.Option(
        "--passphrase-fd",
        metavar="N",
        min=0,
        help="Read the signing key's passphrase from this file descriptor.",
        show_default="asked for, where the key has one",
    ),
]


@contextmanager
def train_extra() -> Generator[None]:
    """Imports inside may fail for want of torch: the base install has none.

    Raises:
        InputError: the extra `train` is not installed.
    """
    with needs("train", "this command runs a model, which the base install does not"):
        yield


@contextmanager
def lab_extra() -> Generator[None]:
    """Imports inside may fail for want of torch or matplotlib.

    Raises:
        InputError: the extra `lab` is not installed.
    """
    with needs("lab", "a study trains models and draws figures, which the base install does not"):
        yield


@contextmanager
def trl_extra() -> Generator[None]:
    """Imports inside may fail for want of TRL, or of torch.

    Raises:
        InputError: the extra `trl` is not installed.
    """
    with needs("trl", "this command trains with TRL, which is an extra"):
        yield


def passphrase(
    screen: Screen, passphrase_fd: int | None = None, path: Path | None = None
) -> bytes | None:
    """The passphrase of a signing key, where it has one or is to have one as it is made.

    Raises:
        InputError: it is needed and there is no way to ask.
    """
    path = path or default_key_path()
    if passphrase_fd is None and not (path.exists() and needs_passphrase(path)):
        return None
    return screen.ask_passphrase(f"passphrase of {path}", passphrase_fd)


def signing_key(
    screen: Screen, passphrase_fd: int | None = None, path: Path | None = None
) -> SigningKey:
    """The key that signs what is made here, or the one at a path, itself made where there is none.

    Raises:
        InputError: it can't be had, or not with this passphrase.
    """
    return open_signing_key(path, passphrase=passphrase(screen, passphrase_fd, path))


def vacant_directory(given: Path | None, name: str) -> Path:
    """The directory that was asked for, or else runs/NAME, or the next vacant one: runs/NAME-2, runs/NAME-3.

    Raises:
        InputError: the one that was asked for holds something.
    """
    if given is not None:
        if _is_taken(given):
            raise InputError(
                f"{given} is already there",
                expected="a new or empty directory",
                got="something in it, which was left as it is",
                do="name another directory, or remove this one",
            )
        return given
    number, path = 1, Path("runs", name)
    while _is_taken(path):
        number += 1
        path = Path("runs", f"{name}-{number}")
    return path


def _is_taken(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))
