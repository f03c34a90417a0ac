"""Whether a ledger's entries are those of a run, in an order that a run can have made them in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeGuard

from kleash.ledger import (
    LEDGER_FILE,
    OVERRIDE,
    VERSION,
    Entry,
    Kind,
    Problem,
    encode,
    kind_of,
    place_of,
    steps_due,
)

Status = Literal["finished", "interrupted", "failed", "unfinished"]

ENDINGS: dict[str, Status] = {
    "run.finished": "finished",
    "run.interrupted": "interrupted",
    "run.failed": "failed",
}

INTENT = ("step", "rollout_sha256", "kl_coef")
"""What an update's intent says of it."""


def check_sequence(entries: Sequence[Entry], version: int = VERSION) -> list[Problem]:
    """One start, the steps that are due in order, none after a halt, and an ending that is last or gone on from.

    Updates are 1, 2, 3, ...; of measurements, those that the configuration asks for, and all of them at a finish. From
    version 2 on a run of updates has its plan before them, and before each update the intent of it. An override of the
    plan may stand anywhere after it, but behind a finish.

    Args:
        entries: all of a ledger.
        version: of its format.
    """
    if not entries or entries[0].type != "run.started":
        where = place_of(0) if version > 1 else f"{LEDGER_FILE} line 1"
        return [Problem(where=where, what="a run starts with run.started")]
    order = _Order(entries, version)
    return [problem_at(entry, what) for entry in entries[1:] if (what := order.wrong(entry))]


class _Order:
    """What may come next in a ledger."""

    def __init__(self, entries: Sequence[Entry], version: int) -> None:
        self.kind: Kind = kind_of(entries)
        self.due = steps_due(entries[0], self.kind)
        self.config: Any = entries[0].body.get("config")
        self.steps: int | None = 0
        self.ended = ""
        """The type of the ending, if it is there."""
        self.halted = self.resumed = False
        self.with_intents = version > 1 and self.kind == "update"
        self.planned = not self.with_intents
        self.intent: Mapping[str, Any] | None = None
        """What the next update is to be."""
        self.checks: dict[str, Callable[[Entry], str]] = {
            "run.resumed": self._wrong_resumption,
            "checkpoint.saved": self._wrong_checkpoint,
            self.kind: self._wrong_update,
            **dict.fromkeys(ENDINGS, self._wrong_ending),
        }
        if self.with_intents:
            self.checks |= {
                "plan.committed": self._wrong_plan,
                "update.intent": self._wrong_intent,
                OVERRIDE: self._wrong_override,
            }

    def wrong(self, entry: Entry) -> str:
        """What is wrong with the next entry; empty where nothing is."""
        if self.ended and entry.type not in ("run.resumed", OVERRIDE):
            return "an entry after the run's ending"
        check = self.checks.get(entry.type)
        if check is None:
            return f"no entry of type {entry.type} belongs here"
        if not self.planned and entry.type != "plan.committed":
            self.planned = True  # said once
            return "plan.committed does not come before it"
        return check(entry)

    def _wrong_plan(self, entry: Entry) -> str:
        if entry.seq != 1:
            return "the plan is not the second entry, or not the only one"
        self.planned = True
        config = self.config if isinstance(self.config, Mapping) else {}
        differing = [
            name
            for name in ("guard", "rl")
            if encode(entry.body.get(name)) != encode(config.get(name))
        ]
        return f"{' and '.join(differing)}: not as the run was started" if differing else ""

    def _wrong_override(self, entry: Entry) -> str:
        if self.ended == "run.finished":
            return "an entry after the run's ending"
        self.halted = False  # what it halted at may be what is overridden
        return ""

    def _wrong_intent(self, entry: Entry) -> str:
        open_before, self.intent = self.intent, entry.body
        if open_before is not None:
            return "an intent, where the one before has no update yet"
        step = entry.body.get("step")
        if self.halted:
            return "a step after the guard's halt"
        return (
            ""
            if step == (self.steps or 0) + 1
            else f"not the intent of step {(self.steps or 0) + 1}"
        )

    def _wrong_agreement(self, entry: Entry) -> str:
        """An update that is not the one which was announced."""
        intent, self.intent = self.intent, None
        if not self.with_intents:
            return ""
        if intent is None:
            return "an update without its intent before it"
        same = {name: entry.body.get(name) for name in INTENT}
        return "" if encode(same) == encode(dict(intent)) else "not the update that was intended"

    def _wrong_update(self, entry: Entry) -> str:
        self.steps = next(self.due, None)
        after_halt, self.halted = self.halted, action_of(entry.body.get("verdict")) == "halt"
        if self.steps is None or entry.body.get("step") != self.steps:
            return "not a step that is due" if self.steps is None else f"not step {self.steps}"
        return "a step after the guard's halt" if after_halt else self._wrong_agreement(entry)

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
    where = place_of(entry.seq) if entry.v > 1 else f"{LEDGER_FILE} line {entry.seq + 1}"
    return Problem(where=where, what=what)
