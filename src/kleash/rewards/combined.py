"""Several rewards as one, a weighted sum Σ_k w_k r_k or an ensemble, and each r_k kept beside it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.errors import ConfigError
from kleash.functional.ensembles import COMBINATORS, disagreement
from kleash.models.averaging import load_average
from kleash.rewards.checks import checked
from kleash.rewards.config import Combination, RewardConfig, ensemble_name, weighted_name
from kleash.rewards.scorers import Rule, Scorer, load_scorer, model_scorer, names_model


class Combined(NamedTuple):
    """The scores of some responses, and what they are made of."""

    scores: list[float]
    parts: dict[str, list[float]]
    """Of each part, by name, as it gave them; none where the reward is one."""
    disagreement: list[float] | None
    """Standard deviation over an ensemble's members, of each response; None where the reward is none."""


def load_reward(config: RewardConfig, device: str = "cpu") -> Scorer:
    """What the policy is trained on.

    Raises:
        InputError, ConfigError: a part of it can't be had.
    """
    if config.combine == "weights":
        return _load_average(config, device)
    loaded = [_load(config, name, device) for name in config.names]
    named = [replace(each, name=n) for each, n in zip(loaded, config.names, strict=True)]
    return combine(config, named)


def load_monitors(config: RewardConfig, device: str = "cpu") -> list[Scorer]:
    """What only watches.

    Raises:
        InputError, ConfigError: one can't be had.
    """
    return [_load(config, name, device) for name in config.monitor]


def combine(config: RewardConfig, parts: Sequence[Scorer]) -> Scorer:
    """The reward that a configuration makes of its parts, in their order; of a single reward that itself."""
    if not config.has_parts:
        (one,) = parts
        return one
    if config.weights is not None:
        return weighted_scorer([*zip(parts, config.weights.values(), strict=True)])
    return ensemble_scorer(parts, config.combine, config.uncertainty_weight)


def weighted_scorer(parts: Sequence[tuple[Scorer, float]]) -> Scorer:
    """The reward Σ_k w_k r_k. It is exact but for its last rounding: the order of the parts changes nothing.

    Args:
        parts: rewards of different names, each with its weight.

    Examples:
        >>> words = Scorer(name="words", score=lambda _, texts: [float(len(t.split())) for t in texts])
        >>> signs = Scorer(name="signs", score=lambda _, texts: [float(len(t)) for t in texts])
        >>> both = weighted_scorer([(words, 2.0), (signs, -0.5)])
        >>> both.name, both.score([""], ["a bc"])
        ('2 × words + -0.5 × signs', [2.0])
    """
    weights = [weight for _, weight in parts]

    def summed(scores: Sequence[Sequence[float]]) -> list[float]:
        return [
            math.fsum(weight * score for weight, score in zip(weights, each, strict=True))
            for each in zip(*scores, strict=True)
        ]

    name = weighted_name({part.name: weight for part, weight in parts})
    return joined(name, [part for part, _ in parts], Rule(combine=summed))


def ensemble_scorer(
    members: Sequence[Scorer], combination: Combination, uncertainty_weight: float = 0.5
) -> Scorer:
    """What several rewards that are to say the same say together. The order of the members changes nothing.

    Args:
        members: of different names, and on one scale.
        combination: one of `COMBINATORS`.
        uncertainty_weight: λ.

    Examples:
        >>> words = Scorer(name="words", score=lambda _, texts: [float(len(t.split())) for t in texts])
        >>> signs = Scorer(name="signs", score=lambda _, texts: [float(len(t)) for t in texts])
        >>> both = ensemble_scorer([words, signs], "worst")
        >>> both.name, both.score([""], ["a bc"])
        ('worst of words, signs', [2.0])
    """
    function = COMBINATORS[combination]
    rule = Rule(
        combine=lambda scores: function(_matrix(scores), uncertainty_weight).tolist(),
        disagree=lambda scores: disagreement(_matrix(scores)).tolist(),
    )
    name = ensemble_name([each.name for each in members], combination, uncertainty_weight)
    return joined(name, members, rule)


def joined(name: str, parts: Sequence[Scorer], rule: Rule) -> Scorer:
    """Several rewards of different names as one."""

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return ask_parts(whole, prompts, responses).scores

    whole = Scorer(name=name, score=score, parts=tuple(parts), rule=rule)
    return whole


def ask_parts(reward: Scorer, prompts: Sequence[str], responses: Sequence[str]) -> Combined:
    """The scores of a reward, and of its parts where it has some, each asked once.

    Raises:
        RewardError: a part failed, or what they come to is no number that training can compute with.
    """
    if reward.rule is None:
        return Combined(reward.score(prompts, responses), {}, None)
    found = {part.name: part.score(prompts, responses) for part in reward.parts}
    scores, rule = [*found.values()], reward.rule
    return Combined(
        scores=checked(reward.name, rule.combine(scores), responses),
        parts=found,
        disagreement=None if rule.disagree is None else rule.disagree(scores),
    )


def _matrix(scores: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(scores, dtype=torch.double)


def _load(config: RewardConfig, name: str, device: str) -> Scorer:
    return load_scorer(
        name,
        label=config.label if name in config.names else None,
        batch_size=config.batch_size,
        device=device,
        server=config.server,
        reads=config.reads,
    )


def _load_average(config: RewardConfig, device: str) -> Scorer:
    """One model whose weights are the mean of the members'.

    Raises:
        InputError, ConfigError: a member can't be had, is no model, or is not like the others.
    """
    for name in config.names:
        if not names_model(name):
            raise ConfigError(
                f"the reward {name!r} has no weights that could be averaged",
                expected='sequence classifiers where reward.combine = "weights"',
                got="a function or a server",
                do='take reward.combine = "mean", which averages scores',
            )
    return model_scorer(
        replace(load_average(config.names, device=device), name=config.name),
        label=config.label,
        batch_size=config.batch_size,
        reads=config.reads,
    )
