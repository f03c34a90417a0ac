"""A training run as a directory: everything written around the loop, and an ending for every way it can end."""

import hashlib
import json
import platform
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration
from safetensors import SafetensorError

from kleash import __version__
from kleash.errors import ConfigError, InputError, KleashError, LimitError, ResourceError
from kleash.ledger import Ledger, digest_run, encode, read, steps_made
from kleash.models.hub import save_language_model, vocabulary_digest
from kleash.models.loading import count_parameters
from kleash.models.policy import LanguageModel, weights_digest
from kleash.records import KLReading, StepRecord
from kleash.rewards.scorers import load_scorer
from kleash.rollout.sampler import encode_prompts
from kleash.train.algorithms import ALGORITHMS
from kleash.train.card import model_card
from kleash.train.checks import SelfTest
from kleash.train.config import RunConfig
from kleash.train.data import check_enough, load_prompts
from kleash.train.learner import Learner, build_learner, resolve_device
from kleash.train.loop import final_drift, metrics_line, run_loop
from kleash.train.natural import check_size
from kleash.train.ptx import load_pretraining
from kleash.train.self_test import self_test
from kleash.train.setup import Setup, seeded

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
    check_vacant(run)
    setup = prepare(config)
    tested = None if skip_self_test else check_setup(setup)
    started = {
        "config": config.model_dump(mode="json"),
        "versions": versions(LIBRARIES),
        "digests": digests(setup.learner, setup.prompts),
        "self_test": "skipped" if tested is None else tested.to_json(),
    }
    trackers = Trackers(config.train.trackers, resolve_device(config.train.device))
    with RunDirectory(run, started, _conclusion(setup), trackers) as directory:
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
    natural = config.algorithm.update == "natural"
    if natural:
        check_size(config.model.policy, count_parameters(config.model.policy))
    learner = build_learner(config.model, config.optimizer, device, with_values=with_values)
    if natural:  # what could not be told by the files
        check_size(config.model.policy, sum(p.numel() for p in learner.trained))
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
    return Setup(
        config=config,
        learner=learner,
        prompts=prompts,
        reward=reward,
        monitors=monitors,
        pretraining=load_pretraining(
            config.ptx, learner.policy, seeded(config.train.seed, "pretraining")
        ),
    )


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


def _conclusion(setup: Setup) -> "Conclude":
    def conclude(ending: Ending) -> Conclusion:
        drift = final_drift(setup) if ending.measured else None
        reference = setup.learner.origin.name
        card = model_card(setup.config, ending.last, drift, reference, ending.status)
        return Conclusion(setup.learner.policy, card, drift)

    return conclude


def check_vacant(run: Path) -> None:
    """That nothing is where a run is to be.

    Raises:
        InputError: something is.
    """
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


class Trackers(NamedTuple):
    """Names that accelerate knows, and the device that a run is on."""

    names: tuple[str, ...]
    device: str


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


Conclude = Callable[[Ending], Conclusion]


class RunDirectory:
    """The open files of a run. Leaving it, however, writes `final/` and the ledger's ending.

    Args:
        run: where; it must not exist, or be empty.
        started: what config.json and the ledger's first entry say: `config`, `versions`, `digests`, `self_test`.
        conclude: asked at the end for what is saved.
        trackers: what else the figures go to.
    """

    def __init__(
        self, run: Path, started: Mapping[str, Any], conclude: Conclude, trackers: Trackers
    ) -> None:
        self.run, self.conclude = run, conclude
        self.last: StepRecord | None = None
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
        self.tracker = _tracker(run, trackers)

    def __enter__(self) -> "RunDirectory":
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
        steps = steps_made(read(self.run / "ledger"))
        status, reason = _ending(error)
        # Whoever interrupts wants an end, and what failed may fail again.
        measured = error is None or isinstance(error, LimitError)
        conclusion = self.conclude(Ending(status, self.last, measured))
        drift, failure = conclusion.drift, self._save(conclusion)
        if failure is not None:
            status, reason = "run.failed", failure.what
        body: dict[str, Any] = {"steps": steps, "files": digest_run(self.run)}
        body["kl"] = None if drift is None else drift.to_json()
        self.ledger.append(status, body if reason is None else {**body, "reason": reason})
        if failure is not None:
            raise failure

    def _save(self, conclusion: Conclusion) -> ResourceError | None:
        """Writes `final/`; what went wrong, where it can't be written: the record needs an ending all the same."""
        try:
            save_language_model(conclusion.policy, self.run / "final", conclusion.card)
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


def _tracker(run: Path, trackers: Trackers) -> Accelerator | None:
    """accelerate's trackers, writing under the run directory; None when none is asked for."""
    names = trackers.names
    if not names:
        return None
    try:
        accelerator = Accelerator(
            log_with=list(names),
            project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run)),
            cpu=trackers.device == "cpu",
        )
        accelerator.init_trackers("tensorboard" if names == ("tensorboard",) else run.name)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            "a tracker can't be started",
            expected="names of trackers that are installed, such as tensorboard",
            got=f"{', '.join(names)}: {error}",
            do="install it, or set train.trackers = []",
        ) from error
    return accelerator


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Of kleash, Python and some libraries."""
    known = {name: version(name) for name in libraries}
    return {"kleash": __version__, "python": platform.python_version(), **known}


def digests(learner: Learner, prompts: list[str]) -> dict[str, str]:
    """Which weights, which tokenizer and which prompts a run started from."""
    return {
        "policy": weights_digest(learner.policy.model),
        "reference": weights_digest(learner.reference.model),
        "tokenizer": vocabulary_digest(learner.policy.tokenizer),
        "prompts": sha256_of(prompts),
    }


def sha256_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(encode(value)).hexdigest()


def _disk_failed(run: Path, error: Exception) -> ResourceError:
    return ResourceError(
        f"cannot write to {run}",
        expected="a writable directory with room",
        got=getattr(error, "strerror", None) or str(error),
        do="free some space, or choose another --run",
    )
