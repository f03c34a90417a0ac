"""Pools: what the reference says to each prompt, many times, and what every reward makes of it.

Nothing is trained. A pool is what best-of-n chooses from, what the optimum of any β is weighed out of, and what
rewards are compared on.
"""

from pathlib import Path

import torch
from torch import Tensor

from kleash.lab.arms.prompts import asked
from kleash.lab.arms.proxy import located, scorer_name
from kleash.lab.arms.settings import PoolSettings
from kleash.lab.study.work import Desk, Result
from kleash.models.hub import load_language_model
from kleash.rewards.scorers import load_scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded


def draw_pool(settings: PoolSettings, directory: Path, desk: Desk) -> Result:
    """Draws and scores a pool.

    Returns:
        `gold` and `logprobs` [P, N], `rewards` [K, P, N] in the order of the settings, and `lengths` [P, N].
    """
    torch.set_num_threads(1)
    model = load_language_model(located(settings.policy, desk), settings.device)
    scorers = [
        load_scorer(name, device=settings.device)
        for name in (settings.gold, *(scorer_name(reward, desk) for reward in settings.rewards))
    ]
    prompts = asked(settings.prompts, settings.num_prompts)
    generator = seeded(settings.seed, "pool")
    config = RolloutConfig(
        num_prompts=1, group_size=settings.samples, max_new_tokens=settings.max_new_tokens
    )
    scores, logprobs, lengths = list[Tensor](), list[Tensor](), list[Tensor]()
    for done, prompt in enumerate(prompts, 1):
        rollout = sample(model, [prompt], config, generator)
        rows = [scorer.score(rollout.prompts, rollout.responses) for scorer in scorers]
        scores.append(torch.tensor(rows, dtype=torch.double))
        logprobs.append(rollout.sampled_logprobs.double().sum(-1).cpu())
        lengths.append(rollout.mask.sum(-1).cpu())
        desk.tell(done, len(prompts), f"{done * settings.samples} responses")
    gold, *rewards = torch.stack(scores, 1).tolist()
    return {
        "gold": gold,
        "rewards": rewards,
        "logprobs": torch.stack(logprobs).tolist(),
        "lengths": torch.stack(lengths).tolist(),
    }
