"""Verification of a run: its ledger's bytes, what they say, and the files that they vouch for."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleash.errors import InputError
from kleash.ledger import (
    GENESIS_FILE,
    HEAD_FILE,
    LEDGER_FILE,
    OVERRIDE,
    Chain,
    Entry,
    MeasurementEntry,
    OverrideEntry,
    Problem,
    PublicKey,
    UpdateEntry,
    check_checkpoints,
    check_config,
    check_files,
    check_metrics,
    has_ledger,
    kind_of,
    refusal,
    steps_made,
    verify_chain,
)
from kleash.replay.decisions import SKIPPED, replay, settings_of
from kleash.replay.governed import Governed, governed
from kleash.replay.overrides import Plan, check_overrides
from kleash.replay.sequence import ENDINGS, Status, check_sequence, problem_at


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
    keys: tuple[PublicKey, ...] = ()
    """By which the ledger says it is signed, and is; none in a ledger of version 1."""
    trusted: bool = False
    """Whether one of these was asked for: else they are the ledger's own word for whose it is."""
    governed: Governed | None = None
    """What the guard did; None where a problem was found, or another trainer made the updates."""

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
            "keys": [key.vkey for key in self.keys],
            "key_trusted": self.trusted,
            "checks": list(self.checks),
            "problems": [problem.to_json() for problem in self.problems],
            "notes": list(self.notes),
            "guard": None if self.governed is None else self.governed.to_json(),
        }


def verify_run(
    path: Path,
    expected_head: str | None = None,
    *,
    keys: Iterable[PublicKey] | None = None,
    since: bytes | None = None,
    override_keys: Iterable[PublicKey] | None = None,
) -> Verification:
    """Check a run directory, or a ledger alone (its directory or a file of it).

    Args:
        path: what to verify.
        expected_head: a head hash noted earlier. It must be in the chain, so that nothing up to it
            was changed since.
        keys: those whose word is taken: one of them must sign the ledger.
        since: a signed checkpoint kept earlier. The ledger must begin with what it was of.
        override_keys: those whose overrides are taken; None: anybody's, and the notes say whose.

    Raises:
        InputError: there is no ledger at `path`, or `expected_head` is no hash.
    """
    if expected_head is not None and not re.fullmatch("[0-9a-f]{64}", expected_head):
        raise InputError("the expected head is not a hash", expected="64 hexadecimal digits")
    ledger, run = _locate(path)
    keys = None if keys is None else tuple(keys)
    chain = _chain_of(ledger, run, keys, since)
    checks, problems, notes = ["chain", "head"], list(chain.problems), list(chain.notes)
    checks += ["signatures"] if chain.version > 1 else []
    checks += ["key"] if keys is not None else []
    checks += ["checkpoint"] if since is not None else []
    if expected_head is not None:
        checks.append("expected head")
        problems += _check_pin(chain, expected_head)
    overridden: list[OverrideEntry] = []
    status = ENDINGS.get(_last(chain.entries).type, "unfinished") if chain.entries else "unfinished"
    if not problems:  # what a broken chain says is nobody's word
        checks += ["sequence", "replay"]
        problems += check_sequence(chain.entries, chain.version) + replay(chain.entries)
        overridden, wrong = check_overrides(chain, override_keys)
        checks += ["overrides"] if overridden or wrong else []
        problems, notes = problems + wrong, notes + [str(each) for each in overridden]
    if not problems and run is not None:
        checks += ["config", "metrics", "checkpoints"]
        checks += ["files"] if status != "unfinished" else []
        problems += _check_files_of(run, chain.entries, status)
    notes += [] if problems else _remarks(chain.entries, status)
    return Verification(
        entries=len(chain.entries),
        head=chain.head.leaf,
        steps=steps_made(chain.entries),
        status=status,
        checks=tuple(checks),
        problems=tuple(problems),
        notes=tuple(notes),
        keys=chain.keys,
        trusted=keys is not None and not problems,
        governed=None if problems else _governed(chain.entries, overridden),
    )


def _remarks(entries: Sequence[Entry], status: Status) -> list[str]:
    """What is no problem of a sound record, and is to be known."""
    remarks = {
        "the self-test was skipped: nothing was checked before the first step": (
            entries[0].body.get("self_test") == SKIPPED
        ),
        "the run has no ending: it is still running, or it was killed": status == "unfinished",
    }
    return [text for text, is_so in remarks.items() if is_so]


def _governed(entries: Sequence[Entry], overrides: Sequence[OverrideEntry]) -> Governed | None:
    settings = settings_of(entries[0])
    if settings is None or kind_of(entries) == "measurement":
        return None
    updates = [UpdateEntry.from_json(entry.body) for entry in entries if entry.type == "update"]
    return governed(updates, Plan(settings.guard, tuple(overrides)), settings.steps)


def _last(entries: Sequence[Entry]) -> Entry:
    """The last entry, overrides apart: a run that ended is as it was left, until it is gone on with under them."""
    return next((each for each in reversed(entries) if each.type != OVERRIDE), entries[-1])


def _chain_of(
    ledger: Path, run: Path | None, keys: tuple[PublicKey, ...] | None, since: bytes | None
) -> Chain:
    """The ledger as read, if its files are this run's own and not somewhere else."""
    is_old = not os.path.lexists(ledger / GENESIS_FILE)
    for name in (LEDGER_FILE, HEAD_FILE) if is_old else (GENESIS_FILE,):
        if what := refusal(run or ledger, ledger / name):
            where = name if run is None else f"{ledger.name}/{name}"
            problem = Problem(where=where, what=what)
            return Chain(entries=(), problems=(problem,), version=1 if is_old else 2)
    return verify_chain(ledger, keys, since)


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The ledger's directory, and the run's where the path is a run's."""
    if has_ledger(path / "ledger"):
        return path / "ledger", path
    if has_ledger(path):
        return path, None
    if path.is_file() and path.name in (LEDGER_FILE, GENESIS_FILE):
        return path.parent, None
    raise InputError(
        "nothing to verify here",
        expected="a run directory, or a ledger",
        got=ascii(str(path)),
        do="give the directory that holds ledger/",
    )


def _check_pin(chain: Chain, expected_head: str) -> list[Problem]:
    if any(entry.leaf == expected_head for entry in chain.entries):
        return []
    what = "the expected head is not in the chain: it was rewritten"
    return [Problem(where=LEDGER_FILE if chain.version == 1 else "ledger", what=what)]


def _check_files_of(run: Path, entries: Sequence[Entry], status: Status) -> list[Problem]:
    record = UpdateEntry if kind_of(entries) == "update" else MeasurementEntry
    steps: Any = [record.from_json(e.body) for e in entries if e.type in ("update", "measurement")]
    problems = check_config(run, entries[0].body)
    problems += check_metrics(run, steps, may_lack_last=status != "finished")
    problems += check_checkpoints(run, entries, may_have_more=status != "finished")
    if status == "unfinished":
        return problems
    ending = _last(entries)
    files = ending.body.get("files")
    if not isinstance(files, Mapping):
        return [*problems, problem_at(ending, "the ending does not say which files it leaves")]
    return problems + check_files(run, files)
