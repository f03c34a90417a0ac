"""Going on with a run: what is in its directory, and whether it is the run that is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kleash.errors import ConfigError, InputError, TamperError
from kleash.ledger import (
    OVERRIDE,
    REPEATED,
    Chain,
    Entry,
    Ledger,
    OverrideEntry,
    Signer,
    UpdateEntry,
    encode,
    first_entry,
    has_ledger,
    kind_of,
    verify_chain,
)
from kleash.records import StepRecord
from kleash.replay import Plan, check_overrides
from kleash.rewards.checks import shown
from kleash.train.checkpoint import Saved, find_usable, load_checkpoint, path_of
from kleash.train.config import RunConfig
from kleash.train.directory import REPEATING
from kleash.train.progress import Progress, governed
from kleash.train.setup import Setup

BEGUN = {"config.json", "config.json.tmp", "ledger"}
"""All that there is of a run which was killed before its first entry."""
WATCHING = ("train.trackers", "train.tracker_options.")
"""Settings of what only watches a run: with a tracker out of order it goes on under others."""
PROCESSES = "processes"
"""Where the first entry says how many make the run; it says nothing of one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """A run as it was left."""

    run: Path
    ledger: Ledger | None
    """Open and locked; None on a process of several that does not write it."""
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    """What a crash left and was mended."""
    overrides: tuple[OverrideEntry, ...] = ()
    """Of its plan."""

    @property
    def saved(self) -> list[Saved]:
        """The checkpoints that the ledger has, oldest first."""
        return [
            Saved(step=e.body["step"], manifest_sha256=e.body["manifest_sha256"])
            for e in self.entries
            if e.type == "checkpoint.saved"
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """A run that goes on."""

    progress: Progress
    lengths: dict[str, int]
    """Of its files, what stays."""
    checkpoint: Saved | None
    """None: it goes on from its beginning."""
    kept: list[int]
    """Steps of this checkpoint and of those before it that are as they were recorded."""
    notes: tuple[str, ...]


def find_earlier(run: Path, signers: Sequence[Signer]) -> Earlier | None:
    """What there is of a run; None where nothing is.

    Raises:
        InputError: something else is there, a run that has ended for good, or one that another key signs.
        TamperError: its ledger is not as it was written; ResourceError: another process writes it.
    """
    if not has_ledger(run / "ledger"):
        if run.is_dir() and {path.name for path in run.iterdir()} <= BEGUN:
            return None
        return None if not run.exists() else _refuse(f"{run} holds no run", "no ledger")
    ledger, chain = Ledger.open(run / "ledger", signers)
    try:
        _check_open_ended(run, chain.entries)
        return _earlier(run, ledger, chain)
    except BaseException:
        ledger.close()
        raise


def read_earlier(run: Path) -> Earlier:
    """What there is of a run whose ledger another process has opened, and mended.

    Raises:
        InputError: there is none: this process sees other files.
        TamperError: its ledger is not as it was written.
    """
    chain = verify_chain(run / "ledger")
    if not chain.entries:
        raise InputError(
            f"{run} holds no run here",
            expected="a directory that every process of the run sees",
            got="one that the first process sees alone",
            do="put --run on a file system that all machines share",
        )
    return _earlier(run, None, chain)


def _earlier(run: Path, ledger: Ledger | None, chain: Chain) -> Earlier:
    overrides, wrong = check_overrides(chain)
    if wrong:
        raise TamperError("the plan was overridden as it may not be", got=str(wrong[0]))
    return Earlier(
        run=run,
        ledger=ledger,
        entries=chain.entries,
        notes=chain.traces,
        overrides=tuple(overrides),
    )


def refuse_another(config: RunConfig, run: Path, processes: int = 1) -> None:
    """Refuses a configuration that is not the one a run was started with, before its ledger is opened to be written.

    And another number of processes, by which its figures would be others in their last digits.

    Raises:
        ConfigError: it isn't.
    """
    started = first_entry(run / "ledger")
    if started is None or kind_of([started]) != "update":
        return  # which opening it says more of
    try:
        check_same(config, started.body)
        _check_processes(processes, started.body)
    except ConfigError:
        if not verify_chain(run / "ledger").problems:
            raise


def check_same(config: RunConfig, started: Mapping[str, Any]) -> None:
    """That a configuration is the one a run was started with, but for who watches it.

    Raises:
        ConfigError: it isn't; the settings that differ are named.
    """
    recorded, asked = _as_now(started.get("config")), config.model_dump(mode="json")
    differing = sorted(
        (name, value)
        for name, value in {*_flat(recorded)} ^ {*_flat(asked)}
        if not name.startswith(WATCHING)
    )
    if differing:
        names = list(dict.fromkeys(name for name, _ in differing))
        raise ConfigError(
            "the configuration is not the one that the run was started with",
            expected="that of config.json in the run's directory: a run goes on as it was begun",
            got=f"another {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            do="leave these as they were, or begin another run; kleash ledger override changes a limit of [guard]",
        )


def _check_processes(processes: int, started: Mapping[str, Any]) -> None:
    recorded = started.get(PROCESSES, 1)
    if processes != recorded:
        raise ConfigError(
            "the run was begun with another number of processes",
            expected=f"{shown(recorded)}: more or fewer make sums in another order, so that what is made again would "
            "differ from the record in its last digits",
            got=str(processes),
            do="launch as many, or begin another run",
        )


def _as_now(recorded: Any) -> Any:
    """A recorded configuration with the defaults of settings that it had not yet."""
    try:
        return RunConfig.model_validate_json(encode(recorded), strict=True).model_dump(mode="json")
    except ValidationError:
        return recorded


def check_digests(found: Mapping[str, str], started: Mapping[str, Any]) -> None:
    """That models, tokenizer and prompts are those that a run was started with.

    Raises:
        InputError: they aren't.
    """
    recorded = started.get("digests")
    differing = [
        name
        for name, digest in found.items()
        if not isinstance(recorded, Mapping) or recorded.get(name) != digest
    ]
    if differing:
        raise InputError(
            f"{' and '.join(differing)} changed since the run was started",
            expected="the files that it was started with, which the ledger has the digests of",
            do="put them back, or begin another run",
        )


def restore(earlier: Earlier, setup: Setup) -> Restored:
    """A run as its newest usable checkpoint has it, or as it began.

    Raises:
        TamperError: the checkpoint is as it was recorded, and none of such a run.
    """
    usable, steps, wrong = find_usable(earlier.run, earlier.saved)
    plan = Plan(setup.config.guard, earlier.overrides)
    if usable is None:
        progress, lengths = Progress(setup), dict.fromkeys(REPEATING, 0)
    else:  # its guard is one of the limits of then
        then = governed(setup, plan.at(usable.step))
        progress, lengths = load_checkpoint(path_of(earlier.run, usable.step), then)
    progress.plan = plan
    return Restored(
        progress=progress,
        lengths=lengths,
        checkpoint=usable,
        kept=steps,
        notes=(*earlier.notes, *wrong),
    )


def to_repeat(earlier: Earlier, step: int) -> list[Entry]:
    """The updates that the ledger has and that are to be made again, after so many steps, each after its intent."""
    return [e for e in earlier.entries if e.type in REPEATED and e.body["step"] > step]


def last_record(earlier: Earlier, step: int) -> StepRecord | None:
    """What the ledger has of a step that a run goes on after; None before the first."""
    bodies = [e.body for e in earlier.entries if e.type == "update" and e.body["step"] == step]
    if not bodies:
        return None
    update = UpdateEntry.from_json(bodies[0])
    return StepRecord(step=step, kl=update.kl, kl_coef=update.kl_coef, verdict=update.verdict)


def _check_open_ended(run: Path, entries: tuple[Entry, ...]) -> None:
    if not entries:
        return
    if kind_of(entries) == "measurement":
        _refuse(
            f"{run} can't be gone on with", "a run whose updates TRL made, which has no checkpoints"
        )
    last = next(e.type for e in reversed(entries) if e.type != OVERRIDE)
    if last == "run.finished":
        _refuse(f"{run} has finished", f"{len(entries)} entries, the last of which says so")
    halted = [e for e in entries if e.type == "update" and e.body["verdict"]["action"] == "halt"]
    # Killed before its ending it has that to write; and what it halted at may have been overridden since.
    overridden = halted and any(e.type == OVERRIDE and e.seq > halted[-1].seq for e in entries)
    if halted and last == "run.failed" and not overridden:
        why = halted[-1].body["verdict"]["reasons"][0]
        got = f"step {halted[-1].body['step']}: {why}"
        _refuse(
            f"the guard halted {run}",
            got,
            "kleash ledger override its limit, or choose another --run",
        )


def _refuse(what: str, got: str, do: str = "choose another --run") -> None:
    raise InputError(
        what,
        expected="a run that was interrupted, killed or failed, or nothing at all",
        got=got,
        do=do,
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, bytes]]:
    """The settings of a configuration by their dotted names, with their values as bytes."""
    if isinstance(value, Mapping):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, encode(value)
