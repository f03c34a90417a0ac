"""Verification of a run from its own record: every β and verdict recomputed, without torch."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kleash import control
from kleash.control import ControlConfig
from kleash.errors import InputError, KleashError
from kleash.guard import GuardConfig, judge, judge_policy
from kleash.ledger import (
    HEAD_FILE,
    LEDGER_FILE,
    Chain,
    Entry,
    Kind,
    MeasurementEntry,
    Problem,
    UpdateEntry,
    check_config,
    check_files,
    check_metrics,
    kind_of,
    refusal,
    steps_due,
    steps_made,
    verify_chain,
)
from kleash.records import KLReading, Unit, carried_momentum, refreshed_share

Status = Literal["finished", "interrupted", "failed", "unfinished"]

SKIPPED = "skipped"
"""What a run's first entry says where its self-test was not made."""

ENDINGS: dict[str, Status] = {
    "run.finished": "finished",
    "run.interrupted": "interrupted",
    "run.failed": "failed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What `verify_run` found."""

    entries: int
    head: str
    """Hash of the last entry: keep it elsewhere, and pin it at the next verification."""
    steps: int
    status: Status
    """How the run ended; `unfinished`: it is running, or it was killed."""
    checks: tuple[str, ...]
    """The checks made, by name."""
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    """What a reader should know that is no problem, such as the traces of a crash."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "ok": self.ok,
            "status": self.status,
            "steps": self.steps,
            "entries": self.entries,
            "head": self.head,
            "checks": list(self.checks),
            "problems": [problem.to_json() for problem in self.problems],
            "notes": list(self.notes),
        }


def verify_run(path: Path, expected_head: str | None = None) -> Verification:
    """Check a run directory, or a ledger alone (its directory or its file).

    Args:
        path: what to verify.
        expected_head: a head hash noted earlier. It must be in the chain, so that nothing up to it
            was changed since.

    Raises:
        InputError: there is no ledger at `path`, or `expected_head` is no hash.
    """
    if expected_head is not None and not re.fullmatch("[0-9a-f]{64}", expected_head):
        raise InputError("the expected head is not a hash", expected="64 hexadecimal digits")
    ledger, run = _locate(path)
    chain = _chain_of(ledger, run)
    checks, problems, notes = ["chain", "head"], list(chain.problems), list(chain.notes)
    if expected_head is not None:
        checks.append("expected head")
        problems += _check_pin(chain, expected_head)
    status = ENDINGS.get(chain.entries[-1].type, "unfinished") if chain.entries else "unfinished"
    if not problems:  # what a broken chain says is nobody's word
        checks += ["sequence", "replay"]
        problems += check_sequence(chain.entries) + replay(chain.entries)
    if not problems and run is not None:
        checks += ["config", "metrics"] + (["files"] if status != "unfinished" else [])
        problems += _check_files_of(run, chain.entries, status)
    if not problems and chain.entries[0].body.get("self_test") == SKIPPED:
        notes.append("the self-test was skipped: nothing was checked before the first step")
    if not problems and status == "unfinished":
        notes.append("the run has no ending: it is still running, or it was killed")
    return Verification(
        entries=len(chain.entries),
        head=chain.head.leaf,
        steps=steps_made(chain.entries),
        status=status,
        checks=tuple(checks),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def check_sequence(entries: Sequence[Entry]) -> list[Problem]:
    """One start, the steps that are due in order, none after a halt, at most one ending, which comes last.

    Updates are 1, 2, 3, ...; of measurements, those that the configuration asks for, and all of them at a finish.
    """
    if not entries or entries[0].type != "run.started":
        return [Problem(where=f"{LEDGER_FILE} line 1", what="a run starts with run.started")]
    problems: list[Problem] = []
    steps, ended, halted = 0, False, False
    kind = kind_of(entries)
    due = steps_due(entries[0], kind)
    for entry in entries[1:]:
        what = ""
        if ended:
            what = "an entry after the run's ending"
        elif entry.type in ENDINGS:
            ended = True
            what = _wrong_ending(entry, steps, kind, due)
        elif entry.type != kind:
            what = f"no entry of type {entry.type} belongs here"
        else:
            steps = next(due, None)
            if steps is None or entry.body.get("step") != steps:
                what = "not a step that is due" if steps is None else f"not step {steps}"
            elif halted:
                what = "a step after the guard's halt"
            halted = halted or _action(entry.body.get("verdict")) == "halt"
        if what:
            problems.append(_problem(entry, what))
    return problems


def _wrong_ending(entry: Entry, steps: int | None, kind: Kind, due: Iterator[int]) -> str:
    """What is wrong with an ending; empty where nothing is."""
    if entry.body.get("steps") != steps:
        return f"the ending does not count the {steps} steps before it"
    if kind == "measurement" and entry.type == "run.finished" and next(due, None) is not None:
        return "the run finished, and a measurement that was due is not there"
    return ""


def replay(entries: Sequence[Entry]) -> list[Problem]:
    """Recompute every controller state, its kl_coef, and every verdict from readings, signals and config as recorded.

    A run of measurements has verdicts alone.

    After a mismatch the recomputation goes on from the recorded state, so that each mismatch is
    reported where it is. Sentences, the reasons of a verdict and a controller's note, are not
    compared: their wording may change between versions.
    """
    if not entries:
        return []
    if kind_of(entries) == "measurement":
        return _replay_measurements(entries)
    settings = _settings_of(entries[0])
    if settings is None:
        return [_problem(entries[0], "no usable configuration of controller, guard and optimizer")]
    problems = _check_self_test(entries[0])
    state, applied = control.init(settings.rl), True
    for entry in entries:
        if entry.type == "update":
            state, found = _replay_update(entry, state, settings, applied=applied)
            problems += found
            applied = _action(entry.body.get("verdict")) == "accept"
    return problems


class _Settings(NamedTuple):
    """What a run's configuration says of its decisions."""

    rl: ControlConfig
    limits: GuardConfig
    momentum: float
    refresh_every: int | None
    refresh_share: float


def _settings_of(started: Entry) -> _Settings | None:
    try:
        config = started.body["config"]
        algorithm, rollout = config["algorithm"], config["rollout"]
        every = config["model"].get("refresh_every")
        momentum = carried_momentum(
            float(config["optimizer"]["beta1"]),
            int(algorithm["num_epochs"]),
            int(algorithm["num_minibatches"]),
            int(rollout["num_prompts"]) * int(rollout["group_size"]),
        )
        return _Settings(
            ControlConfig.model_validate(config["rl"]),
            GuardConfig.model_validate(config["guard"]),
            momentum,
            None if every is None else int(every),
            float(config["model"].get("refresh_share", 1.0)),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _replay_measurements(entries: Sequence[Entry]) -> list[Problem]:
    try:
        limits = GuardConfig.model_validate(entries[0].body["config"]["guard"])
    except (KeyError, TypeError, ValueError):
        return [_problem(entries[0], "no usable configuration of the guard")]
    measured = [entry for entry in entries if entry.type == "measurement"]
    return [_problem(e, what) for e in measured if (what := _wrong_measurement(e, limits))]


def _wrong_measurement(entry: Entry, limits: GuardConfig) -> str:
    try:
        measured = MeasurementEntry.from_json(entry.body)
        if measured.kl.name != "kl_policy_ref_per_response":
            return f"kl is {measured.kl.name}, where kl_policy_ref_per_response belongs"
        verdict = judge_policy(limits, measured.kl)
    except KleashError as error:
        return str(error)
    if measured.verdict.action != verdict.action:
        return f"the verdict is {measured.verdict.action}; the guard gives {verdict.action}"
    return ""


def _check_self_test(started: Entry) -> list[Problem]:
    """A run is only started with a self-test that passed, one that was skipped, or, in older records, none."""
    said = started.body.get("self_test", SKIPPED)
    if said == SKIPPED:
        return []
    try:
        fine = bool(said["checks"]) and all(
            check["passed"] is True and (check["limit"] is None or check["value"] <= check["limit"])
            for check in said["checks"]
        )
    except (KeyError, TypeError):
        fine = False
    return [] if fine else [_problem(started, "self_test is not a self-test that passed")]


def _replay_update(
    entry: Entry, state: control.State, settings: _Settings, *, applied: bool
) -> tuple[control.State, list[Problem]]:
    try:
        update = UpdateEntry.from_json(entry.body)
        verdict = judge(settings.limits, update.kl, update.facts, update.kl_origin)
        after = control.update(state, update.kl_control or update.kl, update.signals)
    except KleashError as error:
        return state, [_problem(entry, str(error))]
    found = _wrong_readings(update, settings.rl.kl_unit)
    found += _wrong_signals(update, settings, applied=applied)
    found += _wrong_origin(update, settings.refresh_every)
    if update.kl_coef != after.kl_coef:
        found.append(f"kl_coef is {update.kl_coef!r}; the controller gives {after.kl_coef!r}")
    if update.verdict.action != verdict.action:
        found.append(f"the verdict is {update.verdict.action}; the guard gives {verdict.action}")
    try:
        recorded = control.from_json(update.control, settings.rl)
    except InputError:
        found.append("the controller's state is not a state at all")
        recorded = after
    if _without_note(update.control) != _without_note(after.to_json()):
        found.append("the controller's state is not the one its reading leads to")
        after = recorded
    return after, [_problem(entry, what) for what in found]


def _without_note(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "note"}


def _wrong_readings(update: UpdateEntry, unit: Unit) -> list[str]:
    """Readings other than the ones that the guard and a controller with a target of that unit are shown."""
    found: list[str] = []
    if update.kl.name != "kl_policy_ref_per_response":
        found.append(f"kl is {update.kl.name}, where kl_policy_ref_per_response belongs")
    seen = update.kl_control
    if unit == "response":
        if seen is not None:
            found.append("kl_control is another reading, though the target is per response")
    elif seen is None or seen.name != "kl_policy_ref_per_token":
        found.append("kl_control is not kl_policy_ref_per_token, though the target is per token")
    elif _taken_from(seen) != _taken_from(update.kl):
        found.append("kl_control and kl are not readings of one rollout")
    return found


def _wrong_origin(update: UpdateEntry, refresh_every: int | None) -> list[str]:
    """A drift from the first reference that is missing, or there where the reference never changed."""
    origin = update.kl_origin
    if refresh_every is None:
        return [] if origin is None else ["kl_origin is there, though the reference stays"]
    if origin is None or origin.name != "kl_policy_origin_per_response":
        return ["kl_origin is not kl_policy_origin_per_response, though the reference changes"]
    if (origin.n, origin.clusters) != (update.kl.n, update.kl.clusters):
        return ["kl_origin and kl are not readings of one rollout"]
    return []


def _wrong_signals(update: UpdateEntry, settings: _Settings, *, applied: bool) -> list[str]:
    """Signals that the readings, the configuration or the step before contradict."""
    signals, n = update.signals, (update.kl_control or update.kl).n
    # A power's last bit is the platform's own.
    momentum = settings.momentum
    is_momentum = math.isclose(signals.momentum, momentum, rel_tol=1e-12)
    refreshed = refreshed_share(settings.refresh_every, settings.refresh_share, update.step - 1)
    wrong = {
        f"signals.num_responses is {signals.num_responses}, where the reading is of {n}": (
            signals.num_responses != n
        ),
        f"signals.applied is not whether the update before was accepted, {applied}": (
            signals.applied != applied
        ),
        f"signals.momentum is {signals.momentum!r}; the configuration gives {momentum!r}": (
            not is_momentum
        ),
        f"signals.age is {signals.age}, where 0 belongs": signals.age != 0,
        f"signals.refreshed is {signals.refreshed!r}; the configuration gives {refreshed!r}": (
            signals.refreshed != refreshed
        ),
    }
    return [what for what, is_so in wrong.items() if is_so]


def _taken_from(reading: KLReading) -> tuple[Any, ...]:
    """What two readings of one rollout have in common, whatever their unit."""
    return reading.n, reading.clusters, reading.level, reading.estimator, reading.reference


def _chain_of(ledger: Path, run: Path | None) -> Chain:
    """The ledger as read, if its files are this run's own and not somewhere else."""
    for name in (LEDGER_FILE, HEAD_FILE):
        if what := refusal(run or ledger, ledger / name):
            where = name if run is None else f"{ledger.name}/{name}"
            return Chain(entries=(), problems=(Problem(where=where, what=what),))
    return verify_chain(ledger)


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The ledger's directory, and the run's where the path is a run's."""
    if (path / "ledger" / LEDGER_FILE).is_file():
        return path / "ledger", path
    if (path / LEDGER_FILE).is_file():
        return path, None
    if path.is_file() and path.name == LEDGER_FILE:
        return path.parent, None
    raise InputError(
        "nothing to verify here",
        expected="a run directory, or a ledger",
        got=ascii(str(path)),
        do="give the directory that holds ledger/ledger.jsonl",
    )


def _check_pin(chain: Chain, expected_head: str) -> list[Problem]:
    if any(entry.leaf == expected_head for entry in chain.entries):
        return []
    return [
        Problem(where=LEDGER_FILE, what="the expected head is not in the chain: it was rewritten")
    ]


def _check_files_of(run: Path, entries: Sequence[Entry], status: Status) -> list[Problem]:
    record = UpdateEntry if kind_of(entries) == "update" else MeasurementEntry
    steps: Any = [record.from_json(e.body) for e in entries if e.type in ("update", "measurement")]
    problems = check_config(run, entries[0].body)
    problems += check_metrics(run, steps, may_lack_last=status != "finished")
    if status == "unfinished":
        return problems
    files = entries[-1].body.get("files")
    if not isinstance(files, Mapping):
        return [*problems, _problem(entries[-1], "the ending does not say which files it leaves")]
    return problems + check_files(run, files)


def _action(verdict: Any) -> Any:
    return verdict.get("action") if isinstance(verdict, Mapping) else None


def _problem(entry: Entry, what: str) -> Problem:
    return Problem(where=f"{LEDGER_FILE} line {entry.seq + 1}", what=what)
