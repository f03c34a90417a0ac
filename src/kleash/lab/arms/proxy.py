"""Proxies, as in Gao et al. 2022 (arXiv 2210.10760): fitted to pairs that a gold model labelled, with noise.

Pairs are drawn from the reference; of each the gold model says which is better, by Bradley and Terry's law in its
score. The policy is then trained on the proxy, and the gold model, which training never sees, says what it was worth.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kleash.lab.arms.fault import plant_fault
from kleash.lab.arms.settings import (
    FaultSettings,
    Policy,
    ProxySettings,
    Reward,
    StudentSettings,
)
from kleash.lab.arms.student import make_student
from kleash.lab.study.work import Desk, Result, clear
from kleash.models.hub import load_language_model
from kleash.models.loading import count_parameters
from kleash.models.policy import LanguageModel
from kleash.rewards.scorers import Scorer, load_scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded
from kleash.train.data import load_prompts
from kleash.train.preferences import Pair, split_pairs
from kleash.train.reward_config import RewardTrainConfig
from kleash.train.reward_fit import fit
from kleash.train.reward_report import FitReport

MODEL = "model"
"""The proxy's directory within its piece."""
HELD_OUT = 0.1
"""Of the prompts, on whose pairs the proxy is measured."""


def fit_proxy(settings: ProxySettings, directory: Path, desk: Desk) -> Result:
    """Draws the pairs, fits the proxy, and says how well it ranks pairs it was not fitted to."""
    torch.set_num_threads(1)
    clear(directory)
    speaker = load_language_model(located(settings.speaker, desk), settings.device)
    gold = load_scorer(settings.gold, device=settings.device)
    pairs = label_pairs(
        speaker, gold, settings, lambda done: desk.tell(done, settings.pairs, "pairs")
    )
    report = _fit(settings, pairs, directory / MODEL, desk)
    return {
        "accuracy": report.held_out.accuracy,
        "train_accuracy": report.train_accuracy,
        "pairs": report.num_pairs,
        "parameters": count_parameters(str(directory / MODEL)),
    }


def label_pairs(
    speaker: LanguageModel,
    gold: Scorer,
    settings: ProxySettings,
    observer: Callable[[int], Any] = lambda done: None,
) -> list[Pair]:
    """Pairs of a model's responses, labelled by the gold model under Bradley–Terry noise.

    Args:
        speaker: who answers.
        gold: who labels.
        settings: how many, with which noise, from which seed.
        observer: told how many there are.
    """
    prompts = load_prompts(settings.prompts)
    generator = seeded(settings.data_seed, "pairs")
    pairs: list[Pair] = []
    while len(pairs) < settings.pairs:
        size = min(len(prompts), settings.pairs - len(pairs))
        config = RolloutConfig(
            num_prompts=size, group_size=2, max_new_tokens=settings.max_new_tokens
        )
        rollout = sample(speaker, prompts[:size], config, generator)
        scores = torch.tensor(gold.score(rollout.prompts, rollout.responses)).view(-1, 2)
        first = torch.sigmoid((scores[:, 0] - scores[:, 1]) / settings.noise)
        first = settings.flips + (1 - 2 * settings.flips) * first
        first_wins = torch.rand(size, generator=generator) < first
        for i, prompt in enumerate(prompts[:size]):
            texts = [prompt + response for response in rollout.responses[2 * i : 2 * i + 2]]
            chosen, rejected = texts if first_wins[i] else reversed(texts)
            pairs.append(Pair(prompt=prompt, chosen_text=chosen, rejected_text=rejected))
        observer(len(pairs))
    return pairs


def _fit(settings: ProxySettings, pairs: list[Pair], out: Path, desk: Desk) -> FitReport:
    split = split_pairs(pairs, HELD_OUT)
    # Of unit spread, so that β means the same whatever the proxy.
    how = RewardTrainConfig(epochs=settings.epochs, seed=settings.seed, normalize=True)
    events = fit(
        located(settings.base, desk),
        split.train,
        out,
        eval_pairs=split.held_out,
        settings=how,
        device=settings.device,
    )
    for event in events:
        if isinstance(event, FitReport):
            return event
        desk.tell(event.step, event.steps, f"loss {event.loss:.2f}")
    raise AssertionError("a fit ends with its report")


def located(model: Policy, desk: Desk) -> str:
    """The name by which a language model is loaded."""
    if isinstance(model, FaultSettings):
        return str(desk.of(plant_fault, model) / MODEL)
    if isinstance(model, StudentSettings):
        return str(desk.of(make_student, model) / MODEL)
    return model


def scorer_name(reward: Reward, desk: Desk) -> str:
    """The name by which a reward is loaded."""
    if isinstance(reward, ProxySettings):
        return str(desk.of(fit_proxy, reward) / MODEL)
    return reward
