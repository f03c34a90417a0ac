"""One finite number per response, or an error that names the first one without."""

import math
import reprlib
import struct
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from numbers import Real
from typing import Any

from kleash.errors import RewardError

_SHOWN = 60
"""Characters of a response in an error message."""


def checked(name: str, scores: Any, responses: Sequence[str]) -> list[float]:
    """The scores as plain floats, if there is one finite number for each response.

    Args:
        name: the scorer, for the message.
        scores: what it returned: any sequence of numbers, a NumPy array or a tensor of shape [B].
        responses: what it scored, [B].

    Raises:
        RewardError: too many or too few, or one that is not a finite number in float32, which
            training computes in.

    Examples:
        >>> checked("mine:length", [3, 0.5], ["a b c", "d"])
        [3.0, 0.5]
        >>> checked("mine:length", [3, float("nan")], ["a b c", "d"])
        Traceback (most recent call last):
        kleash.errors.RewardError: ...; got: nan for response 1, 'd'; ...
    """
    values, got = _read(scores, len(responses))
    if values is None:
        raise RewardError(
            f"the reward {name!r} did not return one score per response",
            expected=f"a list of {len(responses)} numbers",
            got=got,
            do="return one number for each response, in their order",
        )
    for i, value in enumerate(values):
        if not _is_finite(value):
            raise RewardError(
                f"the reward {name!r} gave no usable score",
                expected="a finite number for every response, within ±3.4e38 as float32 is",
                got=f"{shown(value)} for response {i}, {shown(responses[i])}",
                do="return a number for this response too",
            )
    return [float(value) for value in values]


def shown(value: Any) -> str:
    r"""A value for an error message: short, and with its control characters escaped.

    Examples:
        >>> print(shown("red: \x1b[31m"))
        'red: \x1b[31m'
        >>> len(shown("a" * 99))
        63
    """
    if isinstance(value, str):
        return repr(value[:_SHOWN]) + ("…" if len(value) > _SHOWN else "")
    text = reprlib.repr(value)
    return text if text.isprintable() else repr(text)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that is still finite as a float32."""
    try:
        if not isinstance(value, Real) or not math.isfinite(value):
            return False
        struct.pack("<f", float(value))  # overflows where the rounding to float32 would be infinite
    except OverflowError:
        return False
    return True


def _read(scores: Any, count: int) -> tuple[list[Any] | None, str]:
    """The values, if they are so many; else what there is instead."""
    try:
        values = _as_list(scores, count)
    except (
        Exception
    ) as error:  # what the user's own object, or an array of another shape, says to being read
        return None, f"a {type(scores).__name__} that cannot be read, {type(error).__name__}"
    if values is None:
        return None, type(scores).__name__
    if len(values) != count:
        return None, f"{len(values)} of them" if len(values) < count else f"more than {count}"
    return values, ""


def _as_list(scores: Any, count: int) -> list[Any] | None:
    """Plain Python values of an array, a tensor or a sequence, one more than `count` at most; None for what is neither.

    A set and a mapping have no order that could be the responses'. What has no end is not read to it.
    """
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    if isinstance(scores, Iterable) and not isinstance(scores, str | bytes | Mapping | Set):
        # A sequence may hold zero-dimensional tensors.
        first = islice(scores, count + 1)
        return [value.item() if hasattr(value, "item") else value for value in first]
    return None
