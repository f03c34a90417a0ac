"""Every change of a kind to a small signed ledger, one after the other, and which verifier finds it.

The ledger is one that a run of one update leaves, in two segments, with three checkpoints beside the head. The bits are
those of every file that is evidence; the lock is empty. Both verifiers get the changed ledger alone: neither the run
around it, nor a checkpoint that was kept elsewhere.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kleash import guard
from kleash.control import ControlConfig, init, update
from kleash.errors import KleashError
from kleash.guard import GuardConfig, judge
from kleash.ledger import Ledger, UpdateEntry, layout
from kleash.replay import verify_run
from tests.ledger.test_second_verifier import SECOND, accepts
from tests.ledger.written import KEY, files_of
from tests.test_replay import FACTS, KL, OPTIMISATION, SIGNALS
from tests.test_replay_signed import INTENT, measured

SEGMENT_ENTRIES = 3
NOTE_EVERY = 2
RL = {"controller": "ziegler", "kl_coef": 0.1, "kl_target": 4.0}
GUARD = {"max_kl": 20.0}

Change = Mapping[str, bytes | None]
"""What files hold instead, by their names in the ledger; None: it is not there."""


class Trial(NamedTuple):
    """One change."""

    kind: str
    what: str
    change: Change


@dataclass
class Tally:
    """Changes by kind, and how many of them each verifier found."""

    made: Counter[str] = field(default_factory=Counter)
    first: Counter[str] = field(default_factory=Counter)
    second: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)

    def add(self, trial: Trial, *, first: bool, second: bool) -> None:
        self.made[trial.kind] += 1
        self.first[trial.kind] += first
        self.second[trial.kind] += second
        if not (first and second):
            self.missed.append(f"{trial.kind}: {trial.what}")


def write_ledger(directory: Path) -> Path:
    """What a run of one update leaves: start, plan, intent, update, ending."""
    config = OPTIMISATION | {"model": {}, "rl": RL, "guard": GUARD}
    signals, limits = SIGNALS, GuardConfig.model_validate(GUARD)
    state = update(init(ControlConfig.model_validate(RL)), KL, signals)
    entry = UpdateEntry(
        step=1,
        kl=KL,
        signals=signals,
        kl_coef=state.kl_coef,
        facts=FACTS,
        verdict=judge(limits, KL, FACTS),
        control=state.to_json(),
        rollout_sha256="a" * 64,
        metrics_sha256="b" * 64,
    )
    made, _ = measured(entry, limits, guard.start(limits, 1))
    with Ledger.create(directory, [KEY]) as ledger:
        ledger.append("run.started", {"config": config})
        ledger.append("plan.committed", {"guard": GUARD, "rl": RL, "canary": None})
        ledger.append("update.intent", {name: made[name] for name in INTENT})
        ledger.append("update", made)
        ledger.append("run.finished", {"steps": 1, "files": {}, "kl": None})
    for path in files_of(directory):
        path.chmod(0o644)  # a full segment is read-only
    return directory


def contents_of(ledger: Path) -> dict[str, bytes]:
    return {path.relative_to(ledger).as_posix(): path.read_bytes() for path in files_of(ledger)}


def trials(whole: Mapping[str, bytes], every: int) -> Iterator[Trial]:
    """Each change to one file, then each to the order of the entries."""
    for name, content in whole.items():
        for bit in range(0, 8 * len(content), every):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            yield Trial("bit flipped", f"{name}, bit {bit}", {name: bytes(changed)})
        for length in range(0, len(content), every):
            kind = "file cut short"
            yield Trial(kind, f"{name} to {length} bytes", {name: content[:length]})
        for place in range(0, len(content), every):
            longer = content[:place] + b"0" + content[place:]
            yield Trial("byte put in", f"{name}, byte {place}", {name: longer})
    needed = [name for name in whole if not name.startswith(layout.NOTE_DIRECTORY)]
    yield from (Trial("file removed", name, {name: None}) for name in needed)
    lines = lines_of(whole)
    for at, line in enumerate(lines):
        rest = lines[:at] + lines[at + 1 :]
        yield Trial("entry dropped", f"{at}", segments(rest, whole))
        for to in range(len(lines) + 1):
            repeated = [*lines[:to], line, *lines[to:]]
            yield Trial("entry repeated", f"{at} at {to}", segments(repeated, whole))
        for other in range(at + 1, len(lines)):
            swapped = list(lines)
            swapped[at], swapped[other] = lines[other], line
            yield Trial("entries swapped", f"{at} and {other}", segments(swapped, whole))
    for count in range(len(lines)):
        yield Trial("entries cut off", f"to {count}", segments(lines[:count], whole))


def lines_of(whole: Mapping[str, bytes]) -> list[bytes]:
    names = sorted(name for name in whole if name.startswith(layout.SEGMENT_DIRECTORY))
    return [line for name in names for line in whole[name].splitlines(keepends=True)]


def segments(lines: list[bytes], whole: Mapping[str, bytes]) -> Change:
    """Entries in the segments that so many have."""
    names = [name for name in whole if name.startswith(layout.SEGMENT_DIRECTORY)]
    gone: dict[str, bytes | None] = dict.fromkeys(names)
    starts = range(0, max(len(lines), 1), SEGMENT_ENTRIES)
    parts = [b"".join(lines[start : start + SEGMENT_ENTRIES]) for start in starts]
    return gone | {layout.segment_name(index): part for index, part in enumerate(parts)}


def put(ledger: Path, change: Change) -> None:
    for name, content in change.items():
        if content is None:
            (ledger / name).unlink(missing_ok=True)
        else:
            (ledger / name).write_bytes(content)


def restore(ledger: Path, whole: Mapping[str, bytes], change: Change) -> None:
    put(ledger, {name: whole.get(name) for name in change})


def finds(ledger: Path) -> bool:
    """Whether `kleash verify` has something to say against a ledger."""
    try:
        return not verify_run(ledger, keys=[KEY.public]).ok
    except KleashError:
        return True


def all_changes(ledger: Path, every: int) -> Tally:
    """Makes each change, asks both, and undoes it."""
    whole, tally = contents_of(ledger), Tally()
    for trial in trials(whole, every):
        put(ledger, trial.change)
        tally.add(trial, first=finds(ledger), second=not accepts(ledger))
        restore(ledger, whole, trial.change)
    assert not finds(ledger)
    assert accepts(ledger)
    return tally


class Cut(NamedTuple):
    """A ledger that was cut back to an older signed state, held against a checkpoint kept elsewhere."""

    size: int
    held: int
    """Entries of the checkpoint in hand; 0: none is."""
    said: str
    """The first problem; empty where there is none."""


def all_cuts(ledger: Path) -> list[Cut]:
    """Cuts it back to each kept checkpoint, which takes the head's place, and holds it against each other one."""
    whole, found = contents_of(ledger), list[Cut]()
    lines = lines_of(whole)
    notes = {name: content for name, content in whole.items() if name.endswith(".note")}
    sizes = {int(Path(name).stem): content for name, content in notes.items()}
    for size, note in sizes.items():
        later = dict.fromkeys(layout.note_name(other) for other in sizes if other > size)
        change: Change = {**segments(lines[:size], whole), **later, layout.HEAD_NOTE: note}
        put(ledger, change)
        for held in (0, *sizes):
            made = verify_run(ledger, keys=[KEY.public], since=sizes.get(held))
            found.append(Cut(size, held, str(made.problems[0]) if made.problems else ""))
        restore(ledger, whole, change)
    return found


def is_right(cut: Cut) -> bool:
    """Found where a later checkpoint is in hand, by its name; else it is what a run leaves that was killed there."""
    named = f"it has {cut.size} entries, shorter than the checkpoint you hold, {cut.held}"
    return named in cut.said if cut.size < cut.held else not cut.said


def sized(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Gives both verifiers small segments, and the writer more checkpoints to keep."""
    set_attribute(layout, "SEGMENT_ENTRIES", SEGMENT_ENTRIES)
    set_attribute(layout, "NOTE_EVERY", NOTE_EVERY)
    set_attribute(SECOND, "SEGMENT", SEGMENT_ENTRIES)
    # Of one key, text and signature it says the same each time; in pure Python that takes tens of milliseconds.
    set_attribute(SECOND, "verify_signature", functools.lru_cache(4096)(SECOND.verify_signature))
