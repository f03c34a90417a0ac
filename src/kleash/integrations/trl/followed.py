"""The reward that a TRL update follows, in the units in which its β is paid."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Followed(NamedTuple):
    """What TRL makes of a rollout's rewards."""

    rewards: Tensor
    """[B], weighted and added up; NaN where no reward function had a word."""
    pursued: Tensor
    """[B], what the update pursues: less a baseline of its group, in the units of β; 0 where there is no reward."""
    unit: float | None
    """β in reward per nat is TRL's β times this, on average over groups; None where that can't be said."""


def follow(scores: Tensor, trainer: Any, method: str) -> Followed:
    """What an update of this trainer follows.

    RLOO takes β·log(π/π_ref) of a response from its reward before anything is divided: its β is reward per nat. GRPO
    adds β·k3 of each token to −A·ratio of that token, and whatever it multiplies tokens by (`loss_type`) it multiplies
    both by: what remains between the two is A's own scale. With A_i = (r_i − r̄)/(σ + 1e-4), and r_i − r̄ =
    (1 − 1/G)(r_i − mean of the others),

        β per unit of reward = β_TRL · (σ + 1e-4) / (1 − 1/G),      σ = 1 − 1e-4 for scale_rewards = "none"

    Args:
        scores: [B, F], of each reward function; NaN where it gave none.
        trainer: TRL's.
        method: `grpo` or `rloo`.
    """
    weights = trainer.reward_weights.to(scores.device)
    rewards = (scores * weights).nansum(dim=1)
    rewards[scores.isnan().all(dim=1)] = math.nan
    size = trainer.num_generations
    if method == "rloo":
        limits = trainer.reward_clip_range
        rewards = rewards.clamp(*limits) if limits else rewards
        return Followed(rewards, torch.nan_to_num(_centred(rewards, size), nan=0.0), 1.0)
    own = 1.0 - 1.0 / size
    advantages, unit = grpo_advantages(
        scores, weights, size, trainer.scale_rewards, trainer.multi_objective_aggregation
    )
    return Followed(rewards, own * advantages, None if unit is None else unit / own)


def grpo_advantages(
    scores: Tensor, weights: Tensor, size: int, scale: str, aggregation: str
) -> tuple[Tensor, float | None]:
    """GRPO's advantages [B], and the mean of what rewards were divided by; None where each function has its own.

    Args:
        scores: [B, F], groups one after the other.
        weights: [F].
        size: G.
        scale: `group`, `batch` or `none`.
        aggregation: `sum_then_normalize`, or `normalize_then_sum`, by which the two steps change places.

    Examples:
        >>> scores = torch.tensor([[1.0], [3.0], [0.0], [8.0]])
        >>> grpo_advantages(scores, torch.ones(1), 2, "none", "sum_then_normalize")
        (tensor([-1.,  1., -4.,  4.]), 1.0)
    """
    nothing = scores.isnan().all(dim=1)
    if aggregation == "normalize_then_sum":
        grouped = scores.view(-1, size, scores.shape[1])
        each = (grouped - grouped.nanmean(dim=1, keepdim=True)) / (_std(grouped, 1) + 1e-4)
        rewards = (each.view_as(scores) * weights).nansum(dim=1)
        rewards[nothing] = math.nan
        advantages = (rewards - rewards.nanmean()) / (_std(rewards, 0) + 1e-4)
        return torch.nan_to_num(advantages, nan=0.0), None
    rewards = (scores * weights).nansum(dim=1)
    rewards[nothing] = math.nan
    by = torch.ones(1, device=rewards.device)
    if scale == "group":
        by = _std(rewards.view(-1, size), 1).squeeze(1) + 1e-4
    elif scale == "batch":
        by = _std(rewards, 0) + 1e-4
    each = by.repeat_interleave(size) if scale == "group" else by
    advantages = torch.nan_to_num(_centred(rewards, size) / each, nan=0.0)
    unit = float(by.nanmean())
    return advantages, unit if math.isfinite(unit) else None


def _centred(rewards: Tensor, size: int) -> Tensor:
    groups = rewards.view(-1, size)
    return (groups - groups.nanmean(dim=1, keepdim=True)).view(-1)


def _std(values: Tensor, dim: int) -> Tensor:
    """Standard deviation without the NaN, n − 1 below the line; the dimension stays."""
    about = values - values.nanmean(dim=dim, keepdim=True)
    freedom = (~values.isnan()).sum(dim=dim, keepdim=True) - 1
    return ((about * about).nansum(dim=dim, keepdim=True) / freedom).sqrt()
