"""Gold against proxy reward over √KL, as in Gao, Schulman and Hilton 2022 (arXiv 2210.10760).

Arms without a penalty, for every size of proxy and amount of preference data; arms with one, to be held against them at
equal KL; and best-of-n, which chooses by the same proxies.
"""

from typing import Any, NamedTuple

from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.checks import Distinct, Pairs, Positive, Several, setting_that_runs
from kleash.lab.arms.outcomes import arms_of
from kleash.lab.arms.pool import draw_pool
from kleash.lab.arms.proxy import fit_proxy
from kleash.lab.arms.setting import QUICK_SETTING, PoolSize, Setting
from kleash.lab.arms.settings import (
    BASE,
    FROZEN,
    ArmSettings,
    Language,
    PoolSettings,
    ProxySettings,
    StudentSettings,
)
from kleash.lab.arms.student import make_student
from kleash.lab.studies.overopt.findings import conclude
from kleash.lab.study.cost import seconds_of
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Piece, Work


class Config(BaseModel):
    """The study; the first of `proxies` and of `pairs` is what all else is compared with."""

    model_config = FROZEN

    setting: Setting = Setting(steps=80, num_prompts=32)
    seeds: int = Field(default=5, gt=1)
    proxies: Several[Language] = (BASE, StudentSettings(width=64, layers=2, steps=1500))
    """Language models whose trunks the proxies begin with: their sizes."""
    pairs: Several[Pairs] = (300, 1200)
    """Amounts of preference data."""
    betas: Distinct[Positive] = (0.05, 0.2)
    """Of the arms with a penalty; they learn from the first proxy."""
    pool: PoolSize = PoolSize()

    _runs = model_validator(mode="after")(setting_that_runs)


QUICK: dict[str, Any] = {
    "setting": QUICK_SETTING,
    "proxies": [BASE],
    "pairs": [300],
    "betas": [0.1],
    "pool": {"samples": 48},
}


class Plan(NamedTuple):
    """Every piece of the study."""

    students: list[StudentSettings]
    proxies: list[ProxySettings]
    free: dict[tuple[int, int], list[ArmSettings]]
    """Arms without a penalty, by the places of their proxy's size and data; one a seed."""
    held: dict[float, list[ArmSettings]]
    """Arms with one, by β."""
    pool: PoolSettings


def plan(config: Config) -> Plan:
    """What is to be made."""
    setting, seeds = config.setting, range(config.seeds)

    def proxy(size: int, data: int, seed: int) -> ProxySettings:
        changes = {"base": config.proxies[size], "pairs": config.pairs[data]}
        return setting.proxy(seed, changes)

    def arm(size: int, data: int, seed: int, beta: float) -> ArmSettings:
        changes = {"rewards": (proxy(size, data, seed),), "kl_coef": beta, "seed": seed}
        return setting.arm(changes)

    kinds = [(s, d) for s in range(len(config.proxies)) for d in range(len(config.pairs))]
    free = {kind: [arm(*kind, seed, 0.0) for seed in seeds] for kind in kinds}
    held = {beta: [arm(0, 0, seed, beta) for seed in seeds] for beta in config.betas}
    proxies = [proxy(*kind, seed) for kind in kinds for seed in seeds]
    pool = setting.pool(config.pool, tuple(proxy(0, 0, seed) for seed in seeds))
    students = [base for base in config.proxies if isinstance(base, StudentSettings)]
    return Plan(students, proxies, free, held, pool)


def cost(config: Config) -> float:
    """Seconds of one core."""
    made = plan(config)
    arms = [arm for group in (*made.free.values(), *made.held.values()) for arm in group]
    return seconds_of([*made.students, *made.proxies, *arms, made.pool])


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    made = plan(config)
    work.do(Piece("student", make_student, each) for each in made.students)
    fits = work.do(
        Piece(f"proxy, {each.pairs} pairs, seed {each.seed}", fit_proxy, each)
        for each in made.proxies
    )
    keys = [("no penalty", key) for key in made.free] + [("β", key) for key in made.held]
    groups = [*made.free.values(), *made.held.values()]
    results = iter(
        work.do(Piece(_label(arm, config), train_arm, arm) for group in groups for arm in group)
    )
    done = {key: [next(results) for _ in group] for key, group in zip(keys, groups, strict=True)}
    (pool,) = work.do([Piece("best-of-n", draw_pool, made.pool)])
    accuracy = {
        kind: [fits[i * config.seeds + seed]["accuracy"] for seed in range(config.seeds)]
        for i, kind in enumerate(made.free)
    }
    free = {kind: arms_of(done["no penalty", kind]) for kind in made.free}
    held = {beta: arms_of(done["β", beta]) for beta in made.held}
    names = {kind: _name(config, *kind) for kind in made.free}
    return conclude(free, held, pool, names=names, accuracy=accuracy)


def _label(arm: ArmSettings, config: Config) -> str:
    (proxy,) = arm.rewards
    assert isinstance(proxy, ProxySettings)
    size = config.proxies.index(proxy.base)
    return f"β {arm.kl_coef:g}, {_name(config, size, config.pairs.index(proxy.pairs))}, seed {arm.seed}"


def _name(config: Config, size: int, data: int) -> str:
    """A kind of proxy, in as many words as tell it from the others."""
    base = config.proxies[size]
    kind = base if isinstance(base, str) else f"{base.width} × {base.layers}"
    words = [f"{config.pairs[data]:,} pairs"]
    if len(config.proxies) > 1:
        words.insert(0, f"proxy {kind}")
    return ", ".join(words)
