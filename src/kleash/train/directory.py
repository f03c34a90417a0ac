"""A run's directory: everything written around the loop, and an ending for every way it can end."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from safetensors import SafetensorError
from torch import Tensor

from kleash import __version__
from kleash.errors import KleashError, LimitError, RepeatError, ResourceError, TamperError
from kleash.ledger import (
    CHECKPOINT_DIRECTORY,
    Ledger,
    Signer,
    checkpoint_name,
    digest_run,
    encode,
    read,
    steps_made,
)
from kleash.ledger.durable import (
    make_directory,
    publish_directory,
    replace_file,
    sync_directory,
    sync_tree,
)
from kleash.ledger.manifest import check_sealed
from kleash.models.hub import save_language_model
from kleash.models.policy import LanguageModel
from kleash.records import KLReading, StepRecord
from kleash.train.checkpoint import Content, Extent, Saved, keep_only, load_weights, save_checkpoint
from kleash.train.loop import metrics_line
from kleash.train.process import random_tensors
from kleash.train.progress import Progress
from kleash.train.trackers import Trackers, open_trackers

REPEATING: tuple[str, ...] = ("metrics", "samples", "drift")
"""Files that a run which goes on writes again to the last bit."""
KEPT = 2
"""Checkpoints: the newest, and one more should it turn out to be damaged."""


class Lines:
    """A file of lines that is only ever added to; what is there beyond a length is to be written again, and is kept.

    Args:
        path: of the file.
        length: of it, the bytes that stay; None: it is new.
    """

    def __init__(self, path: Path, length: int | None = None) -> None:
        self.file = path.open("wb" if length is None else "r+b", buffering=0)
        try:
            content = self.file.read() if length is not None else b""
        except BaseException:
            self.file.close()
            raise
        self.length = length or 0
        self.ahead = content[self.length :]
        self._digest = hashlib.sha256(content[: self.length])

    def write(self, lines: bytes) -> None:
        """Adds lines; they are on the disk when this returns."""
        if lines and self.ahead.startswith(lines):
            self.ahead = self.ahead[len(lines) :]
        elif lines:
            self.cut()
            if self.file.write(lines) != len(lines):
                raise OSError(0, "no space for the whole of it")
            os.fsync(self.file.fileno())
        self.length += len(lines)
        self._digest.update(lines)

    def cut(self) -> None:
        """Takes off what is there beyond what was written."""
        self.file.truncate(self.length)
        self.file.seek(self.length)
        self.ahead = b""

    @property
    def extent(self) -> Extent:
        """How long it is, and what it holds so far."""
        return Extent(self.length, self._digest.hexdigest())

    def close(self) -> None:
        """Closes it; closing it twice is no fault."""
        self.file.close()


@dataclass(slots=True)
class _Files:
    metrics: Lines
    samples: Lines
    drift: Lines
    timings: Lines

    @classmethod
    def open(cls, run: Path, lengths: Mapping[str, int] | None) -> Self:
        """New ones; or those that are there, of which so many bytes stay."""
        named = {field.name: run / f"{field.name}.jsonl" for field in fields(cls)}
        with ExitStack() as opened:
            lines: dict[str, Lines] = {}
            for name, path in named.items():
                kept = None
                if lengths is not None:
                    path.touch()
                    kept = lengths.get(name, _whole_lines(path))
                lines[name] = opened.enter_context(closing(Lines(path, kept)))
            sync_directory(run)
            opened.pop_all()
        return cls(**lines)

    def extents(self) -> dict[str, Extent]:
        """Of those that repeat bit for bit: times don't."""
        return {name: getattr(self, name).extent for name in REPEATING}


def last_timed(path: Path) -> int:
    """The last step whose times are there; 0 where none can be read."""
    if not path.exists():
        return 0
    lines = path.read_bytes()[: _whole_lines(path)].splitlines()
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (ValueError, LookupError, TypeError):
        return 0


def _whole_lines(path: Path) -> int:
    """The bytes of a file up to the end of its last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


class Ending(NamedTuple):
    """How a run ended."""

    status: str
    """In the ledger's words."""
    last: StepRecord | None
    """The last step's record; None when no step was made."""
    measured: bool
    """Whether the drift of what is saved is to be measured."""


class Conclusion(NamedTuple):
    """What a run leaves behind."""

    policy: LanguageModel
    card: str
    drift: KLReading | None
    """KL(π‖π_ref) of the weights that are saved; None where it was not measured."""
    weights: dict[str, Tensor] | None = None
    """The policy's `own_state`, where it was collected from several processes."""


Conclude = Callable[[Ending], Conclusion]


class RunDirectory:
    """The open files of a run. Leaving it, however, writes `final/` and the ledger's ending.

    Args:
        run: where.
        ledger: open.
        conclude: asked at the end for what is saved.
        trackers: what else the figures go to.
        progress: of a run that can be gone on with; None: of one that can't.
        lengths: of the run's files, what stays; None: there are none yet.
        saved: what the ledger has of checkpoints.
    """

    def __init__(
        self,
        run: Path,
        ledger: Ledger,
        conclude: Conclude,
        trackers: Trackers,
        progress: Progress | None = None,
        lengths: Mapping[str, int] | None = None,
        saved: Sequence[Saved] = (),
    ) -> None:
        self.run, self.ledger, self.conclude, self.progress = run, ledger, conclude, progress
        self.last: StepRecord | None = None
        self.recorded = {each.step: each.manifest_sha256 for each in saved}
        self.kept: list[int] = []
        """Steps of the checkpoints that this process knows to be there."""
        try:
            self.timed = 0 if lengths is None else last_timed(run / "timings.jsonl")
            self.files = _Files.open(run, lengths)
        except OSError as error:
            raise disk_failed(run, error) from error
        self.tracker = open_trackers(run, trackers)

    def __enter__(self) -> Self:
        return self

    def write(self, record: StepRecord) -> None:
        """Writes a step's lines. They are on the disk before the step is yielded."""
        files, samples = self.files, [encode(line) + b"\n" for line in record.samples]
        drift = b"" if record.breakdown is None else encode(record.breakdown) + b"\n"
        try:
            files.metrics.write(metrics_line(record.metrics))
            files.samples.write(b"".join(samples))
            files.drift.write(drift)
            if record.step > self.timed:  # a step made again was timed as it was made
                files.timings.write(encode({"step": record.step, **record.seconds}) + b"\n")
        except OSError as error:
            raise disk_failed(self.run, error) from error
        if self.progress is not None:
            self.progress.process = random_tensors()
        self.last = record
        if self.tracker is not None:
            named = {name: value for name, value in record.metrics.items() if name != "step"}
            self.tracker.log({**named, **_seconds(record)}, step=record.step)

    def checkpoint(self, content: Content | None = None) -> None:
        """Stores the run as it is between two steps, and removes what is older than the newest two.

        Args:
            content: what was collected of it from several processes; None: this one has all.

        Raises:
            ResourceError: the disk failed; the checkpoints before it are as they were.
        """
        assert self.progress is not None, "a run whose updates another trainer makes has none"
        step = self.progress.mark.step
        if step == 0 or step in self.kept:
            return
        try:
            recorded = self.recorded.get(step)
            saved = save_checkpoint(
                self.run, self.progress, self.files.extents(), recorded, content
            )
            if recorded is None:
                body = {"step": step, "manifest_sha256": saved.manifest_sha256}
                self.ledger.append("checkpoint.saved", body)
                self.recorded[step] = saved.manifest_sha256
            self.kept = [*self.kept, step]
            good = self.progress.mark.guard.good
            self.kept = [s for s in self.kept if s in self.kept[-KEPT:] or s == good]
            keep_only(self.run, self.kept)
        except (OSError, SafetensorError, TamperError) as error:
            raise disk_failed(self.run, error) from error

    def go_back(self, step: int) -> None:
        """Gives the learner what the checkpoint after so many steps has.

        Raises:
            TamperError: the checkpoint is not as it was written.
        """
        assert self.progress is not None, "a run whose updates another trainer makes has none"
        directory = self.run / CHECKPOINT_DIRECTORY / checkpoint_name(step)
        check_sealed(directory, self.recorded[step])
        load_weights(directory, self.progress.setup.learner)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if self.tracker is not None:
            self.tracker.end_training()
        try:
            # The ledger closed itself when the disk failed: there is nothing more to be written.
            if kind is not ResourceError and self._has_all(error):
                self._end(error)
        except OSError as failure:
            raise disk_failed(self.run, failure) from failure
        finally:
            for field in fields(_Files):
                getattr(self.files, field.name).close()
            self.ledger.close()

    def _has_all(self, error: BaseException | None) -> bool:
        """Not so where others have a part of the weights, and are elsewhere: what is left is as after a kill."""
        agreed = error is None or isinstance(error, LimitError)
        return agreed or self.progress is None or self.progress.setup.learner.division is None

    def _end(self, error: BaseException | None) -> None:
        if self._may_go_on(error):
            self.checkpoint()
        status, reason = _ending(error)
        # Whoever interrupts wants an end, and what failed may fail again.
        measured = error is None or isinstance(error, LimitError)
        if measured and self.progress is not None:  # what is there from here on, stays
            keep_only(self.run, self.kept)
            for name in REPEATING:
                getattr(self.files, name).cut()
        conclusion = self.conclude(Ending(status, self.last, measured))
        drift, failure = conclusion.drift, self._save(conclusion)
        if failure is not None:
            status, reason = "run.failed", failure.what
        body: dict[str, Any] = {"steps": self._steps(), "files": digest_run(self.run)}
        body["kl"] = None if drift is None else drift.to_json()
        self.ledger.append(status, body if reason is None else {**body, "reason": reason})
        if failure is not None:
            raise failure

    def _may_go_on(self, error: BaseException | None) -> bool:
        """Whether the run broke off between two steps, or was put back there, and is to be gone on with."""
        if self.progress is None or self.ledger.is_repeating:
            return False
        ended = error is None or isinstance(error, LimitError | RepeatError)
        is_written = self.last is not None and self.last.step == self.progress.mark.step
        return not ended and is_written and self.progress.setup.learner.settled

    def _steps(self) -> int:
        """The steps behind what is saved, by the record: a step may have been entered there and not yielded."""
        if self.ledger.is_repeating and self.progress is not None:
            return self.progress.mark.step
        return steps_made(read(self.run / "ledger"))

    def _save(self, conclusion: Conclusion) -> ResourceError | None:
        """Writes `final/` whole; or what went wrong, where it can't: the record needs an ending all the same."""
        temporary = self.run / ".final.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed at its end
            given = conclusion.policy, temporary, conclusion.card
            save_language_model(*given, findable=True, weights=conclusion.weights)
            sync_tree(temporary)
            publish_directory(temporary, self.run / "final")
        except (OSError, SafetensorError) as error:
            failure = disk_failed(self.run / "final", error)
            failure.__cause__ = error
            return failure
        return None


def begin(
    run: Path,
    started: Mapping[str, Any],
    signers: Sequence[Signer],
    *,
    plan: Mapping[str, Any] | None = None,
    ledger: Ledger | None = None,
) -> Ledger:
    """The ledger of a new run, with its first entry, and its plan before anything follows from it.

    Args:
        run: where; it must not exist, or hold nothing that a run made.
        started: what config.json and the first entry say: `config`, `versions`, `digests`, `self_test`.
        signers: who signs a ledger that is made here.
        plan: what limits and steers the run; None: another trainer makes its updates.
        ledger: the run's, where it was made and nothing is in it; None: there is none.

    Raises:
        ResourceError: the disk failed.
    """
    try:
        make_directory(run)
    except OSError as error:
        raise disk_failed(run, error) from error
    ledger = ledger or Ledger.create(run / "ledger", signers)  # first: it keeps others out
    try:
        replace_file(run / "config.json", (json.dumps(started, indent=2) + "\n").encode())
        ledger.append("run.started", {**started, "kleash": __version__})
        if plan is not None:
            ledger.append("plan.committed", plan)
    except OSError as error:
        ledger.close()
        raise disk_failed(run, error) from error
    except BaseException:
        ledger.close()
        raise
    return ledger


def _ending(error: BaseException | None) -> tuple[str, str | None]:
    """The ledger's word for how a run ended, and why."""
    if error is None:
        return "run.finished", None
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return "run.interrupted", "stopped by the user"
    reason = error.what if isinstance(error, KleashError) else f"{type(error).__name__}: {error}"
    return "run.failed", reason[:2000]


def _seconds(record: StepRecord) -> dict[str, float]:
    return {f"seconds/{name}": value for name, value in record.seconds.items()}


def disk_failed(run: Path, error: Exception) -> ResourceError:
    """What to say of an error of the disk."""
    return ResourceError(
        f"cannot write to {run}",
        expected="a writable directory with room",
        got=getattr(error, "strerror", None) or str(error),
        do="free some space, or choose another --run",
    )
