"""What a nat of KL buys, and which β or which target to choose.

On the golden problem the frontier and its slope are formulas (Ziegler et al. 2019, arXiv 1909.08593, figure 3, has the
sweep). On a language model arms of fixed β, and of fixed targets, are held against the optimum that samples of the
reference show, and chosen among by their gold reward.
"""

from statistics import fmean
from typing import Any

import torch
from pydantic import BaseModel, Field

from kleash.lab.arms.checks import Positive, Several
from kleash.lab.arms.enumerable import SolveSettings, solve_golden
from kleash.lab.arms.pool import draw_pool
from kleash.lab.arms.setting import PoolSize
from kleash.lab.arms.settings import FROZEN, PoolSettings
from kleash.lab.arms.sweep import (
    QUICK_ARMS,
    SweepConfig,
    arms,
    make_arms,
    make_proxies,
    proxies,
)
from kleash.lab.studies.beta_sweep.choice import answer, choice_claims, choice_table, chosen
from kleash.lab.studies.beta_sweep.exact import End, exact_claims, exact_table
from kleash.lab.studies.beta_sweep.figure import figure
from kleash.lab.studies.beta_sweep.findings import (
    ended,
    rest_claims,
    slope_claims,
    slopes,
    slopes_table,
)
from kleash.lab.studies.beta_sweep.frontier import (
    arms_table,
    frontier_claims,
    objective_claims,
)
from kleash.lab.study.cost import seconds_of
from kleash.lab.study.findings import Findings
from kleash.lab.study.reach import reach
from kleash.lab.study.work import Piece, Work

STEP, RESPONSE = 0.018, 3e-5
"""Seconds of a step on the golden problem, and of one of its responses."""


class Golden(BaseModel):
    """`[golden]`: runs on the golden problem."""

    model_config = FROZEN

    betas: Several[Positive] = (1.0, 0.5, 0.3, 0.2, 0.1)
    seeds: int = Field(default=1, gt=0)
    steps: int = Field(default=2000, gt=0)
    responses: int = Field(default=1024, gt=0, multiple_of=8)
    learning_rate: float = Field(default=0.05, gt=0)


class Config(SweepConfig):
    """The study."""

    pool: PoolSize = PoolSize()
    golden: Golden = Golden()


QUICK: dict[str, Any] = {
    **QUICK_ARMS,
    "pool": {"samples": 48},
    "golden": {"betas": [1.0, 0.3], "steps": 500, "learning_rate": 0.1},
}


def golden_runs(config: Config) -> dict[float, list[SolveSettings]]:
    """Runs on the golden problem by β, one a seed."""
    told = config.golden
    common = told.model_dump(include={"steps", "responses", "learning_rate"})
    return {
        beta: [SolveSettings(beta=beta, seed=seed, **common) for seed in range(told.seeds)]
        for beta in told.betas
    }


def pool_of(config: Config) -> PoolSettings:
    """The samples of the reference, scored by every seed's proxy."""
    setting = config.setting
    return setting.pool(config.pool, tuple(proxies(config)))


def cost(config: Config) -> float:
    """Seconds of one core."""
    trained = [arm for group in arms(config).values() for arm in group]
    golden = [each for group in golden_runs(config).values() for each in group]
    exact = sum(each.steps * (STEP + RESPONSE * each.responses) for each in golden)
    return exact + seconds_of([*proxies(config), *trained, pool_of(config)])


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    runs = golden_runs(config)
    pieces = [
        Piece(f"golden problem, β {each.beta:g}", solve_golden, each)
        for group in runs.values()
        for each in group
    ]
    found = iter(work.do(pieces))
    exact = {beta: [End(**next(found)) for _ in group] for beta, group in runs.items()}
    make_proxies(config, work)
    (pool,) = work.do([Piece("the reference's samples", draw_pool, pool_of(config))])
    trained = {
        hold: [ended(each) for each in results] for hold, results in make_arms(config, work).items()
    }
    reaches = [reach(torch.tensor(scores)) for scores in pool["rewards"]]
    choice, between = chosen(trained), slopes(trained)
    floor = fmean(score for row in pool["gold"] for score in row)
    first, *others = choice_claims(trained, choice, floor)
    return Findings(
        answer=" ".join([answer(trained, choice), *(claim.says for claim in others)]),
        claims=(
            first,
            *others,
            *exact_claims(exact),
            *frontier_claims(trained, reaches),
            *objective_claims(trained, reaches),
            *slope_claims(between),
            *rest_claims(trained),
        ),
        tables=(
            arms_table(trained, reaches),
            choice_table(trained, choice),
            slopes_table(between),
            exact_table(exact),
        ),
        figure=figure(exact, trained, reaches, choice, floor),
        limits=(
            "One language model, one gold reward and one learning rate: β is in units of these proxies' spread, a "
            "target in nats of responses of this length. What carries over is the way to choose, not the number.",
            "An arm whose KL bought little may have spent it on the noise of small batches: which of learning rate, "
            "batch and algorithm it was is not taken apart here.",
            "An arm is taken where its last step leaves it. One of small β is then still on its way, and is more an "
            "arm stopped early than an optimum of its β: with more steps it has more KL, and may be worth less.",
            "All seeds share one pool of the reference's samples: what its sampling errs by is in no interval.",
            "Between arms of different β only those that were made are compared: the best may lie between two.",
        ),
    )
