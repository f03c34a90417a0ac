"""A ladder of models: how drift, gold loss and the β for a target change with the size of policy, proxy and data.

Along each axis one thing grows and all else is as `[setting]` says. A policy of another size is its own reference, and
its pairs are its own. The smaller and larger models are taught by the embedded one, so that all of them write about the
same; models of a Hugging Face family take their places by name.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.checks import Distinct, Pairs, setting_that_runs
from kleash.lab.arms.proxy import fit_proxy
from kleash.lab.arms.setting import Setting
from kleash.lab.arms.settings import (
    BASE,
    FROZEN,
    ArmSettings,
    Language,
    Policy,
    ProxySettings,
    StudentSettings,
)
from kleash.lab.arms.student import make_student
from kleash.lab.arms.untrained import examine_untrained
from kleash.lab.studies.scaling.findings import Level, conclude
from kleash.lab.study.cost import seconds_of, seconds_of_untrained
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Piece, Result, Work
from kleash.models.loading import count_parameters

LADDER: tuple[Language, ...] = (
    StudentSettings(width=32, layers=2, steps=1500, texts=8192),
    StudentSettings(width=96, layers=4, steps=1500, texts=8192),
    BASE,
    StudentSettings(width=384, layers=6, steps=1500, texts=8192),
)
"""About 0.2, 0.8, 4 and 12 million parameters."""


class Config(BaseModel):
    """The study."""

    model_config = FROZEN

    setting: Setting = Setting(steps=80, num_prompts=32)
    seeds: int = Field(default=5, gt=1)
    policies: Distinct[Language] = LADDER
    """Policies of several sizes; proxies then begin with `setting.policy`."""
    proxies: Distinct[Language] = LADDER
    """Language models whose trunks the proxies begin with; the policy is `setting.policy`."""
    pairs: Distinct[Pairs] = (100, 300, 1000, 3000)
    """Amounts of preference data."""
    kl_target: float = Field(default=6.0, gt=0)
    """Nats per response, that a leash is asked to hold on every rung of every axis."""
    gain: float = Field(default=0.5, gt=0)
    """Proxy reward, in its own standard deviations, that arms are compared at."""

    _runs = model_validator(mode="after")(setting_that_runs)

    @model_validator(mode="after")
    def _has_an_axis(self) -> Self:
        if not (self.policies or self.proxies or self.pairs):
            raise ValueError(
                "policies, proxies or pairs: at least one of them with values, to grow along"
            )
        return self


_SMALL = {"width": 64, "layers": 2, "steps": 250, "texts": 1536}
QUICK: dict[str, Any] = {
    "setting": {"steps": 30, "num_prompts": 8, "evaluation": {"group_size": 2}},
    "seeds": 3,
    "policies": [_SMALL, BASE],
    "proxies": [_SMALL, BASE],
    "pairs": [100, 300],
}


class Rung(NamedTuple):
    """One place on an axis: its arms without a penalty and on a leash, one a seed."""

    axis: str
    label: str
    size: Language | int
    free: list[ArmSettings]
    leashed: list[ArmSettings]


def rungs(config: Config) -> list[Rung]:
    """All axes, rung by rung; an arm that stands on two of them is made once."""
    setting = config.setting
    return [
        *(
            _rung(config, ("policy", _name(policy), policy), {"speaker": policy}, policy)
            for policy in config.policies
        ),
        *(
            _rung(config, ("reward model", _name(base), base), {"base": base}, setting.policy)
            for base in config.proxies
        ),
        *(
            _rung(config, ("data", f"{pairs:,} pairs", pairs), {"pairs": pairs}, setting.policy)
            for pairs in config.pairs
        ),
    ]


def _rung(
    config: Config,
    place: tuple[str, str, Language | int],
    proxy: dict[str, Any],
    policy: Language,
) -> Rung:
    setting = config.setting

    def arms(leash: dict[str, Any]) -> list[ArmSettings]:
        each = [setting.proxy(seed, proxy) for seed in range(config.seeds)]
        return [
            setting.arm({"policy": policy, "rewards": (own,), "seed": own.seed, **leash})
            for own in each
        ]

    held = {"kl_coef": None, "kl_target": config.kl_target}
    return Rung(*place, arms({"kl_coef": 0.0}), arms(held))


def cost(config: Config) -> float:
    """Seconds of one core."""
    arms = [arm for rung in rungs(config) for arm in (*rung.free, *rung.leashed)]
    begun = [arm for rung in _beginnings(rungs(config)).values() for arm in rung.free]
    return seconds_of_untrained(begun) + seconds_of([*_students(config), *_proxies(arms), *arms])


def run(config: Config, work: Work) -> Findings:
    """Makes the ladder, then the proxies, then the arms, and says what they show."""
    ladder = rungs(config)
    arms = [arm for rung in ladder for arm in (*rung.free, *rung.leashed)]
    students = _students(config)
    taught = work.do(Piece(f"student {_name(each)}", make_student, each) for each in students)
    proxies = _proxies(arms)
    work.do(Piece(_label(each), fit_proxy, each) for each in proxies)
    began = {
        policy: work.do(
            Piece(f"reference, {rung.axis} {rung.label}, seed {arm.seed}", examine_untrained, arm)
            for arm in rung.free
        )
        for policy, rung in _beginnings(ladder).items()
    }
    labels = [
        f"{rung.axis} {rung.label}, {'leashed' if arm.kl_target else 'free'}, seed {arm.seed}"
        for rung in ladder
        for arm in (*rung.free, *rung.leashed)
    ]
    done = iter(
        work.do(Piece(label, train_arm, arm) for label, arm in zip(labels, arms, strict=True))
    )
    levels = [
        Level(
            rung.axis,
            rung.label,
            _size(rung.size, students, taught),
            began[rung.free[0].policy],
            [next(done) for _ in rung.free],
            [next(done) for _ in rung.leashed],
        )
        for rung in ladder
    ]
    return conclude(levels, config.kl_target, config.gain)


def _beginnings(ladder: Sequence[Rung]) -> dict[Policy, Rung]:
    """Of every policy the rung that it is examined for before it is trained: what it is worth is asked once a seed."""
    return {rung.free[0].policy: rung for rung in reversed(ladder)}


def _students(config: Config) -> list[StudentSettings]:
    named = [config.setting.policy, *config.policies, *config.proxies]
    return list(dict.fromkeys(each for each in named if isinstance(each, StudentSettings)))


def _proxies(arms: Iterable[ArmSettings]) -> list[ProxySettings]:
    """Those that the arms learn from, each once."""
    rewards = (reward for arm in arms for reward in arm.rewards)
    return list(dict.fromkeys(each for each in rewards if isinstance(each, ProxySettings)))


def _size(
    size: Language | int, students: Sequence[StudentSettings], taught: Sequence[Result]
) -> float | None:
    """Parameters, or pairs; None of a model whose files don't say."""
    if isinstance(size, int):
        return float(size)
    if isinstance(size, StudentSettings):
        return float(taught[students.index(size)]["parameters"])
    return count_parameters(size)


def _label(proxy: ProxySettings) -> str:
    sizes = f"{_name(proxy.base)} of {_name(proxy.speaker)}"
    return f"proxy {sizes}, {proxy.pairs} pairs, seed {proxy.seed}"


def _name(model: Language) -> str:
    return model if isinstance(model, str) else f"{model.width} × {model.layers}"
