"""What TRL and the libraries below it would say, send or draw, kept to themselves."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import datasets
from huggingface_hub import constants

from kleash.models.loading import quietly

_TALKERS = ("trl", "accelerate", "datasets")


@contextmanager
def silently() -> Generator[None]:
    """No bar, no report and no telemetry while TRL is at work: what matters is raised as an error."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    telemetry, bars = constants.HF_HUB_DISABLE_TELEMETRY, datasets.are_progress_bars_disabled()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        if not bars:
            datasets.enable_progress_bars()
