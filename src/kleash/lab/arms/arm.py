"""One arm: a policy trained against a reward by `kleash train`'s own code, followed by a gold reward, then examined.

Its run directory stays, ledger and metrics and samples, so that `kleash verify` and `kleash report` take it as any
other; its weights go once they are examined, as there are many arms.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kleash.control import ControlConfig
from kleash.guard import GuardConfig
from kleash.lab.arms.examine import examine
from kleash.lab.arms.proxy import located, scorer_name
from kleash.lab.arms.retention import held_texts, kept_texts, trained_prompts
from kleash.lab.arms.settings import ArmSettings
from kleash.lab.study.work import Desk, Result
from kleash.ledger import open_signing_key
from kleash.models.config import ModelConfig
from kleash.records import StepRecord
from kleash.replay import verify_run
from kleash.rewards.combined import load_reward
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer, load_scorer
from kleash.rollout.config import RolloutConfig
from kleash.train.algorithms import resolve_algorithm
from kleash.train.config import DataConfig, PenaltyConfig, RunConfig, TrainConfig
from kleash.train.learner import build_learner
from kleash.train.optimizer_config import OptimizerConfig
from kleash.train.ptx_config import PtxConfig
from kleash.train.run import train

RUN, KEY = "run", "lab.key"
MOST_PER_UPDATE = 0.2
"""KL(new‖old) of one update, nats per token, over which the guard shortens it: an untrained Adam's first is long."""
FOLLOWED: dict[str, str] = {
    "step": "step",
    "kl": "kl_policy_ref_per_response",
    "kl_low": "kl_policy_ref_per_response_low",
    "kl_high": "kl_policy_ref_per_response_high",
    "reward": "reward_mean",
    "reward_std": "reward_std_within",
    "log_ratio_std": "log_ratio_std_within",
    "correlation": "reward_log_ratio_correlation",
    "length_correlation": "reward_length_correlation",
    "length_slope": "reward_length_slope",
    "entropy": "entropy_per_token",
    "length": "response_length",
    "distinct_2": "distinct_2",
    "unique_share": "unique_share",
    "disagreement": "reward_disagreement",
    "kl_coef": "kl_coef",
    "fraction": "step_fraction",
}
"""What is kept of each step, by the name of its metric."""


def train_arm(settings: ArmSettings, directory: Path, desk: Desk) -> Result:
    """Trains, follows and examines one arm.

    Returns:
        `steps`: a list of what `FOLLOWED` names, with `gold` and `monitor/…`; `end`: the examination.
    """
    torch.set_num_threads(1)
    config = run_config(settings, directory, desk)
    run = directory / RUN
    if has_ended(run) and not (run / "final").is_dir():
        # It was stopped between its last two steps here: there is nothing to examine.
        shutil.rmtree(run)
    if not has_ended(run):
        signers = [open_signing_key(desk.pieces / KEY)]
        for record in train(config, run, resume=run.exists(), signers=signers, skip_self_test=True):
            desk.tell(record.step, settings.steps, _figures(record, settings.gold))
    steps = followed(run / "metrics.jsonl", settings, config)
    model = ModelConfig(policy=str(run / "final"), reference=config.model.policy)
    learner = build_learner(model, OptimizerConfig(), settings.device)
    scorers = load_reward(config.reward, settings.device), [_gold(settings)]
    end = examine(learner, settings, scorers, config.data.prompts)
    if settings.retention is not None:
        end |= kept_texts(learner, settings, settings.retention)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    if not settings.keep_model:
        shutil.rmtree(run / "final", ignore_errors=True)
    return {"steps": steps, "end": end}


def has_ended(run: Path) -> bool:
    """Whether a run is there, and over: one that was stopped while it was examined is not trained again."""
    return run.exists() and verify_run(run / "ledger").status == "finished"


def run_config(settings: ArmSettings, directory: Path, desk: Desk) -> RunConfig:
    """What `kleash train` is told of an arm."""
    names = [scorer_name(reward, desk) for reward in settings.rewards]
    reward: dict[str, Any] = {"model": names[0], "monitor": _monitors(settings, desk)}
    if len(names) > 1:
        reward |= {"model": tuple(names), "combine": settings.combine}
        if settings.combine == "uncertainty":
            reward["uncertainty_weight"] = settings.uncertainty_weight
    if settings.clip is not None:
        reward["clip"] = settings.clip
    penalty = {"chi_squared": settings.chi_squared} if settings.chi_squared else {}
    policy = located(settings.policy, desk)
    return RunConfig(
        model=ModelConfig(policy=policy),
        data=DataConfig(prompts=prompts_of(settings, directory)),
        rollout=RolloutConfig(
            num_prompts=settings.num_prompts,
            group_size=settings.group_size,
            max_new_tokens=settings.max_new_tokens,
        ),
        reward=RewardConfig.model_validate(reward),
        rl=_control(settings),
        algorithm=resolve_algorithm(
            {"name": settings.algorithm, "num_epochs": 1, "num_minibatches": 1}
        ),
        penalty=PenaltyConfig.model_validate(penalty),
        ptx=_ptx(settings, policy, directory),
        guard=GuardConfig(max_kl_new_old=MOST_PER_UPDATE),
        optimizer=OptimizerConfig(learning_rate=settings.learning_rate),
        train=TrainConfig(
            steps=settings.steps,
            seed=settings.seed,
            device=settings.device,
            threads=1,
            micro_batch_size=settings.num_prompts * settings.group_size,
            trackers=(),
        ),
    )


def followed(metrics: Path, settings: ArmSettings, config: RunConfig) -> list[dict[str, Any]]:
    """What is kept of each step of a run, by the short names; monitors by their places: `monitor/0` and so on."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    monitors = [name for name in config.reward.monitor if name != settings.gold]
    named = {
        **FOLLOWED,
        "gold": f"monitor/{settings.gold}",
        **{f"monitor/{i}": f"monitor/{name}" for i, name in enumerate(monitors)},
    }
    return [
        {short: row.get(name) for short, name in named.items()} for row in map(json.loads, lines)
    ]


def column(steps: list[dict[str, Any]], name: str) -> list[float | None]:
    """One of the figures of every step."""
    return [row[name] for row in steps]


def _control(settings: ArmSettings) -> ControlConfig:
    if settings.kl_target is not None:
        return ControlConfig(controller="tilt", kl_target=settings.kl_target)
    return ControlConfig(controller="fixed", kl_coef=settings.kl_coef)


def _monitors(settings: ArmSettings, desk: Desk) -> tuple[str, ...]:
    return (settings.gold, *(scorer_name(reward, desk) for reward in settings.monitors))


def _gold(settings: ArmSettings) -> Scorer:
    return load_scorer(settings.gold, device=settings.device)


def prompts_of(settings: ArmSettings, directory: Path) -> str:
    """Where the prompts are that an arm learns to answer: a file of its own, where those are half of all."""
    if settings.retention is None:
        return settings.prompts
    return _written(directory / "prompts.txt", lambda: trained_prompts(settings))


def _ptx(settings: ArmSettings, policy: str, directory: Path) -> PtxConfig:
    kept = settings.retention
    if kept is None or not kept.coef:
        return PtxConfig()
    texts = _written(directory / "ptx.txt", lambda: held_texts(settings, kept, policy, "ptx"))
    return PtxConfig(data=texts, coef=kept.coef)


def _written(path: Path, lines: Callable[[], list[str]]) -> str:
    """A file of lines that a run reads: the same in a run that is gone on with."""
    if not path.exists():
        path.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
    return str(path)


def _figures(record: StepRecord, gold: str) -> str:
    reward, value = record.metrics["reward_mean"], record.metrics[f"monitor/{gold}"]
    return f"proxy {reward:.2f}  gold {value:.2f}  KL {record.kl.value:.1f}"
