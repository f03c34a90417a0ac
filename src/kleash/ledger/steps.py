"""What kind of steps a ledger records, which are due, and how many were made."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Literal

from kleash.ledger.entry import Entry

Kind = Literal["update", "measurement"]
"""Updates are our own; a run whose updates another trainer makes has measurements of the policy between them."""


def kind_of(entries: Sequence[Entry]) -> Kind:
    """What the steps of a run are, by its configuration: a controller of β has updates."""
    config = entries[0].body.get("config") if entries else None
    is_metered = isinstance(config, Mapping) and "rl" not in config
    return "measurement" if is_metered else "update"


def steps_due(started: Entry, kind: Kind) -> Iterator[int]:
    """The steps that a run must record, in order: without end for updates, as `[train]` says for measurements.

    Examples:
        >>> config = {"train": {"steps": 25, "meter_every": 10}}
        >>> started = Entry(seq=0, type="run.started", time="", body={"config": config}, prev="", leaf="")
        >>> list(steps_due(started, "measurement"))
        [0, 10, 20, 25]
    """
    if kind == "update":
        return count(1)
    try:
        train = started.body["config"]["train"]
        steps, every = int(train["steps"]), int(train["meter_every"])
        return chain(range(0, steps, every), [steps])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return iter(())


def steps_made(entries: Sequence[Entry]) -> int:
    """How many steps a ledger says were made: its updates, or those behind the last measured policy."""
    if kind_of(entries) == "update":
        return sum(entry.type == "update" for entry in entries)
    measured: list[Any] = [e.body.get("step") for e in entries if e.type == "measurement"]
    return max((step for step in measured if isinstance(step, int)), default=0)
