"""Where an arm begins: its policy before the first step, asked what a trained one is asked at the end."""

from pathlib import Path

import torch

from kleash.lab.arms.arm import prompts_of
from kleash.lab.arms.examine import examine
from kleash.lab.arms.proxy import located, scorer_name
from kleash.lab.arms.settings import ArmSettings
from kleash.lab.study.work import Desk, Result
from kleash.models.config import ModelConfig
from kleash.rewards.scorers import load_scorer
from kleash.train.learner import build_learner
from kleash.train.optimizer_config import OptimizerConfig


def examine_untrained(settings: ArmSettings, directory: Path, desk: Desk) -> Result:
    """The reference on the fresh prompts and random numbers of an arm's examination; its KL is 0.

    Args:
        settings: of the arm, whose first reward is asked.
        directory: has the prompts, where they are not all of the file's.
        desk: where the reward is.
    """
    torch.set_num_threads(1)
    learner = build_learner(
        ModelConfig(policy=located(settings.policy, desk)), OptimizerConfig(), settings.device
    )
    reward, gold = (
        load_scorer(name, device=settings.device)
        for name in (scorer_name(settings.rewards[0], desk), settings.gold)
    )
    return examine(learner, settings, (reward, [gold]), prompts_of(settings, directory))
