"""The error tree: what went wrong, what was expected, what was got, what to do, and the exit code that says so.

    KleashError              1   a bug of ours
    ├── InputError           2   bad input: a file, a prompt, a model that does not fit
    │   └── ConfigError      2   a configuration that cannot be run
    ├── LimitError           3   a KL limit was breached
    ├── TamperError          4   a record is not what was written
    └── ResourceError        5   something outside failed: disk, device
        ├── RewardError      5   the reward raised, timed out or returned no number
        └── RepeatError      5   a run that is gone on with does not repeat its record

A caller catches the narrowest class; the command line prints the four parts and exits with `exit_code`.
"""

from typing import ClassVar


class KleashError(Exception):
    """Root of every error kleash raises on purpose.

    Args:
        what: one sentence, what went wrong.
        expected: what would have been right.
        got: what was there instead.
        do: what the reader can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, expected: str = "", got: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.got = got
        self.do = do

    def __str__(self) -> str:
        parts = [self.what]
        parts += [
            f"{label}: {text}"
            for label, text in (("expected", self.expected), ("got", self.got), ("do", self.do))
            if text
        ]
        return "; ".join(parts)


class InputError(KleashError):
    """Something the user handed us cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """The configuration cannot be run as written."""


class LimitError(KleashError):
    """A hard limit was breached."""

    exit_code = 3


class TamperError(KleashError):
    """A record differs from what was written."""

    exit_code = 4


class ResourceError(KleashError):
    """Something outside the program failed."""

    exit_code = 5


class RewardError(ResourceError):
    """The reward raised, or did not return one finite number per response."""


class RepeatError(ResourceError):
    """A run that is gone on with does not repeat what its record says."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, the system or a device had no memory left; torch has no one class for it.

    Examples:
        >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        True
        >>> is_out_of_memory(RuntimeError("a shape is wrong"))
        False
    """
    said = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in said)
