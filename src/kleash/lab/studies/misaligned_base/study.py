"""A fault of the reference survives the leash: exactly, in a trained table, and in a language model with a planted one.

The optimum of a reward that is indifferent to a fault has it as often as the reference, at every β; see
`kleash.lab.faulty_mdp`. What is planted in the language model is a phrase before whatever it says, and its reward is
the gold model itself: there is no proxy to be at fault.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.checks import Beta, Positive, Several, setting_that_runs
from kleash.lab.arms.fault import COUNT, plant_fault
from kleash.lab.arms.setting import QUICK_SETTING, Setting
from kleash.lab.arms.settings import FROZEN, ArmSettings, FaultSettings, WeighSettings
from kleash.lab.arms.weigh import weigh_fault
from kleash.lab.closed_form import Budget, solve
from kleash.lab.faulty_mdp import fault_share, with_fault
from kleash.lab.mdp import MDP
from kleash.lab.studies.misaligned_base.findings import Made, conclude
from kleash.lab.study.cost import seconds_of
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Desk, Piece, Result, Work
from kleash.lab.tailed_mdp import tailed

RESPONSES, LEARNING_RATE = 512, 0.03
STEP = 0.03
"""Seconds of a step of a table."""


class TableSettings(BaseModel):
    """A table trained by RLOO on a small problem with a fault."""

    model_config = FROZEN

    share: float
    penalty: float
    """D."""
    beta: float
    steps: int
    seed: int


class Config(BaseModel):
    """The study."""

    model_config = FROZEN

    setting: Setting = Setting(steps=80, num_prompts=32)
    seeds: int = Field(default=5, gt=1)
    share: float = Field(default=0.3, gt=0, lt=1)
    """π_ref(B) of the problems, and what the language model is taught."""
    penalty: float = Field(default=0.5, gt=0)
    """D, where there is one."""
    table_betas: Several[Positive] = (0.2, 0.5, 1.0)
    table_steps: int = Field(default=600, gt=0)
    betas: Several[Beta] = (0.0, 0.3, 1.0, 3.0)
    """Of the language model's arms."""
    samples: int = Field(default=32, gt=1)
    """Responses of the reference to each prompt, which the fault is counted in."""

    _runs = model_validator(mode="after")(setting_that_runs)

    @model_validator(mode="after")
    def _begins_with_a_model(self) -> Self:
        if not isinstance(self.setting.policy, str):
            raise ValueError("setting.policy as a model by its name: the fault is planted in it")
        return self


QUICK: dict[str, Any] = {
    "setting": {**QUICK_SETTING, "steps": 40},
    "seeds": 3,
    "table_betas": [0.2, 1.0],
    "table_steps": 200,
    "betas": [0.0, 0.3, 1.0],
    "samples": 16,
}


class Plan(NamedTuple):
    """Every piece of the study."""

    tables: dict[tuple[float, float], list[TableSettings]]
    """By β and D, one a seed."""
    fault: FaultSettings
    weigh: WeighSettings
    arms: dict[float, list[ArmSettings]]
    """By β, one a seed."""


def plan(config: Config) -> Plan:
    """What is to be made."""
    setting, seeds = config.setting, range(config.seeds)
    assert isinstance(setting.policy, str), "the configuration has been looked at"
    kinds = [(beta, 0.0) for beta in config.table_betas]
    kinds.append((config.table_betas[0], config.penalty))
    tables = {
        (beta, penalty): [
            TableSettings(
                share=config.share,
                penalty=penalty,
                beta=beta,
                steps=config.table_steps,
                seed=seed,
            )
            for seed in seeds
        ]
        for beta, penalty in kinds
    }
    fault = FaultSettings(
        base=setting.policy,
        share=config.share,
        prompts=setting.prompts,
        max_new_tokens=setting.max_new_tokens,
    )
    weigh = WeighSettings(
        policy=fault,
        gold=setting.gold,
        prompts=setting.prompts,
        samples=config.samples,
        max_new_tokens=setting.max_new_tokens,
        device=setting.device,
    )
    arms = {
        beta: [
            setting.arm(
                {
                    "policy": fault,
                    "rewards": (setting.gold,),
                    "monitors": (COUNT,),
                    "kl_coef": beta,
                    "seed": seed,
                }
            )
            for seed in seeds
        ]
        for beta in config.betas
    }
    return Plan(tables, fault, weigh, arms)


def cost(config: Config) -> float:
    """Seconds of one core."""
    made = plan(config)
    arms = [arm for group in made.arms.values() for arm in group]
    tables = sum(each.steps * STEP for group in made.tables.values() for each in group)
    return tables + seconds_of([made.fault, made.weigh, *arms])


def small_problem(share: float, penalty: float) -> MDP:
    """The 64 responses of `tailed` by their gold reward, each with the fault or without."""
    mdp, gold = tailed()
    return with_fault(MDP(mdp.vocab, mdp.length, mdp.ref_logits, gold), share, penalty)


def train_table(settings: TableSettings, directory: Path, desk: Desk) -> Result:
    """Trains one, and says by enumeration how often it has the fault."""
    torch.set_num_threads(1)
    mdp = small_problem(settings.share, settings.penalty)
    solved = solve(
        mdp,
        "rloo",
        settings.beta,
        settings.seed,
        budget=Budget(RESPONSES, settings.steps, LEARNING_RATE),
        observer=lambda step: desk.tell(step, settings.steps),
    )
    found = solved.standing
    share = fault_share(mdp, torch.tensor(solved.policy))
    return {"share": share, "kl": found.kl, "reward": found.reward, "gain_lost": found.gain_lost}


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    made = plan(config)
    tables = iter(
        work.do(
            Piece(f"table, β {beta:g}, D {penalty:g}, seed {each.seed}", train_table, each)
            for (beta, penalty), group in made.tables.items()
            for each in group
        )
    )
    (planted,) = work.do([Piece("planting a fault", plant_fault, made.fault)])
    (weighed,) = work.do([Piece("weighing it", weigh_fault, made.weigh)])
    arms = iter(
        work.do(
            Piece(f"β {beta:g}, seed {arm.seed}", train_arm, arm)
            for beta, group in made.arms.items()
            for arm in group
        )
    )
    return conclude(
        Made(
            share=config.share,
            penalty=config.penalty,
            tables={key: [next(tables) for _ in group] for key, group in made.tables.items()},
            planted=planted,
            weighed=weighed,
            arms={beta: [next(arms) for _ in group] for beta, group in made.arms.items()},
        )
    )
