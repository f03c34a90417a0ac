"""All that a run needs, and its streams of random numbers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kleash.rewards.scorers import Scorer
from kleash.rollout.seeds import seeded
from kleash.train.canary import Canary
from kleash.train.config import RunConfig
from kleash.train.learner import Learner
from kleash.train.ptx import Pretraining
from kleash.train.world import ALONE, World


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """All that the loop needs, loaded and checked."""

    config: RunConfig
    learner: Learner
    prompts: list[str]
    reward: Scorer
    monitors: Sequence[Scorer]
    pretraining: Pretraining | None = None
    """Texts that the policy is not to forget."""
    canary: Canary | None = None
    """States that the guard measures the policy at."""
    world: World = ALONE
    """The processes that the run is made by."""


def seed_process(seed: int) -> None:
    """Seeds the streams that are the process's own: nothing of ours draws from them, but a reward may."""
    state = seeded(seed, "process").initial_seed()
    random.seed(state)
    np.random.seed(state % 2**32)
    torch.manual_seed(state)
