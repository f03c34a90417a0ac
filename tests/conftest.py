"""What every test runs under: no hub, one thread, the same seeds, and the same hypothesis examples each time."""

import os

# Before torch, tokenizers or huggingface_hub is imported: they read these once.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import random
import sys

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

SEED = 20190918


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, in whatever order it runs."""
    random.seed(SEED)
    np.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot run, saying why."""
    if item.get_closest_marker("network") and os.environ.get("KLEASH_NETWORK") != "1":
        pytest.skip("needs the internet: set KLEASH_NETWORK=1")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
