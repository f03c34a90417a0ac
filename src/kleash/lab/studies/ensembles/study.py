"""Ensembles of reward models: Coste et al. 2023 (arXiv 2310.02743), Eisenstein et al. (2312.09244), WARM (2401.12187).

Members differ in their preference data, or in the seed of their fit alone. A policy is trained on each combination of
them without a KL penalty, so that what holds it back is the ensemble; the combinators are those of `kleash train`.
"""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.checks import Several, setting_that_runs
from kleash.lab.arms.outcomes import arms_of
from kleash.lab.arms.pool import draw_pool
from kleash.lab.arms.proxy import fit_proxy
from kleash.lab.arms.setting import QUICK_SETTING, PoolSize, Setting
from kleash.lab.arms.settings import FROZEN, ArmSettings, PoolSettings, ProxySettings
from kleash.lab.studies.ensembles.findings import Made, conclude
from kleash.lab.study.cost import seconds_of
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Piece, Work

Source = Literal["data", "fit"]
"""What sets members apart: their pairs and their fit, or the fit alone."""
Combine = Literal["mean", "worst", "uncertainty", "weights"]
NAMES: dict[Combine, str] = {
    "mean": "ensemble mean",
    "worst": "ensemble worst case",
    "uncertainty": "ensemble mean less λ·variance",
    "weights": "ensemble of averaged weights",
}
STRIDE = 1000
"""Between the seeds of two members."""


class Config(BaseModel):
    """The study."""

    model_config = FROZEN

    setting: Setting = Setting(steps=80, num_prompts=32)
    seeds: int = Field(default=5, gt=1)
    members: int = Field(default=5, gt=1)
    combine: Several[Combine] = ("mean", "worst", "uncertainty", "weights")
    """By which a policy is trained."""
    sources: Several[Source] = ("data", "fit")
    uncertainty_weight: float = Field(default=0.5, ge=0)
    """λ of mean − λ·variance."""
    pool: PoolSize = PoolSize(samples=256)

    _runs = model_validator(mode="after")(setting_that_runs)


QUICK: dict[str, Any] = {
    "setting": {**QUICK_SETTING, "steps": 40},
    "seeds": 3,
    "members": 3,
    "combine": ["mean", "worst"],
    "sources": ["data"],
    "pool": {"samples": 16},
}


class Plan(NamedTuple):
    """Every piece of the study."""

    proxies: list[ProxySettings]
    """Each once."""
    members: dict[Source, list[tuple[ProxySettings, ...]]]
    """Of each seed's ensemble; the first is the single proxy."""
    single: list[ArmSettings]
    """One a seed, the rest of its ensemble looking on."""
    arms: dict[tuple[Source, Combine], list[ArmSettings]]
    pool: PoolSettings


def plan(config: Config) -> Plan:
    """What is to be made."""
    setting, seeds = config.setting, range(config.seeds)

    def ensemble(seed: int, source: Source) -> tuple[ProxySettings, ...]:
        others = [seed + STRIDE * k for k in range(1, config.members)]
        changed = [
            {"seed": other, "data_seed": other if source == "data" else seed} for other in others
        ]
        return (setting.proxy(seed), *(setting.proxy(seed, each) for each in changed))

    members: dict[Source, list[tuple[ProxySettings, ...]]] = {
        source: [ensemble(seed, source) for seed in seeds] for source in config.sources
    }
    first = members[config.sources[0]]
    single = [
        setting.arm({"rewards": own[:1], "monitors": own[1:], "seed": seed})
        for seed, own in enumerate(first)
    ]

    def arm(seed: int, source: Source, combine: Combine) -> ArmSettings:
        changes: dict[str, Any] = {
            "rewards": members[source][seed],
            "combine": combine,
            "seed": seed,
        }
        if combine == "uncertainty":
            changes["uncertainty_weight"] = config.uncertainty_weight
        return setting.arm(changes)

    arms: dict[tuple[Source, Combine], list[ArmSettings]] = {
        (source, combine): [arm(seed, source, combine) for seed in seeds]
        for source in config.sources
        for combine in config.combine
    }
    every = [proxy for group in members.values() for own in group for proxy in own]
    pool = setting.pool(config.pool, tuple(proxy for own in first for proxy in own))
    return Plan(list(dict.fromkeys(every)), members, single, arms, pool)


def cost(config: Config) -> float:
    """Seconds of one core."""
    made = plan(config)
    arms = [*made.single, *(arm for group in made.arms.values() for arm in group)]
    return seconds_of([*made.proxies, *arms, made.pool])


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    made = plan(config)
    work.do(
        Piece(f"proxy, data {each.data_seed}, fit {each.seed}", fit_proxy, each)
        for each in made.proxies
    )
    groups = [("single", made.single)]
    groups += [
        (f"{NAMES[combine]}, own {source}", arms) for (source, combine), arms in made.arms.items()
    ]
    done = iter(
        work.do(
            Piece(f"{name}, seed {arm.seed}", train_arm, arm)
            for name, arms in groups
            for arm in arms
        )
    )
    results = {name: [next(done) for _ in arms] for name, arms in groups}
    (pool,) = work.do([Piece("best-of-n", draw_pool, made.pool)])
    return conclude(
        Made(
            {name: arms_of(runs) for name, runs in results.items()},
            results["single"],
            pool,
            config.members,
            config.uncertainty_weight,
        )
    )
