"""The arms that a sweep over β and a study of collapse look at: each β and each target, once a seed.

Two studies that ask for the same settings share every run.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.checks import Beta, Distinct, Positive, setting_that_runs
from kleash.lab.arms.proxy import fit_proxy
from kleash.lab.arms.setting import QUICK_SETTING, Setting
from kleash.lab.arms.settings import FROZEN, ArmSettings, ProxySettings
from kleash.lab.study.work import Piece, Result, Work


class SweepConfig(BaseModel):
    """What both studies are told."""

    model_config = FROZEN

    setting: Setting = Setting(steps=80, num_prompts=32)
    seeds: int = Field(default=5, gt=1)
    """Each with a proxy of its own."""
    betas: Distinct[Beta] = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Held throughout a run."""
    kl_targets: Distinct[Positive] = (2.0, 6.0, 12.0)
    """Nats per response, held by the `tilt` controller."""

    _runs = model_validator(mode="after")(setting_that_runs)

    @model_validator(mode="after")
    def _has_a_choice(self) -> Self:
        if len(holds(self)) < 2:
            raise ValueError(
                "betas and kl_targets: at least two arms in all, to be held against each other"
            )
        return self


QUICK_ARMS: dict[str, Any] = {
    "setting": QUICK_SETTING,
    "seeds": 3,
    "betas": [0.0, 0.1, 0.5],
    "kl_targets": [],
}


class Hold(NamedTuple):
    """How an arm is held: by a β or by a target."""

    beta: float | None = None
    kl_target: float | None = None

    @property
    def name(self) -> str:
        """As tables have it.

        Examples:
            >>> Hold(beta=0.1).name, Hold(kl_target=6.0).name
            ('β = 0.1', 'target 6 nats')
        """
        return f"target {self.kl_target:g} nats" if self.beta is None else f"β = {self.beta:g}"

    @property
    def changes(self) -> dict[str, float | None]:
        """What it is in an arm's settings."""
        return {"kl_coef": self.beta, "kl_target": self.kl_target}


def holds(config: SweepConfig) -> list[Hold]:
    """All of them: every β, from the smallest, and every target."""
    betas = [Hold(beta=beta) for beta in sorted(config.betas)]
    return betas + [Hold(kl_target=target) for target in sorted(config.kl_targets)]


def proxies(config: SweepConfig) -> list[ProxySettings]:
    """One a seed."""
    return [config.setting.proxy(seed) for seed in range(config.seeds)]


def arms(config: SweepConfig) -> dict[Hold, list[ArmSettings]]:
    """The arms of every hold, one a seed."""
    return {
        hold: [
            config.setting.arm({"rewards": (proxy,), "seed": seed, **hold.changes})
            for seed, proxy in enumerate(proxies(config))
        ]
        for hold in holds(config)
    }


def make_proxies(config: SweepConfig, work: Work) -> None:
    """Fits the proxies."""
    work.do(Piece(f"proxy, seed {each.seed}", fit_proxy, each) for each in proxies(config))


def make_arms(config: SweepConfig, work: Work) -> Mapping[Hold, list[Result]]:
    """Trains every arm; the proxies are there."""
    made = arms(config)
    pieces = [
        Piece(f"{hold.name}, seed {arm.seed}", train_arm, arm)
        for hold, group in made.items()
        for arm in group
    ]
    results = iter(work.do(pieces))
    return {hold: [next(results) for _ in group] for hold, group in made.items()}
