"""A policy on fresh responses: the same prompts and the same random numbers for every arm."""

from collections.abc import Sequence
from typing import Any

import torch

from kleash.functional.diversity import distinct_n, self_bleu, unique_share
from kleash.functional.intervals import clustered_mean
from kleash.lab.arms.prompts import asked
from kleash.lab.arms.settings import ArmSettings
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.seeds import seeded
from kleash.train.evaluate import collect, summarise
from kleash.train.learner import Learner

SHOWN = 8
"""Responses that are kept as text, one to each of the first prompts."""


def examine(
    learner: Learner,
    settings: ArmSettings,
    scorers: tuple[Scorer, Sequence[Scorer]],
    source: str,
) -> dict[str, Any]:
    """Reward, gold reward, KL with its interval, entropy and diversity of a policy.

    Args:
        learner: of the policy, and of the reference that it is metered against.
        settings: of the arm.
        scorers: the reward it was trained on, and the gold one.
        source: of the prompts that it learns to answer.
    """
    config = settings.evaluation
    prompts = asked(source, config.num_prompts)
    rollout = RolloutConfig(
        num_prompts=len(prompts),
        group_size=config.group_size,
        max_new_tokens=settings.max_new_tokens,
    )
    experience = collect(learner, prompts, rollout, scorers, seeded(settings.seed, "examination"))
    found = summarise(experience, learner.reference.name)
    gold = experience.monitor[scorers[1][0].name]
    index, mask = experience.rollout.prompt_index, experience.rollout.mask
    interval = clustered_mean(gold.double(), torch.ones(len(gold)).double(), index)
    entropy = experience.metered.entropy[mask].double()
    return {
        "reward": found.reward,
        "gold": interval.value,
        "gold_low": interval.low,
        "gold_high": interval.high,
        "kl": found.kl.value,
        "kl_low": found.kl.low,
        "kl_high": found.kl.high,
        "length": found.length,
        "entropy": float(entropy.mean()),
        **diversity(experience.rollout),
        "responses": list(experience.rollout.responses[:: config.group_size][:SHOWN]),
    }


def diversity(rollout: Rollout) -> dict[str, float | None]:
    """How different a rollout's responses are."""
    rows = rollout.responses_in_tokens()
    return {
        "distinct_1": distinct_n(rows, 1),
        "distinct_2": distinct_n(rows, 2),
        "self_bleu": self_bleu(rows),
        "unique_share": unique_share(rows, rollout.prompt_index.tolist()),
    }
