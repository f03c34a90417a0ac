"""What a policy still finds likely that it was not trained on: under a KL penalty, and under a pretraining loss.

The prompts are divided in two. Arms learn to answer one half, the penalty is measured there; what is asked is how much
less likely the reference's answers to the other half have become. Ouyang et al. 2022 (arXiv 2203.02155, E.6) found
that a larger β does not repair what is lost elsewhere, and that their pretraining loss, PPO-ptx, does.
"""

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.checks import Positive, Rising, setting_that_runs
from kleash.lab.arms.proxy import fit_proxy
from kleash.lab.arms.setting import QUICK_SETTING, Setting
from kleash.lab.arms.settings import FROZEN, ArmSettings, ProxySettings, RetentionSettings
from kleash.lab.arms.untrained import examine_untrained
from kleash.lab.studies.retention.findings import FREE, conclude, ended
from kleash.lab.study.cost import seconds_of, seconds_of_untrained
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Piece, Work
from kleash.train.data import load_prompts


class Config(BaseModel):
    """The study."""

    model_config = FROZEN

    setting: Setting = Setting(steps=80, num_prompts=32)
    seeds: int = Field(default=5, gt=1)
    betas: Rising[Positive] = (0.01, 0.1, 1.0)
    """Of the arms with a penalty, from small to large; there is one without, too."""
    coefs: Rising[Positive] = (0.3, 1.0, 3.0)
    """γ of the arms with a pretraining loss and no penalty."""
    texts: int = Field(default=256, gt=15)
    """Of the reference, to each half of the prompts."""

    _runs = model_validator(mode="after")(setting_that_runs)

    @model_validator(mode="after")
    def _has_two_halves(self) -> Self:
        prompts = len(load_prompts(self.setting.prompts))
        if prompts < 2:
            raise ValueError(
                f"setting.prompts of at least 2 prompts, one half to train on and one to ask about: "
                f"{self.setting.prompts} has {prompts}"
            )
        half = (prompts + 1) // 2
        if self.setting.num_prompts > half:
            raise ValueError(
                f"setting.num_prompts of at most {half}, as every other of the {prompts} prompts in "
                f"{self.setting.prompts} is trained on, and not {self.setting.num_prompts}"
            )
        return self


QUICK: dict[str, Any] = {
    "setting": {**QUICK_SETTING, "steps": 40},
    "seeds": 3,
    "betas": [0.01, 1.0],
    "coefs": [1.0],
}


def plan(config: Config) -> dict[str, list[ArmSettings]]:
    """Every arm by name, one a seed."""
    setting = config.setting

    def arms(beta: float, coef: float) -> list[ArmSettings]:
        kept = RetentionSettings(texts=config.texts, coef=coef)
        return [
            setting.arm(
                {
                    "rewards": (setting.proxy(seed),),
                    "kl_coef": beta,
                    "retention": kept,
                    "seed": seed,
                }
            )
            for seed in range(config.seeds)
        ]

    named = {FREE: arms(0.0, 0.0)}
    named |= {f"β = {beta:g}": arms(beta, 0.0) for beta in config.betas}
    return named | {f"γ = {coef:g}": arms(0.0, coef) for coef in config.coefs}


def proxies(config: Config) -> list[ProxySettings]:
    """One a seed."""
    return [config.setting.proxy(seed) for seed in range(config.seeds)]


def cost(config: Config) -> float:
    """Seconds of one core."""
    arms = [arm for group in plan(config).values() for arm in group]
    return seconds_of_untrained(plan(config)[FREE]) + seconds_of([*proxies(config), *arms])


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    work.do(Piece(f"proxy, seed {each.seed}", fit_proxy, each) for each in proxies(config))
    groups = plan(config)
    reference = work.do(
        Piece(f"the reference, seed {each.seed}", examine_untrained, each) for each in groups[FREE]
    )
    done = iter(
        work.do(
            Piece(f"{name}, seed {arm.seed}", train_arm, arm)
            for name, arms in groups.items()
            for arm in arms
        )
    )
    return conclude(
        {name: [ended(next(done)["end"], began) for began in reference] for name in groups}
    )
