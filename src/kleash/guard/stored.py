"""What is wrong with a guard's stored state: a record may come from anybody, and a state is computed with."""

import math
from collections.abc import Callable, Collection
from typing import Any

from kleash.guard.budget import CURRENCIES

UNMEASURABLE = ("nan", "inf", "-inf")
"""What a ledger has in the place of a float that JSON has not."""


def stored_fault(data: Any, detectors: Collection[str], *, budget: bool) -> str:
    """Why it is no state of a guard with these detectors; empty where it is one, as far as its own fields go.

    Args:
        data: what was stored.
        detectors: names of those that the configuration has; their states are checked where they are read.
        budget: whether the configuration has one.
    """
    checks: dict[str, Callable[[Any], bool]] = {
        "refused": lambda x: type(x) is list and all(_is_count(step) for step in x),
        "rollbacks": _is_count,
        "good": lambda x: x is None or _is_count(x),
        "budget": _is_budget if budget else lambda x: x is None,
        "detectors": lambda x: (
            _has(x, detectors) and all(isinstance(state, dict) for state in x.values())
        ),
    }
    if not _has(data, checks):
        return "fields missing or unknown"
    return ", ".join(name for name, is_right in checks.items() if not is_right(data[name]))


def _is_budget(value: Any) -> bool:
    return (
        _has(value, ("spent", "updates", "measured"))
        and _is_count(value["updates"])
        and _has(value["spent"], CURRENCIES)
        and all(_is_spent(amount) for amount in value["spent"].values())
        and _has(value["measured"], CURRENCIES)
        and all(
            amount is None or type(amount) is float or amount in UNMEASURABLE
            for amount in value["measured"].values()
        )
    )


def _is_spent(amount: Any) -> bool:
    return amount is None or (type(amount) is float and math.isfinite(amount) and amount >= 0.0)


def _is_count(value: Any) -> bool:
    # type(), as in Python True is an int.
    return type(value) is int and value >= 0


def _has(value: Any, names: Collection[str]) -> bool:
    """Whether it is an object with just these fields."""
    return isinstance(value, dict) and value.keys() == set(names)
