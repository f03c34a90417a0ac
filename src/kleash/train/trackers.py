"""What else a run's figures go to: trackers that accelerate knows.

They watch a run and are no part of it: metrics.jsonl has every figure, so one that fails on the way gets no more of
them and the run goes on. One that can't be started is an error, before anything is trained.
"""

import re
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from kleash.errors import ConfigError
from kleash.train.tracker_config import TrackerOptions

PACKAGES = {"comet_ml": "comet-ml"}
"""What to install for a tracker, where the package has another name."""

MLFLOW_NAME = 250
"""Characters of a metric's name that MLflow takes."""


class Trackers(NamedTuple):
    """Names that accelerate knows, the device that a run is on, and what the run is called there."""

    names: tuple[str, ...]
    device: str
    options: TrackerOptions = TrackerOptions()


def check_trackers(names: tuple[str, ...]) -> None:
    """That accelerate knows each and its package is there: an absent one would be left out without a word.

    Raises:
        ConfigError: one is not here.
    """
    ready = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name in ready:
            continue
        if name in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(
                f"the tracker {name!r} is not installed",
                expected=f"the package {PACKAGES.get(name, name)}",
                got=f"here are: {', '.join(sorted(ready)) or 'none'}",
                do=f"pip install {PACKAGES.get(name, name)}, or take it out of train.trackers",
            )
        raise ConfigError(
            f"there is no tracker {name!r}",
            expected=f"of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}",
            got=name,
            do="correct train.trackers; [] is none",
        )


class OpenTrackers:
    """Trackers that were started.

    Args:
        trackers: of accelerate, by their names.
    """

    def __init__(self, trackers: Mapping[str, GeneralTracker]) -> None:
        self._trackers = dict(trackers)

    def log(self, values: Mapping[str, float | int | None], step: int) -> None:
        """Hands out a step's figures. What was not measured is left out: a tracker would draw it as 0.

        Args:
            values: by name; None where not measured.
            step: 1-based.
        """
        known = {name: value for name, value in values.items() if value is not None}
        for name, tracker in tuple(self._trackers.items()):
            named = mlflow_names(known) if name == "mlflow" else known
            self._call(name, partial(tracker.log, named, step=step), f"at step {step}")

    def end_training(self) -> None:
        """Ends them: what they still hold is written."""
        for name, tracker in tuple(self._trackers.items()):
            # Its own way ends the run for the process too, which would end it again, on stdout, as it exits.
            finish = import_module(name).finish if name == "trackio" else tracker.finish
            self._call(name, finish, "at the end")

    def _call(self, name: str, act: Callable[[], Any], when: str) -> None:
        try:
            with redirect_stdout(sys.stderr):  # stdout is for --json
                act()
        except (
            Exception
        ) as error:  # whatever a tracker's own library raises, the run is not its business
            del self._trackers[name]
            warnings.warn(
                f"the tracker {name} failed {when} and gets no more figures; metrics.jsonl has them all: "
                f"{type(error).__name__}: {str(error)[:200]!a}",
                RuntimeWarning,
                stacklevel=3,
            )


def mlflow_names(values: Mapping[str, float | int]) -> dict[str, float | int]:
    """The figures under names that MLflow takes: it refuses most signs, and what reads as a path with empty parts.

    Examples:
        >>> mlflow_names({"monitor/http://host:80/score": 1.0, "kl_coef": 0.1})
        {'monitor/http:__host:80_score': 1.0, 'kl_coef': 0.1}
    """
    return {_mlflow_name(name): value for name, value in values.items()}


def _mlflow_name(name: str) -> str:
    kind, slash, rest = name.partition("/")
    kept = re.sub(r"[^A-Za-z0-9_\-. :]", "_", rest)
    if slash and not kept.strip("."):
        kept = kept.replace(".", "_") or "_"
    return f"{kind}{slash}{kept}"[:MLFLOW_NAME]


def open_trackers(run: Path, trackers: Trackers) -> OpenTrackers | None:
    """The trackers, started; None when none is asked for.

    Raises:
        ConfigError: one can't be started.
    """
    if not trackers.names:
        return None
    PartialState(cpu=trackers.device == "cpu")  # accelerate's trackers ask it who they are
    started: dict[str, GeneralTracker] = {}
    for name in dict.fromkeys(trackers.names):
        try:
            with redirect_stdout(sys.stderr):
                tracker = _tracker(name, run, trackers.options)
                tracker.start()
        except Exception as error:  # each library has errors of its own
            OpenTrackers(started).end_training()
            raise ConfigError(
                f"the tracker {name!r} can't be started",
                expected="a tracker that is installed and set up, such as tensorboard",
                got=f"{type(error).__name__}: {str(error)[:300]!a}",
                do=f"set {name} up, or take it out of train.trackers",
            ) from error
        started[name] = tracker
    return OpenTrackers(started)


def _tracker(name: str, run: Path, options: TrackerOptions) -> GeneralTracker:
    """One of them, told what the run is called and, where it writes files, where to."""
    make: Any = LOGGER_TYPE_TO_CLASS[name]
    directory = run if options.directory is None else Path(options.directory)
    called = options.name or run.resolve().name
    if name == "tensorboard":
        place = "tensorboard" if options.directory is None else called
        return make(place, str(directory))
    if name == "wandb":
        directory.mkdir(parents=True, exist_ok=True)  # where it is none, wandb writes elsewhere
        return make(options.project, name=called, dir=str(directory))
    if name == "mlflow":
        return make(options.project, run_name=called)
    if name == "trackio":
        return make(options.project, name=called)
    if make.requires_logging_directory:
        return make(options.project, str(directory))
    return make(options.project)
