"""What every model loader shares: where a name leads, and what a file that can't be read is told to the user as."""

from collections.abc import Generator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from kleash.errors import InputError
from kleash.models.embedded import count_in_file, names, resolve
from kleash.models.fetchable import FETCHABLE, fetched

LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises for files that are missing, broken or of another kind."""


def locate(name: str) -> str:
    """A local directory where there is one, that of a model that was fetched, else the name as a hub id.

    Raises:
        InputError: the name can only be a path, and nothing is there; or the model is still to be fetched.
    """
    path = Path(resolve(name)).expanduser()
    if path.is_dir():
        return str(path)
    if name in FETCHABLE:
        return fetched(name)
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if is_path or path.is_file():
        raise InputError(
            f"there is no model directory {name!r}",
            expected="a directory with config.json and safetensors",
            got="a file" if path.is_file() else "nothing",
            do=suggestion(name),
        )
    return name


def directory_of(name: str) -> Path | None:
    """Where a model's files are: a hub id's where it was downloaded; None where it wasn't.

    Args:
        name: an embedded or fetched model's name, a directory, or a hub id.

    Raises:
        InputError: the name can only be a path, and nothing is there.
    """
    path = Path(locate(name))
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def count_parameters(name: str) -> int | None:
    """How many weights a model's files hold, by their headers alone; None where that can't be told without loading it.

    Args:
        name: an embedded model's name, a directory, or a hub id, of which only what was downloaded before is looked at.

    Examples:
        >>> count_parameters("tiny-reviews/base")
        4212992
    """
    path = directory_of(name)
    if path is None:
        return None
    try:
        return sum(map(count_in_file, path.glob("*.safetensors"))) or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return None  # whoever loads it says what is wrong with it


def suggestion(name: str) -> str:
    """What to do about a name that leads nowhere."""
    known = [*names(), *FETCHABLE]
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"models at hand: {', '.join(known)}"


def check_unpickled(name: str, path: Path) -> None:
    """That the weights in a directory are not pickled alone: to read a pickle is to run what is in it.

    Raises:
        InputError: they are.
    """
    pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in path.glob(kind))
    if pickled and not any(path.glob("*.safetensors")):
        raise InputError(
            f"the weights of {name!r} are pickled, and a pickle can run anything as it is read",
            expected="safetensors",
            got=", ".join(pickled[:3]),
            do="where you trust the file: AutoModelForCausalLM.from_pretrained(DIR, use_safetensors=False)"
            ".save_pretrained(NEW_DIR), and the tokenizer beside it",
        )


@contextmanager
def readable(name: str, kind: str) -> Generator[None]:
    """Turns what transformers raises on bad files into one error that says what to do.

    Args:
        name: as the user gave it.
        kind: what it should be, as in "language model".

    Raises:
        InputError: what is inside raised any of `LOADING_ERRORS`.
    """
    try:
        yield
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot load {name!r} as a {kind}",
            expected="a directory or a hub id with config.json, safetensors and a tokenizer",
            got=f"{type(error).__name__}: {reason[:200]}",
            do="" if Path(name).expanduser().is_dir() else suggestion(name),
        ) from error


@contextmanager
def quietly() -> Generator[None]:
    """Keeps transformers' bars and reports off the terminal: what matters is raised as an error."""
    level, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
