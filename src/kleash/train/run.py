"""A training run as a directory: everything written around the loop, and an ending for every way it can end."""

import hashlib
import json
import platform
from collections.abc import Generator
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration
from safetensors import SafetensorError

from kleash import __version__
from kleash.errors import ConfigError, InputError, KleashError, LimitError, ResourceError
from kleash.ledger import Ledger, digest_run, encode, read
from kleash.models.hub import save_language_model, vocabulary_digest
from kleash.models.policy import weights_digest
from kleash.records import StepRecord
from kleash.rewards.scorers import load_scorer
from kleash.rollout.sampler import encode_prompts
from kleash.train.algorithms import ALGORITHMS
from kleash.train.card import model_card
from kleash.train.checks import SelfTest
from kleash.train.config import RunConfig
from kleash.train.data import check_enough, load_prompts
from kleash.train.learner import build_learner, resolve_device
from kleash.train.loop import Setup, final_drift, metrics_line, run_loop, seeded
from kleash.train.self_test import self_test

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy")


def train(config: RunConfig, run: Path, *, skip_self_test: bool = False) -> Generator[StepRecord]:
    """Trains, and yields each step's record once it is on disk.

    Nothing is written before configuration, models, prompts and reward are loaded and checked, and the self-test has
    passed. After that every way out leaves a run that verifies: the end of the steps, a halt by the guard, an error,
    Ctrl-C, closing the iterator. The policy as it then is stands in `final/`.

    Args:
        config: the whole run.
        run: the run directory; it must not exist, or be empty.
        skip_self_test: train without it, which the ledger then says.

    Raises:
        InputError, ConfigError: something that was asked for can't be had, or the self-test failed.
        RewardError: the reward failed; LimitError: the guard halted the run; ResourceError: the disk failed.
    """
    _check_vacant(run)
    setup = prepare(config)
    tested = None if skip_self_test else check_setup(setup)
    with _RunDirectory(run, setup, tested) as directory:
        for record in run_loop(setup, directory.ledger):
            directory.write(record)
            yield record


def prepare(config: RunConfig) -> Setup:
    """Loads and checks all that the loop needs.

    Raises:
        InputError, ConfigError: something that was asked for can't be had.
    """
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    _check_trackers(config.train.trackers)
    device = resolve_device(config.train.device)
    prompts = load_prompts(config.data.prompts)
    check_enough(prompts, config.rollout.num_prompts)
    torch.manual_seed(seeded(config.train.seed, "initialisation").initial_seed())
    with_values = ALGORITHMS[config.algorithm.name].value_loss is not None
    learner = build_learner(config.model, config.optimizer, device, with_values=with_values)
    encode_prompts(learner.policy, prompts, config.rollout.max_new_tokens)
    reward, *monitors = (
        load_scorer(
            spec,
            label=config.reward.label if spec == config.reward.model else None,
            batch_size=config.reward.batch_size,
            device=device,
        )
        for spec in (config.reward.model, *config.reward.monitor)
    )
    return Setup(config=config, learner=learner, prompts=prompts, reward=reward, monitors=monitors)


def check_setup(setup: Setup) -> SelfTest:
    """The self-test of a run's own models, prompts and penalty.

    Raises:
        ConfigError: something is not as it must be.
    """
    generator = seeded(setup.config.train.seed, "self-test")
    algorithm = ALGORITHMS[setup.config.algorithm.name]
    tested = self_test(setup.learner, setup.prompts, setup.config, algorithm, generator)
    tested.raise_if_failed()
    return tested


def _check_trackers(names: tuple[str, ...]) -> None:
    """That accelerate knows each and its package is there: an absent one would be left out without a word."""
    ready = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in ready:
            known = name in LOGGER_TYPE_TO_CLASS
            raise ConfigError(
                f"there is no tracker {name!r} here",
                expected=", ".join(sorted(ready)) or "none: no tracker's package is installed",
                got=f"{name}, which is not installed" if known else name,
                do="install its package, or set train.trackers = []",
            )


def _check_vacant(run: Path) -> None:
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(
            f"{run} is not empty",
            expected="a directory that doesn't exist yet, or an empty one",
            got="files in it, which were left as they are",
            do="choose another --run",
        )


@dataclass(slots=True)
class _Files:
    metrics: BinaryIO
    samples: BinaryIO
    drift: BinaryIO
    timings: BinaryIO


class _RunDirectory:
    """The open files of a run. Leaving it, however, writes `final/` and the ledger's ending."""

    def __init__(self, run: Path, setup: Setup, tested: SelfTest | None) -> None:
        self.run, self.setup = run, setup
        self.last: StepRecord | None = None
        started = {
            "config": setup.config.model_dump(mode="json"),
            "versions": {"kleash": __version__, **_versions()},
            "digests": _digests(setup),
            "self_test": "skipped" if tested is None else tested.to_json(),
        }
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / "config.json").write_text(json.dumps(started, indent=2) + "\n", encoding="utf-8")
            self.ledger = Ledger.create(run / "ledger")
            self.files = _Files(
                *((run / f"{file.name}.jsonl").open("wb") for file in fields(_Files))
            )
        except OSError as error:
            raise _disk_failed(run, error) from error
        self.ledger.append("run.started", {**started, "kleash": __version__})
        self.tracker = _tracker(run, setup.config)

    def __enter__(self) -> "_RunDirectory":
        return self

    def write(self, record: StepRecord) -> None:
        """Writes a step's lines. Each is on disk, as far as a flush goes, before the step is yielded."""
        try:
            _write(self.files.metrics, [metrics_line(record.metrics)])
            _write(self.files.samples, [encode(line) + b"\n" for line in record.samples])
            if record.breakdown is not None:
                _write(self.files.drift, [encode(record.breakdown) + b"\n"])
            _write(self.files.timings, [encode({"step": record.step, **record.seconds}) + b"\n"])
        except OSError as error:
            raise _disk_failed(self.run, error) from error
        self.last = record
        if self.tracker is not None:
            known = {k: v for k, v in record.metrics.items() if v is not None and k != "step"}
            self.tracker.log({**known, **_seconds(record)}, step=record.step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        for field in fields(_Files):
            getattr(self.files, field.name).close()
        if self.tracker is not None:
            self.tracker.end_training()
        try:
            # The ledger closed itself when the disk failed: there is nothing more to be written.
            if kind is not ResourceError:
                self._end(error)
        finally:
            self.ledger.close()

    def _end(self, error: BaseException | None) -> None:
        # Counted from the record: a step may have been entered there and not yielded.
        setup, steps = self.setup, sum(e.type == "update" for e in read(self.run / "ledger"))
        status, reason = _ending(error)
        # Whoever interrupts wants an end, and what failed may fail again.
        drift = final_drift(setup) if error is None or isinstance(error, LimitError) else None
        card = model_card(setup.config, self.last, drift, setup.learner.reference.name, status)
        failure = self._save(card)
        if failure is not None:
            status, reason = "run.failed", failure.what
        body: dict[str, Any] = {"steps": steps, "files": digest_run(self.run)}
        body["kl"] = None if drift is None else drift.to_json()
        self.ledger.append(status, body if reason is None else {**body, "reason": reason})
        if failure is not None:
            raise failure

    def _save(self, card: str) -> ResourceError | None:
        """Writes `final/`; what went wrong, where it can't be written: the record needs an ending all the same."""
        try:
            save_language_model(self.setup.learner.policy, self.run / "final", card)
        except (OSError, SafetensorError) as error:
            failure = _disk_failed(self.run / "final", error)
            failure.__cause__ = error
            return failure
        return None


def _ending(error: BaseException | None) -> tuple[str, str | None]:
    """The ledger's word for how a run ended, and why."""
    if error is None:
        return "run.finished", None
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return "run.interrupted", "stopped by the user"
    reason = error.what if isinstance(error, KleashError) else f"{type(error).__name__}: {error}"
    return "run.failed", reason[:2000]


def _write(file: BinaryIO, lines: list[bytes]) -> None:
    file.writelines(lines)
    file.flush()


def _seconds(record: StepRecord) -> dict[str, float]:
    return {f"seconds/{name}": value for name, value in record.seconds.items()}


def _tracker(run: Path, config: RunConfig) -> Accelerator | None:
    """accelerate's trackers, writing under the run directory; None when none is asked for."""
    if not config.train.trackers:
        return None
    try:
        accelerator = Accelerator(
            log_with=list(config.train.trackers),
            project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run)),
            cpu=resolve_device(config.train.device) == "cpu",
        )
        accelerator.init_trackers(
            "tensorboard" if config.train.trackers == ("tensorboard",) else run.name
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(
            "a tracker can't be started",
            expected="names of trackers that are installed, such as tensorboard",
            got=f"{', '.join(config.train.trackers)}: {error}",
            do="install it, or set train.trackers = []",
        ) from error
    return accelerator


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _digests(setup: Setup) -> dict[str, str]:
    learner = setup.learner
    return {
        "policy": weights_digest(learner.policy.model),
        "reference": weights_digest(learner.reference.model),
        "tokenizer": vocabulary_digest(learner.policy.tokenizer),
        "prompts": _sha256_of(setup.prompts),
    }


def _sha256_of(prompts: list[str]) -> str:
    return hashlib.sha256(encode(prompts)).hexdigest()


def _disk_failed(run: Path, error: Exception) -> ResourceError:
    return ResourceError(
        f"cannot write to {run}",
        expected="a writable directory with room",
        got=getattr(error, "strerror", None) or str(error),
        do="free some space, or choose another --run",
    )
