"""The files that a run's ledger vouches for: digested at its end, compared when it is verified."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kleash.errors import TamperError
from kleash.ledger.entry import MAX_LINE, Entry, encode
from kleash.ledger.found import Problem
from kleash.ledger.manifest import check_sealed
from kleash.ledger.measurement import MeasurementEntry
from kleash.ledger.paths import LEADS_OUT, leads_out, open_regular, refusal
from kleash.ledger.update import UpdateEntry
from kleash.records import KLReading

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
DRIFT_FILE = "drift.jsonl"
FINAL_DIRECTORY = "final"
CHECKPOINT_DIRECTORY = "checkpoints"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_run(run: Path) -> dict[str, str]:
    """The `files` of an ending entry: relative path to SHA-256, of the run's lasting files."""
    return {name: sha256_file(run / name) for name in _lasting_files(run)}


def check_config(run: Path, started: Mapping[str, Any]) -> list[Problem]:
    """config.json says what `run.started` says."""
    if what := refusal(run, run / CONFIG_FILE):
        return [Problem(where=CONFIG_FILE, what=what)]
    try:
        with open_regular(run / CONFIG_FILE) as file:
            data = json.load(file)
        differing = [
            key
            for key in ("config", "versions", "digests", "self_test")
            if encode(data.get(key)) != encode(started.get(key))
        ]
    except (OSError, ValueError, RecursionError, AttributeError):
        return [Problem(where=CONFIG_FILE, what="missing, or not a configuration in JSON")]
    return [
        Problem(where=CONFIG_FILE, what=f"{key} is not what the ledger recorded at the start")
        for key in differing
    ]


def check_metrics(
    run: Path, steps: Sequence[UpdateEntry] | Sequence[MeasurementEntry], *, may_lack_last: bool
) -> list[Problem]:
    """metrics.jsonl has one line an update (or measurement), each with the digest and the figures that it recorded.

    Args:
        run: the run's directory.
        steps: the ledger's updates, or its measurements, in order.
        may_lack_last: the run stopped short, so its last step may not have reached the file, or not whole.
    """
    if what := refusal(run, run / METRICS_FILE):
        return [Problem(where=METRICS_FILE, what=what)]
    problems: list[Problem] = []
    lines = 0
    try:
        with open_regular(run / METRICS_FILE) as file:
            while line := file.readline(MAX_LINE):
                if may_lack_last and not line.endswith(b"\n"):
                    break  # torn as it was written: no line
                lines += 1
                what = _compare_metrics(line, steps[lines - 1]) if lines <= len(steps) else ""
                if what:
                    problems.append(Problem(where=f"{METRICS_FILE} line {lines}", what=what))
    except OSError:
        lines = 0
    missing = len(steps) - lines
    if missing < 0 or missing > may_lack_last:
        what = f"{lines} lines, where the ledger has {len(steps)} updates or measurements"
        problems.append(Problem(where=METRICS_FILE, what=what))
    return problems


def check_checkpoints(run: Path, entries: Sequence[Entry], *, may_have_more: bool) -> list[Problem]:
    """Every checkpoint that is there is as it was recorded; older ones are removed as a run goes on.

    Args:
        run: the run's directory.
        entries: of its ledger.
        may_have_more: the run may have been killed between a checkpoint and its entry.
    """
    root = run / CHECKPOINT_DIRECTORY
    if leads_out(run, root):
        return [Problem(where=CHECKPOINT_DIRECTORY, what=LEADS_OUT)]
    if not root.is_dir():
        return []
    saved = [entry.body for entry in entries if entry.type == "checkpoint.saved"]
    digests = {checkpoint_name(body.get("step")): body.get("manifest_sha256") for body in saved}
    problems: list[Problem] = []
    for path in sorted(root.iterdir()):
        what = ""
        if path.name in digests:
            try:
                check_sealed(path, str(digests[path.name]))
            except (TamperError, OSError) as error:
                what = str(error)
        elif not may_have_more:
            what = "not in the record: it was added after the run"
        if what:
            where = ascii(f"{CHECKPOINT_DIRECTORY}/{path.name}").strip("'")
            problems.append(Problem(where=where, what=what))
    return problems


def checkpoint_name(step: Any) -> str:
    """The name of the checkpoint's directory after so many steps.

    Examples:
        >>> checkpoint_name(50)
        'step-000050'
    """
    return f"step-{step:06d}" if isinstance(step, int) else ""


def check_files(run: Path, files: Mapping[str, Any]) -> list[Problem]:
    """Every recorded file is there, unchanged and inside the run, and none was added."""
    problems = [
        Problem(where=ascii(name).strip("'"), what=what)
        for name, digest in files.items()
        if (what := _compare_file(run, name, digest))
    ]
    # Not to be searched for what was added then: it may be the whole disk.
    if leads_out(run, run / FINAL_DIRECTORY):
        return [*problems, Problem(where=FINAL_DIRECTORY, what=LEADS_OUT)]
    added = sorted(set(_lasting_files(run)) - set(files))
    problems += [
        Problem(where=ascii(name).strip("'"), what="not in the record: it was added after the run")
        for name in added
    ]
    return problems


def _lasting_files(run: Path) -> Iterator[str]:
    top = [CONFIG_FILE, METRICS_FILE, SAMPLES_FILE, DRIFT_FILE]
    yield from (name for name in top if (run / name).is_file())
    for path in sorted((run / FINAL_DIRECTORY).rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(run).as_posix()


def _compare_metrics(line: bytes, entry: UpdateEntry | MeasurementEntry) -> str:
    if hashlib.sha256(line).hexdigest() != entry.metrics_sha256:
        return f"not the line that step {entry.step} recorded"
    is_update = isinstance(entry, UpdateEntry)
    names = ("step", "kl_coef") if is_update else ("step", entry.kl.name)
    try:
        metrics = json.loads(line)
        needed = {key: metrics[key] for key in names}
        recorded = _figures(entry) if is_update else {"step": entry.step, **_interval(entry.kl)}
        shown = needed | {key: metrics[key] for key in recorded if key in metrics}
        differing = [key for key in shown if encode(shown[key]) != encode(recorded[key])]
    except (ValueError, RecursionError, KeyError, TypeError):
        return f"not an object with {' and '.join(names)}"
    if differing:
        return f"{', '.join(differing)}: not what the ledger says was used or measured"
    return ""


def _figures(update: UpdateEntry) -> dict[str, Any]:
    """The figures of an update that its line of metrics.jsonl shows too, by their names there."""
    figures: dict[str, Any] = {"step": update.step, "kl_coef": update.kl_coef}
    for reading in (update.kl, update.kl_control):
        if reading is not None:
            figures |= _interval(reading)
    signals = update.signals
    figures |= {
        "reward_std_within": signals.reward_std,
        "log_ratio_std_within": signals.log_ratio_std,
        "reward_log_ratio_correlation": signals.correlation,
        "response_length": signals.response_length,
    }
    moved = update.facts.kl_new_old
    figures["kl_new_old_per_token"] = None if moved is None else moved.value
    return figures


def _interval(reading: KLReading) -> dict[str, Any]:
    name = reading.name
    return {name: reading.value, f"{name}_low": reading.low, f"{name}_high": reading.high}


def _compare_file(run: Path, name: str, digest: Any) -> str:
    parts = PurePosixPath(name).parts
    root = os.path.realpath(run)
    try:
        path = Path(os.path.realpath(run / name))
        inside = not name.startswith("/") and ".." not in parts and path.is_relative_to(root)
        if not inside:
            return "the path leads out of the run; it was not opened"
        if not path.is_file():
            return "recorded, but not there"
        return "" if sha256_file(path) == digest else "changed since it was recorded"
    except (OSError, ValueError):
        return "recorded, but it cannot be read"
