"""A comparison's JSON document, read without trust: what is absent, null or of another kind is None, never 0."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from kleash.records import KLReading
from kleash.report.text import interval
from kleash.report.view import Measured

NOT_NUMBERS = ("nan", "inf", "-inf")
"""How JSON carries a measured value that is not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A measured figure with its interval."""

    value: Measured
    low: Measured
    high: Measured
    level: Measured
    n: int | None
    """Responses behind it."""
    clusters: int | None
    """Prompts."""
    doubt: str
    """Why its interval should not be rested on; empty where nothing speaks against it."""

    @property
    def text(self) -> str:
        """The figure with its interval."""
        return interval(self.value, self.low, self.high)

    @property
    def confidence(self) -> str:
        """What the interval is; empty where there is none.

        Examples:
            >>> Read(value=1.0, low=0.5, high=1.5, level=0.95, n=8, clusters=4, doubt="").confidence
            '95 % interval'
        """
        if self.low is None or self.high is None or self.level is None:
            return ""
        return f"{100 * self.level:g} % interval"


def figure(value: Any) -> Measured:
    """A number of the document; None for whatever is none.

    Examples:
        >>> [figure(value) for value in (0.5, "inf", None, True, "0.5")]
        [0.5, inf, None, None, None]
    """
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in NOT_NUMBERS):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def count(value: Any) -> int | None:
    """A whole number of the document, of a size that a page can show; None for whatever is none."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 <= value <= 2**53 else None


def part(document: Any, *path: str) -> Mapping[str, Any]:
    """What is at the end of a path; empty where there is no object."""
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return cast(Mapping[str, Any], document) if isinstance(document, Mapping) else {}


def listed(document: Any, *path: str) -> list[Any]:
    """The list at the end of a path; empty where there is none."""
    found = part(document, *path[:-1]).get(path[-1])
    return cast(list[Any], found) if isinstance(found, list) else []


def objects(document: Any, *path: str) -> list[Mapping[str, Any]]:
    """The objects of the list at the end of a path."""
    return [each for each in listed(document, *path) if isinstance(each, Mapping)]


def words(value: Any, otherwise: str = "") -> str:
    """A text of the document."""
    return value if isinstance(value, str) else otherwise


def read(document: Any, *path: str) -> Read | None:
    """The figure with its interval at the end of a path; None where there is none."""
    found = part(document, *path)
    value = figure(found.get("value"))
    if value is None:
        return None
    return Read(
        value=value,
        low=figure(found.get("low")),
        high=figure(found.get("high")),
        level=figure(found.get("level")),
        n=count(found.get("n")),
        clusters=count(found.get("clusters")),
        doubt=_doubt(found),
    )


def _doubt(found: Mapping[str, Any]) -> str:
    """Of a reading's interval, by the rule that all of kleash has for it."""
    share = figure(found.get("largest_share"))
    if share is None or not math.isfinite(share):
        return ""
    try:
        is_trusted = KLReading.from_json(found).is_trusted
    except (TypeError, ValueError, ZeroDivisionError):
        return ""
    if is_trusted:
        return ""
    return f"don't rest on the interval: one response holds {100 * share:.0f} % of the KL"
