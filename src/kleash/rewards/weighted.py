"""Several rewards as one: Σ_k w_k r_k, and each r_k kept beside it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from kleash.rewards.checks import checked
from kleash.rewards.config import RewardConfig, weighted_name
from kleash.rewards.scorers import Scorer, load_scorer


class Weighed(NamedTuple):
    """The scores of some responses, and what they are made of."""

    scores: list[float]
    parts: dict[str, list[float]]
    """Of each part, by name, before its weight; none where the reward is one."""


def load_reward(config: RewardConfig, device: str = "cpu") -> Scorer:
    """What the policy is trained on.

    Raises:
        InputError, ConfigError: a part of it can't be had.
    """
    if config.weights is None:
        return _load(config, config.name, device, config.label)
    named = {name: _load(config, name, device) for name in config.weights}
    return weighted_scorer(
        [(replace(named[name], name=name), weight) for name, weight in config.weights.items()]
    )


def load_monitors(config: RewardConfig, device: str = "cpu") -> list[Scorer]:
    """What only watches.

    Raises:
        InputError, ConfigError: one can't be had.
    """
    return [
        _load(config, name, device, config.label if name == config.model else None)
        for name in config.monitor
    ]


def weighted_scorer(parts: Sequence[tuple[Scorer, float]]) -> Scorer:
    """The reward Σ_k w_k r_k.

    Args:
        parts: rewards of different names, each with its weight.

    Examples:
        >>> words = Scorer(name="words", score=lambda _, texts: [float(len(t.split())) for t in texts])
        >>> signs = Scorer(name="signs", score=lambda _, texts: [float(len(t)) for t in texts])
        >>> both = weighted_scorer([(words, 2.0), (signs, -0.5)])
        >>> both.name, both.score([""], ["a bc"])
        ('2 × words + -0.5 × signs', [2.0])
    """
    name = weighted_name({part.name: weight for part, weight in parts})

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return weigh(whole, prompts, responses).scores

    whole = Scorer(name=name, score=score, parts=tuple(parts))
    return whole


def weigh(reward: Scorer, prompts: Sequence[str], responses: Sequence[str]) -> Weighed:
    """The scores of a reward, and of its parts where it has some, each asked once.

    The sum is exact but for its last rounding, and so the same in whatever order the parts are named.

    Raises:
        RewardError: a part failed, or the sum is no number that training can compute with.
    """
    if not reward.parts:
        return Weighed(reward.score(prompts, responses), {})
    found = {part.name: part.score(prompts, responses) for part, _ in reward.parts}
    weights = [weight for _, weight in reward.parts]
    sums = [
        math.fsum(weight * score for weight, score in zip(weights, scores, strict=True))
        for scores in zip(*found.values(), strict=True)
    ]
    return Weighed(checked(reward.name, sums, responses), found)


def _load(config: RewardConfig, name: str, device: str, label: str | int | None = None) -> Scorer:
    return load_scorer(
        name,
        label=label,
        batch_size=config.batch_size,
        device=device,
        server=config.server,
        reads=config.reads,
    )
