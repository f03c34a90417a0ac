"""The whole story on embedded models: a proxy reward is fitted, and three policies are trained against it.

As in Gao et al. 2022 (arXiv 2210.10760): a gold model labels pairs with Bradley–Terry noise, a proxy is fitted on those
labels, the policy is trained on the proxy, and the gold model, which training never sees, says what it was worth.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from kleash.control import ControlConfig
from kleash.errors import InputError
from kleash.guard import AlarmConfig, AlarmsConfig, GuardConfig
from kleash.lab.arms.proxy import label_pairs
from kleash.lab.arms.settings import BASE, GOLD, PROMPTS, ProxySettings
from kleash.lab.processes import side_by_side
from kleash.ledger import open_signing_key
from kleash.models.config import ModelConfig
from kleash.models.embedded import resolve
from kleash.models.hub import load_language_model
from kleash.records import StepRecord
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import load_scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.seeds import seeded
from kleash.train.config import OptimizerConfig, RunConfig, TrainConfig
from kleash.train.data import load_prompts
from kleash.train.evaluate import collect, summarise
from kleash.train.learner import build_learner
from kleash.train.preferences import Pair, split_pairs
from kleash.train.reward_config import RewardTrainConfig
from kleash.train.reward_fit import fit
from kleash.train.reward_report import FitReport
from kleash.train.run import train


class DemoConfig(BaseModel):
    """The demo's size and its leash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    pairs: int = Field(default=1440, gt=0)
    """Preference pairs that the proxy is fitted on, before some are held out to measure it."""
    noise: float = Field(default=1.0, gt=0)
    """Bradley–Terry temperature of the labels, in units of the gold score: P(chosen) = σ(Δ/noise)."""
    fit_epochs: int = Field(default=1, gt=0)
    steps: int = Field(default=50, gt=0)
    """PPO steps of each arm."""
    num_prompts: int = Field(default=24, gt=0)
    group_size: int = Field(default=2, gt=0)
    max_new_tokens: int = Field(default=24, gt=0)
    kl_target: float = Field(default=10.0, gt=0)
    """What the leashed arm is held to, nats per response."""
    kl_coef: float = Field(default=0.2, gt=0)
    """β of the fixed arm; the leashed arm finds its own.

    The optimum for a Gaussian reward of standard deviation σ has KL = (σ/β)²/2: 12.5 nats at σ = 1."""
    learning_rate: float = Field(default=5e-4, gt=0)
    evaluations: int = Field(default=2, gt=0)
    """Fresh responses per prompt behind each row of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoEvent:
    """Something a person waiting wants to see."""

    phase: Literal["pairs", "proxy", "arm", "evaluate"]
    step: int
    steps: int
    arm: str | None = None
    figures: dict[str, float | None]
    """Of an arm: reward, gold, kl, kl_low, kl_high, kl_coef; of the proxy: loss, accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One trained policy, as the table shows it."""

    name: str
    proxy_reward: float
    gold_reward: float
    kl_policy_ref_per_response: float
    kl_low: float | None
    kl_high: float | None
    distinct_2: float | None
    mean_length: float
    run: str
    answers: tuple[str, ...] = ()
    """To the first prompts, in the demo's order."""

    def to_json(self) -> dict[str, Any]:
        """A row of the table."""
        row = asdict(self)
        row.pop("answers")
        return row


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demo found."""

    arms: tuple[Arm, ...]
    prompts: tuple[str, ...]
    """The prompts that every arm answered."""
    reference: Arm
    """The untrained model under the same measurement: its KL is 0 by definition of itself."""
    proxy_accuracy: float | None
    """On held-out pairs with the noisy labels."""
    kl_target: float


Observer = Callable[[DemoEvent], None]


def arm_configs(config: DemoConfig, proxy: Path) -> dict[str, RunConfig]:
    """The three arms: alike but for what holds their KL.

    Examples:
        >>> list(arm_configs(DemoConfig(), Path("proxy")))
        ['no penalty', 'fixed β', 'leashed']
    """
    controls = {
        "no penalty": ControlConfig(controller="fixed", kl_coef=0.0),
        "fixed β": ControlConfig(controller="fixed", kl_coef=config.kl_coef),
        "leashed": ControlConfig(
            controller="tilt",
            kl_target=config.kl_target,
        ),
    }
    return {
        name: _arm_config(config, proxy, control, guard_of(config, leashed=name == "leashed"))
        for name, control in controls.items()
    }


def guard_of(config: DemoConfig, *, leashed: bool) -> GuardConfig:
    """The same watch over every arm; only the leashed one has a limit on its drift, as the others show life without.

    An untrained Adam's first update is several times as large as the next: `max_kl_new_old` shortens it. Of the budget
    an arm spends some three fifths, as its updates take three nats each.
    """
    return GuardConfig(
        max_kl=2.0 * max(config.kl_target, LEAST_TARGET) if leashed else None,
        max_kl_new_old=0.2,
        max_path_log_ratio=5.0 * config.steps,
        alarms=AlarmsConfig(
            kl=AlarmConfig(mean=1.25 * config.kl_target),
            kl_new_old=AlarmConfig(mean=0.12),
            entropy=AlarmConfig(mean=0.5),
            concordance=AlarmConfig(mean=0.0),
        ),
    )


def run_demo(
    out: Path, config: DemoConfig, observer: Observer, passphrase: bytes | None = None
) -> DemoResult:
    """Fits the proxy, trains the three arms side by side, and measures each on fresh responses.

    Args:
        out: where the proxy and the runs go; it must not exist, or be empty.
        config: the demo's size and its leash.
        observer: told what a person waiting wants to see.
        passphrase: of the signing key, which each arm's process opens for itself.

    Raises:
        InputError: `out` is not empty.
        ResourceError: an arm's process died.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"{out} is not empty", expected="a new or empty directory", do="choose another --out"
        )
    first = side_by_side({"proxy": partial(make_proxy, config, out / "proxy")}, observer)
    reference, proxy_accuracy = first["proxy"]
    arms = side_by_side(
        {name: partial(run_arm, name, config, out, passphrase) for name in ARM_DIRECTORIES},
        observer,
    )
    return DemoResult(
        arms=tuple(arms.values()),
        prompts=tuple(load_prompts(PROMPTS)[:ANSWERS]),
        reference=reference,
        proxy_accuracy=proxy_accuracy,
        kl_target=config.kl_target,
    )


ARM_DIRECTORIES = {"no penalty": "no-penalty", "fixed β": "fixed-beta", "leashed": "leashed"}
LEAST_TARGET = 5.0
"""Nats: of a smaller target the first updates overshoot twice as much."""
ANSWERS = 6
"""Prompts whose answers are shown side by side."""


def make_proxy(config: DemoConfig, out: Path, observer: Observer) -> tuple[Arm, float | None]:
    """Fits the proxy, and measures the untrained model with it.

    Returns:
        The reference as the table shows it, and the proxy's accuracy on held-out pairs.
    """
    # One thread: the same numbers on every machine, and no spinning against whoever shares it.
    torch.set_num_threads(1)
    report = _fit_proxy(config, _pairs(config, observer), out, observer)
    reference = _evaluate(BASE, "reference", config, out, resolve(BASE))
    return reference, report.held_out.accuracy


def _pairs(config: DemoConfig, observer: Observer) -> list[Pair]:
    """Pairs of base-model responses, labelled by the gold model under Bradley–Terry noise."""
    settings = ProxySettings(
        pairs=config.pairs,
        noise=config.noise,
        max_new_tokens=config.max_new_tokens,
        data_seed=config.seed,
    )

    def told(done: int) -> None:
        observer(DemoEvent(phase="pairs", step=done, steps=config.pairs, figures={}))

    return label_pairs(load_language_model(BASE), load_scorer(GOLD), settings, told)


def _fit_proxy(config: DemoConfig, pairs: list[Pair], out: Path, observer: Observer) -> FitReport:
    split = split_pairs(pairs, 0.1)
    settings = RewardTrainConfig(epochs=config.fit_epochs, seed=config.seed, normalize=True)
    report: FitReport | None = None
    for event in fit(BASE, split.train, out, eval_pairs=split.held_out, settings=settings):
        if isinstance(event, FitReport):
            report = event
            continue
        figures: dict[str, float | None] = {"loss": event.loss, "accuracy": event.accuracy}
        observer(DemoEvent(phase="proxy", step=event.step, steps=event.steps, figures=figures))
    assert report is not None
    return report


def _rollout(config: DemoConfig, num_prompts: int, group_size: int) -> RolloutConfig:
    return RolloutConfig(
        num_prompts=num_prompts, group_size=group_size, max_new_tokens=config.max_new_tokens
    )


def _arm_config(
    config: DemoConfig, proxy: Path, control: ControlConfig, guard: GuardConfig
) -> RunConfig:
    return RunConfig(
        model=ModelConfig(policy=BASE),
        rollout=_rollout(config, config.num_prompts, config.group_size),
        reward=RewardConfig(model=str(proxy), monitor=(GOLD,)),
        rl=control,
        guard=guard,
        optimizer=OptimizerConfig(learning_rate=config.learning_rate),
        # One thread an arm: the arms share the cores, and the numbers don't depend on how many there are.
        train=TrainConfig(steps=config.steps, seed=config.seed, device="cpu", threads=1),
    )


def run_arm(
    name: str, config: DemoConfig, out: Path, passphrase: bytes | None, observer: Observer
) -> Arm:
    """One arm from start to table row."""
    run = out / ARM_DIRECTORIES[name]
    signers = [open_signing_key(passphrase=passphrase)]
    for record in train(arm_configs(config, out / "proxy")[name], run, signers=signers):
        observer(_arm_event(name, record, config.steps))
    observer(DemoEvent(phase="evaluate", step=0, steps=1, arm=name, figures={}))
    return _evaluate(str(run / "final"), name, config, out / "proxy", str(run))


def _arm_event(name: str, record: StepRecord, steps: int) -> DemoEvent:
    figures = {
        "reward": record.metrics["reward_mean"],
        "gold": record.metrics[f"monitor/{GOLD}"],
        "kl": record.kl.value,
        "kl_low": record.kl.low,
        "kl_high": record.kl.high,
        "kl_coef": record.kl_coef,
    }
    return DemoEvent(phase="arm", step=record.step, steps=steps, arm=name, figures=figures)


def _evaluate(policy: str, name: str, config: DemoConfig, proxy: Path, run: str) -> Arm:
    """A policy on fresh responses to every prompt: the same random numbers for every arm."""
    learner = build_learner(ModelConfig(policy=policy, reference=BASE), OptimizerConfig(), "cpu")
    prompts = load_prompts(PROMPTS)
    experience = collect(
        learner,
        prompts,
        _rollout(config, len(prompts), config.evaluations),
        (load_scorer(str(proxy)), [load_scorer(GOLD)]),
        seeded(config.seed, "evaluation"),
    )
    found = summarise(experience, BASE)
    every = config.evaluations
    return Arm(
        name=name,
        proxy_reward=found.reward,
        gold_reward=found.monitor[GOLD],
        kl_policy_ref_per_response=found.kl.value,
        kl_low=found.kl.low,
        kl_high=found.kl.high,
        distinct_2=found.distinct_2,
        mean_length=found.length,
        run=run,
        answers=experience.rollout.responses[: ANSWERS * every : every],
    )
