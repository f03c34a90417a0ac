"""The rollout that TRL is about to train on, metered as one of our own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.integrations.trl.attached import evaluating
from kleash.integrations.trl.followed import Followed
from kleash.models.policy import LanguageModel
from kleash.records import Signals, carried_momentum
from kleash.rollout.rollout import Rollout
from kleash.train.experience import Experience, Readings, meter, read_drift
from kleash.train.learner import Learner
from kleash.train.metrics import Metrics, drift_metrics, response_metrics, signal_metrics
from kleash.train.signals import spread_within

Ids = Sequence[Sequence[int]]
UNRECORDED = ("kl_sampler_policy_per_token", "sampler_logprob_gap_max")
"""Figures of log-probabilities as they were sampled, which TRL's own generation does not keep."""


def rollout_of(policy: LanguageModel, prompt_ids: Ids, response_ids: Ids) -> Rollout:
    """The tokens that TRL drew, in our layout. Responses to the same prompt are one cluster, in whatever group.

    Args:
        policy: who answered.
        prompt_ids: B rows without padding.
        response_ids: B rows without padding; the end-of-sequence token is one of them.
    """
    device = policy.device
    ids, mask = padded(prompt_ids, policy.pad_id, on_left=True)
    tokens, kept = padded(response_ids, policy.pad_id, on_left=False)
    seen: dict[tuple[int, ...], int] = {}
    index = [seen.setdefault(tuple(row), len(seen)) for row in prompt_ids]
    ends = set(policy.eos_ids)
    return Rollout(
        prompts=tuple(policy.tokenizer.batch_decode(prompt_ids)),
        responses=tuple(policy.tokenizer.batch_decode(response_ids, skip_special_tokens=True)),
        prompt_index=torch.tensor(index, device=device),
        prompt_ids=ids.to(device),
        prompt_mask=mask.to(device),
        response_ids=tokens.to(device),
        mask=kept.to(device),
        # Not recorded, and no number stands in for what was not.
        sampled_logprobs=torch.full(tokens.shape, torch.nan, device=device),
        finished=torch.tensor([bool(row) and row[-1] in ends for row in response_ids]).to(device),
    )


def padded(rows: Ids, fill: int, *, on_left: bool) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one [B, L] and its mask.

    Examples:
        >>> padded([[1], [2, 3]], 0, on_left=True)[0].tolist()
        [[0, 1], [2, 3]]
    """
    longest = max(1, *(len(row) for row in rows))
    ids = torch.full((len(rows), longest), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        at = slice(longest - len(row), longest) if on_left else slice(0, len(row))
        ids[index, at] = torch.tensor(row, dtype=torch.long)
        mask[index, at] = True
    return ids, mask


class Read(NamedTuple):
    """A rollout with all that its β, its verdict and its record rest on."""

    experience: Experience
    readings: Readings
    signals: Signals
    followed: Followed


class Pace(NamedTuple):
    """What of the optimiser a controller of β is to know."""

    beta1: float
    steps: int
    """Optimiser steps a rollout."""


def read(
    learner: Learner,
    rollout: Rollout,
    followed: Followed,
    *,
    temperature: float,
    micro_batch_size: int,
    pace: Pace,
    applied: bool,
) -> Read:
    """Meters a rollout of the policy that is about to be updated.

    Args:
        learner: whose policy sampled it.
        rollout: TRL's.
        followed: what it makes of the rewards.
        temperature: of the sampling.
        micro_batch_size: responses at a time.
        pace: of the updates.
        applied: whether the update before was kept.
    """
    with evaluating(learner):
        metered = meter(
            learner, rollout, temperature=temperature, micro_batch_size=micro_batch_size
        )
    experience = Experience(
        rollout=rollout,
        scores=followed.rewards,
        penalised=followed.pursued,
        monitor={},
        metered=metered,
    )
    readings = read_drift(learner, rollout, metered)
    log_ratio = experience.log_ratio.double().sum(-1)
    spread = spread_within(followed.pursued.to(log_ratio.device), log_ratio, rollout.prompt_index)
    signals = Signals(
        num_responses=readings.response.n,
        reward_std=spread.first_std,
        log_ratio_std=spread.second_std,
        correlation=spread.correlation,
        response_length=float(rollout.mask.sum(-1).double().mean()),
        momentum=carried_momentum(pace.beta1, 1, pace.steps, pace.steps),
        applied=applied,
    )
    return Read(experience, readings, signals, followed)


def read_metrics(found: Read) -> Metrics:
    """The figures of a rollout, by the names that they have in every run. What was not recorded is None."""
    rewards = found.followed.rewards
    known = rewards[~rewards.isnan()].double()
    return {
        "reward_mean": float(known.mean()) if len(known) else None,
        "reward_std": float(known.std()) if len(known) > 1 else None,
        **signal_metrics(found.signals),
        **drift_metrics(found.readings),
        **response_metrics(found.experience.rollout, found.experience.metered),
        **dict.fromkeys(UNRECORDED),
    }


def moments(optimizer: Any) -> float:
    """β₁ of an optimiser: the share of the last step's direction that it keeps; 0 where it keeps none.

    Examples:
        >>> moments(torch.optim.AdamW([torch.ones(1)], betas=(0.8, 0.9)))
        0.8
    """
    group = optimizer.param_groups[0]
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
