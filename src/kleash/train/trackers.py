"""What else a run's figures go to: trackers that accelerate knows."""

from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration

from kleash.errors import ConfigError


class Trackers(NamedTuple):
    """Names that accelerate knows, and the device that a run is on."""

    names: tuple[str, ...]
    device: str


def check_trackers(names: tuple[str, ...]) -> None:
    """That accelerate knows each and its package is there: an absent one would be left out without a word.

    Raises:
        ConfigError: one is not here.
    """
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


def open_trackers(run: Path, trackers: Trackers) -> Accelerator | None:
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
