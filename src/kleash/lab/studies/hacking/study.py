"""Rewards that can be had cheaply, trained on without a penalty and on a leash; and alarms that are to notice it.

Beside them runs that cannot be hacked: they learn from the gold reward itself, half of them on the leash, and say how
often each alarm is wrong.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.checks import Several, repeated, setting_that_runs
from kleash.lab.arms.proxy import fit_proxy
from kleash.lab.arms.setting import Setting
from kleash.lab.arms.settings import FROZEN, ArmSettings, ProxySettings, Reward
from kleash.lab.studies.hacking.alarms import WINDOW
from kleash.lab.studies.hacking.findings import conclude
from kleash.lab.studies.hacking.gold import Arm
from kleash.lab.study.cost import SCORING, seconds_of
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Piece, Work

PROXY = "proxy"
"""Of `rewards`: a reward model of few pairs, with whatever it is blind to."""
MONITORS = 2
"""Other proxies that watch each run: of as many and one, so that its own is not among them."""


class Config(BaseModel):
    """The study."""

    model_config = FROZEN

    setting: Setting = Setting(steps=40, num_prompts=16)
    rewards: Several[str] = (
        "kleash.lab.hacks:length",
        "kleash.lab.hacks:keywords",
        "kleash.lab.hacks:repetition",
        PROXY,
    )
    """As `reward.model` takes them; `proxy`: fitted to the setting's pairs, another for each seed."""
    seeds: int = Field(default=5, gt=1)
    leash: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    """Nats per response, held by `tilt`."""
    benign: int = Field(default=10, gt=2)
    """Runs that learn from gold; every other one is on the leash."""
    benign_steps: int = Field(default=60, ge=WINDOW)
    false_alarms: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Per 1,000 steps: what every alarm is planned for."""

    _runs = model_validator(mode="after")(setting_that_runs)

    @model_validator(mode="after")
    def _can_be_followed(self) -> Self:
        twice = repeated([_short(name) for name in self.rewards])
        if twice is not None:
            raise ValueError(
                f"rewards of different names after the colon, by which they are shown; two are called {twice}"
            )
        if self.setting.steps < WINDOW:
            raise ValueError(
                f"setting.steps of at least {WINDOW}, which an alarm takes the mean of, and not "
                f"{self.setting.steps}"
            )
        return self


QUICK: dict[str, Any] = {
    "setting": {"steps": 26, "num_prompts": 12, "evaluation": {"group_size": 2}},
    "seeds": 2,
    "benign": 4,
    "benign_steps": 26,
}


class Plan(NamedTuple):
    """Every piece of the study."""

    proxies: list[ProxySettings]
    free: dict[str, list[ArmSettings]]
    """Arms without a penalty, by reward; one a seed."""
    held: dict[str, list[ArmSettings]]
    """On the leash."""
    benign: list[ArmSettings]


def plan(config: Config) -> Plan:
    """What is to be made."""
    setting = config.setting
    proxies = [setting.proxy(seed) for seed in range(max(config.seeds, MONITORS + 1))]

    def arm(reward: Reward, seed: int, *, leash: bool, steps: int) -> ArmSettings:
        watching = [proxies[(seed + 1 + i) % (MONITORS + 1)] for i in range(MONITORS)]
        changes = {"rewards": (reward,), "monitors": watching, "seed": seed, "steps": steps}
        return setting.arm(changes | _held(config.leash if leash else None))

    def arms(name: str, *, leash: bool) -> list[ArmSettings]:
        return [
            arm(proxies[seed] if name == PROXY else name, seed, leash=leash, steps=setting.steps)
            for seed in range(config.seeds)
        ]

    benign = [
        arm(setting.gold, seed, leash=seed % 2 == 1, steps=config.benign_steps)
        for seed in range(config.benign)
    ]
    free, held = (
        {name: arms(name, leash=leash) for name in config.rewards} for leash in (False, True)
    )
    return Plan(proxies, free, held, benign)


def cost(config: Config) -> float:
    """Seconds of one core."""
    made = plan(config)
    arms = [*_arms(made.free), *_arms(made.held), *made.benign]
    scored = sum(_models(arm) * arm.steps * arm.num_prompts * arm.group_size for arm in arms)
    return seconds_of([*made.proxies, *arms]) + SCORING * scored


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    made = plan(config)
    work.do(Piece(f"proxy, seed {each.seed}", fit_proxy, each) for each in made.proxies)
    groups = {
        **{(name, "no penalty"): arms for name, arms in made.free.items()},
        **{(name, f"leash {config.leash:g}"): arms for name, arms in made.held.items()},
        ("gold", "benign"): made.benign,
    }
    pieces = [
        Piece(f"{_short(name)}, {kind}, seed {arm.seed}", train_arm, arm)
        for (name, kind), arms in groups.items()
        for arm in arms
    ]
    results = iter(work.do(pieces))
    done = [[next(results) for _ in arms] for arms in groups.values()]
    count = len(config.rewards)
    free, held = (
        {_short(name): Arm(runs) for name, runs in zip(config.rewards, part, strict=True)}
        for part in (done[:count], done[count : 2 * count])
    )
    return conclude(
        free,
        held,
        [each["steps"] for each in done[-1]],
        leash=config.leash,
        rate=config.false_alarms / 1000,
    )


def _models(arm: ArmSettings) -> int:
    """How many more models score a response than in an arm that learns from one and is followed by gold."""
    return len(arm.monitors) - sum(isinstance(each, str) and ":" in each for each in arm.rewards)


def _held(target: float | None) -> dict[str, float | None]:
    return {} if target is None else {"kl_coef": None, "kl_target": target}


def _arms(groups: dict[str, list[ArmSettings]]) -> Sequence[ArmSettings]:
    return [arm for arms in groups.values() for arm in arms]


def _short(name: str) -> str:
    """A reward in a word.

    Examples:
        >>> _short("kleash.lab.hacks:length"), _short("proxy")
        ('length', 'proxy')
    """
    return name.rpartition(":")[2]
