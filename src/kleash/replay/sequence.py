"""Whether a ledger's entries are those of a run, in an order that a run can have made them in."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard

from kleash.ledger import LEDGER_FILE, Entry, Kind, Problem, kind_of, steps_due

Status = Literal["finished", "interrupted", "failed", "unfinished"]

ENDINGS: dict[str, Status] = {
    "run.finished": "finished",
    "run.interrupted": "interrupted",
    "run.failed": "failed",
}


def check_sequence(entries: Sequence[Entry]) -> list[Problem]:
    """One start, the steps that are due in order, none after a halt, and an ending that is last or gone on from.

    Updates are 1, 2, 3, ...; of measurements, those that the configuration asks for, and all of them at a finish.
    """
    if not entries or entries[0].type != "run.started":
        return [Problem(where=f"{LEDGER_FILE} line 1", what="a run starts with run.started")]
    order = _Order(entries)
    return [problem_at(entry, what) for entry in entries[1:] if (what := order.wrong(entry))]


class _Order:
    """What may come next in a ledger."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.kind: Kind = kind_of(entries)
        self.due = steps_due(entries[0], self.kind)
        self.steps: int | None = 0
        self.ended = ""
        """The type of the ending, if it is there."""
        self.halted = self.resumed = False

    def wrong(self, entry: Entry) -> str:
        """What is wrong with the next entry; empty where nothing is."""
        if self.ended and entry.type != "run.resumed":
            return "an entry after the run's ending"
        checks = {
            "run.resumed": self._wrong_resumption,
            "checkpoint.saved": self._wrong_checkpoint,
            self.kind: self._wrong_update,
            **dict.fromkeys(ENDINGS, self._wrong_ending),
        }
        check = checks.get(entry.type)
        return f"no entry of type {entry.type} belongs here" if check is None else check(entry)

    def _wrong_update(self, entry: Entry) -> str:
        self.steps = next(self.due, None)
        after_halt, self.halted = self.halted, action_of(entry.body.get("verdict")) == "halt"
        if self.steps is None or entry.body.get("step") != self.steps:
            return "not a step that is due" if self.steps is None else f"not step {self.steps}"
        return "a step after the guard's halt" if after_halt else ""

    def _wrong_ending(self, entry: Entry) -> str:
        self.ended = entry.type
        steps, finished = entry.body.get("steps"), entry.type == "run.finished"
        # Whatever stops a run that is repeating itself leaves the weights of the step it had come to.
        fewer = self.resumed and not finished and _is_count(steps) and steps <= (self.steps or 0)
        if steps != self.steps and not fewer:
            return f"the ending does not count the {self.steps} steps before it"
        if self.kind == "measurement" and finished and next(self.due, None) is not None:
            return "the run finished, and a measurement that was due is not there"
        return ""

    def _wrong_checkpoint(self, entry: Entry) -> str:
        if self.kind != "update":
            return "a checkpoint of a run that has none"
        return self._wrong_step(entry)

    def _wrong_resumption(self, entry: Entry) -> str:
        is_over = self.ended == "run.finished" or (self.halted and self.ended)
        if self.kind != "update" or is_over:
            return "the run goes on, where it could not"
        self.ended, self.resumed = "", True
        return self._wrong_step(entry)

    def _wrong_step(self, entry: Entry) -> str:
        step = entry.body.get("step")
        is_one = _is_count(step) and step <= (self.steps or 0)
        return "" if is_one else f"{entry.type} is of a step that was not made"


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def action_of(verdict: Any) -> Any:
    """What a recorded verdict says to do; None where it is none."""
    return verdict.get("action") if isinstance(verdict, Mapping) else None


def problem_at(entry: Entry, what: str) -> Problem:
    """A problem with an entry."""
    return Problem(where=f"{LEDGER_FILE} line {entry.seq + 1}", what=what)
