"""What every test runs under: no hub, one thread, the same seeds, and the same hypothesis examples each time."""

import os

# Before torch, tokenizers or huggingface_hub is imported: they read these once.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:  # without torch until a test asks for it
    from kleash.lab.mdp import MDP

# How long a machine that others use takes to draw an example is no fault of the code.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

SEED = 20190918


@pytest.fixture(scope="session", autouse=True)
def kleash_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Whatever a test signs, it signs with a key of these tests, and not with the user's own."""
    home = tmp_path_factory.mktemp("kleash-home")
    before, os.environ["KLEASH_HOME"] = os.environ.get("KLEASH_HOME"), str(home)
    yield home
    os.environ.pop("KLEASH_HOME")
    if before is not None:
        os.environ["KLEASH_HOME"] = before


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, in whatever order it runs."""
    random.seed(SEED)
    np.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)


@pytest.fixture(params=[None, (4, 5), (5, 4), (7, 3), (10, 2)], ids=str)
def mdp(request: pytest.FixtureRequest) -> "MDP":
    """The golden problem, and problems drawn at random: vocabulary and length."""
    import torch

    from kleash.lab.mdp import MDP, golden

    if request.param is None:
        return golden()
    vocab, length = request.param
    shell, draw = MDP(vocab, length, torch.empty(0), torch.empty(0)), torch.Generator()
    draw.manual_seed(SEED + vocab)
    return MDP(
        vocab,
        length,
        torch.randn(shell.num_prefixes, vocab, generator=draw, dtype=torch.double),
        torch.randn(shell.num_sequences, generator=draw, dtype=torch.double),
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot run, saying why."""
    if item.get_closest_marker("network") and os.environ.get("KLEASH_NETWORK") != "1":
        pytest.skip("needs the internet: set KLEASH_NETWORK=1")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
