"""What the study of tails is made from: pools that are tilted or chosen from, tails that are watched, and training."""

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from kleash.functional.best_of_n import best_of_n_reward
from kleash.lab.arms.settings import FROZEN
from kleash.lab.closed_form import Budget, solve
from kleash.lab.study.work import Desk, Result
from kleash.lab.tailed_mdp import tailed, worth
from kleash.lab.tails import Law, draw_errors, gold_at, hill, largest_weight
from kleash.rollout.seeds import seeded

RESPONSES, LEARNING_RATE = 512, 0.05
"""Of a step of training."""
CHUNK = 2**20
"""Scores that are watched at once."""


class TiltSettings(BaseModel):
    """Pools of outcomes, tilted to each KL."""

    model_config = FROZEN

    error: str
    scale: float = Field(default=1.0, gt=0)
    """The error is multiplied by it."""
    log2_size: int
    pools: int
    kls: tuple[float, ...]
    laws: tuple[Law, ...]
    clip: float = 3.0
    seed: int = 0


class ChoiceSettings(BaseModel):
    """Pools of outcomes that best-of-n chooses from."""

    model_config = FROZEN

    error: str
    log2_size: int
    pools: int
    counts: tuple[int, ...]
    """n."""
    seed: int = 0


class WatchSettings(BaseModel):
    """Samples of proxy scores whose tails are looked at."""

    model_config = FROZEN

    error: str
    scores: int
    """In a sample."""
    samples: int
    seed: int = 0


class TailedSettings(BaseModel):
    """A run of RLOO on the problem with a heavy tail."""

    model_config = FROZEN

    law: Law
    beta: float
    clip: float
    steps: int
    seed: int = 0


def tilt_pools(settings: TiltSettings, directory: Path, desk: Desk) -> Result:
    """E[V] at each KL of each pool, [pools][K] under the name of each law."""
    torch.set_num_threads(1)
    found: dict[Law, list[list[float]]] = {law: [] for law in settings.laws}
    for pool in _pools(settings, settings.scale, desk):
        for law, rows in found.items():
            values = [
                [gold_at(gold, proxy, kl, law, settings.clip) for kl in settings.kls]
                for gold, proxy in pool
            ]
            rows.append(_means(values))
    return {**found}


def choose_best(settings: ChoiceSettings, directory: Path, desk: Desk) -> Result:
    """E[V] of best-of-n, `gold` [pools][n]: of every choice of n from the pool, without error of its own."""
    torch.set_num_threads(1)
    among = torch.tensor(settings.counts)
    rows = [
        _means([best_of_n_reward(proxy, gold, n=among).tolist() for gold, proxy in pool])
        for pool in _pools(settings, 1.0, desk)
    ]
    return {"gold": rows}


def watch_tails(settings: WatchSettings, directory: Path, desk: Desk) -> Result:
    """What each statistic says of each sample: `hill` and `largest_weight` [samples]."""
    torch.set_num_threads(1)
    generator = seeded(settings.seed, f"watched tails, {settings.error}")
    at_once = max(1, CHUNK // settings.scores)
    found: dict[str, list[float]] = {"hill": [], "largest_weight": []}
    while (done := len(found["hill"])) < settings.samples:
        shape = (min(at_once, settings.samples - done), settings.scores)
        gold = torch.randn(shape, generator=generator, dtype=torch.double)
        scores = gold + draw_errors(settings.error, shape, generator)
        found["hill"] += hill(scores).tolist()
        found["largest_weight"] += largest_weight(scores).tolist()
        desk.tell(done + shape[0], settings.samples)
    return found


def train_tailed(settings: TailedSettings, directory: Path, desk: Desk) -> Result:
    """What the trained policy is worth, by enumeration."""
    torch.set_num_threads(1)
    sections = {
        "kl": {},
        "clipped": {"reward": {"clip": [-settings.clip, settings.clip]}},
        "chi_squared": {"penalty": {"chi_squared": 1.0}},
    }
    problem = tailed()
    solved = solve(
        problem.mdp,
        "rloo",
        settings.beta,
        settings.seed,
        budget=Budget(RESPONSES, settings.steps, LEARNING_RATE),
        sections=sections[settings.law],
        observer=lambda step: desk.tell(step, settings.steps),
    )
    policy = torch.tensor(solved.policy, dtype=torch.double)
    return worth(problem, problem.mdp.logprobs(policy).sum(-1))._asdict()


Pair = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Gold and proxy of a pool; and of the same with its gold turned round."""


def _pools(settings: TiltSettings | ChoiceSettings, scale: float, desk: Desk) -> Iterator[Pair]:
    """Pools, each twice: where the error alone decides, what the gold of one outcome happens to be cancels."""
    generator = seeded(settings.seed, f"tails, {settings.error}, {settings.log2_size}")
    shape = (2**settings.log2_size,)
    for done in range(1, settings.pools + 1):
        gold = torch.randn(shape, generator=generator, dtype=torch.double)
        error = scale * draw_errors(settings.error, shape, generator)
        yield (gold, gold + error), (-gold, error - gold)
        desk.tell(done, settings.pools, f"2^{settings.log2_size} outcomes")


def _means(rows: list[list[float]]) -> list[float]:
    return torch.tensor(rows, dtype=torch.double).mean(0).tolist()
