"""Packages that an install may lack: what needs them says so, and what to install."""

from collections.abc import Generator
from contextlib import contextmanager

from kleash.errors import InputError

_TRAIN = frozenset(
    {
        "accelerate",
        "datasets",
        "huggingface_hub",
        "jaxtyping",
        "numpy",
        "peft",
        "safetensors",
        "scipy",
        "tokenizers",
        "torch",
        "transformers",
        "yaml",
    }
)
EXTRAS = {
    "train": _TRAIN,
    "trl": _TRAIN | {"trl"},
    "pandas": frozenset({"numpy", "pandas"}),
    "lab": _TRAIN | {"matplotlib", "tomli_w"},
}
"""Of each extra, the packages that are imported by name."""


@contextmanager
def needs(extra: str, what: str) -> Generator[None]:
    """Imports inside may fail for want of an extra.

    Args:
        extra: of `EXTRAS`.
        what: one sentence, what can't be done without it.

    Raises:
        InputError: it is not installed.

    Examples:
        >>> with needs("pandas", "a data frame is pandas'"):
        ...     raise ModuleNotFoundError(name="pandas")
        Traceback (most recent call last):
        kleash.errors.InputError: a data frame is pandas'; expected: ...; do: pip install 'kleash[pandas]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS[extra]:
            raise
        raise InputError(
            what,
            expected=f"the packages of kleash[{extra}]",
            got=f"no {missing}",
            do=f"pip install 'kleash[{extra}]'",
        ) from error
