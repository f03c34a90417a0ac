"""What is read off a rollout before its update: the drift, and what else may choose its β."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.records import KLReading, Signals, carried_momentum
from kleash.train.config import RunConfig
from kleash.train.experience import Experience, Readings
from kleash.train.learner import Learner


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A rollout with all that its β, its verdict and its record rest on, each read once."""

    experience: Experience
    readings: Readings
    seen: KLReading
    """What the controller is shown: KL(π‖π_ref) in the unit of its target."""
    signals: Signals


def out_of_reach(measured: Measured, target: float | None) -> str:
    """A remark where a target is over what the rewards seem to carry a policy to; empty where it isn't.

    No tilt of the reference goes further than the one that always gives each prompt's best response y*, and that has
    KL = −log π_ref(y*). Of y* the best response in the rollout is all that is known, so that this is no refusal.

    Args:
        measured: a rollout.
        target: nats, in the unit of the reading that the controller is shown.
    """
    experience, rollout = measured.experience, measured.experience.rollout
    if target is None:
        return ""
    logprobs = experience.metered.ref_logprobs.double().sum(-1)
    scores, prompts = experience.penalised, rollout.prompt_index
    best = [
        -float(logprobs[rows[scores[rows].argmax()]])
        for rows in (torch.nonzero(prompts == prompt).squeeze(-1) for prompt in prompts.unique())
    ]
    reach = sum(best) / len(best)
    if measured.seen.unit == "token":
        reach /= float(rollout.mask.sum(-1).double().mean())
    if target <= reach:
        return ""
    return (
        f"the target of {target:g} nats per {measured.seen.unit} is over {reach:.3g}, the KL of a policy that always "
        "gives the best response seen to each prompt: it may be out of reach"
    )


class Spread(NamedTuple):
    """How two figures of a rollout's responses vary, and vary together; None where that can't be said."""

    first_std: float | None
    second_std: float | None
    correlation: float | None


def measure(
    learner: Learner,
    experience: Experience,
    config: RunConfig,
    *,
    applied: bool,
    refreshed: float = 0.0,
) -> Measured:
    """Reads a rollout of the policy that is about to be updated.

    Args:
        learner: whose policy sampled it.
        experience: the rollout with scores and metering.
        config: of the run.
        applied: whether the update before was kept.
        refreshed: how much of the way the reference came to the policy since.
    """
    readings, rollout = experience.readings(learner), experience.rollout
    seen = readings.response if config.rl.kl_unit == "response" else readings.token
    log_ratio = experience.log_ratio.double().sum(-1)
    spread = spread_within(experience.penalised, log_ratio, rollout.prompt_index)
    signals = Signals(
        num_responses=seen.n,
        reward_std=spread.first_std,
        log_ratio_std=spread.second_std,
        correlation=spread.correlation,
        response_length=float(rollout.mask.sum(-1).double().mean()),
        momentum=carried_momentum(
            config.optimizer.beta1,
            config.algorithm.num_epochs,
            config.algorithm.num_minibatches,
            seen.n,
        ),
        applied=applied,
        refreshed=refreshed,
    )
    return Measured(experience=experience, readings=readings, seen=seen, signals=signals)


def spread_within(first: Tensor, second: Tensor, prompt_index: Tensor) -> Spread:
    """Standard deviations and correlation of two figures, each about its own prompt's mean.

        σ² = Σ_i (x_i − x̄_prompt(i))² / (n − number of prompts)

    About the mean of all where each prompt has one response, n − 1 below the line then. None without a degree of
    freedom; no correlation with what does not vary or is not finite.

    Args:
        first: [B].
        second: [B].
        prompt_index: [B], which prompt each response answers.

    Examples:
        >>> rewards, log_ratios = torch.tensor([1.0, 3.0, 7.0, 9.0]), torch.tensor([0.0, 2.0, 1.0, 3.0])
        >>> spread_within(rewards, log_ratios, torch.tensor([0, 0, 1, 1]))
        Spread(first_std=1.41421356, second_std=1.41421356, correlation=1.0)
    """
    both = torch.stack([first, second], -1).cpu().double()  # [B, 2]
    group, counts = torch.unique(prompt_index.cpu(), return_inverse=True, return_counts=True)[1:]
    if len(counts) == len(both):
        group, counts = torch.zeros_like(group), torch.tensor([len(both)])
    freedom = len(both) - len(counts)
    if freedom < 1:
        return Spread(None, None, None)
    # From the first of each group, so that what is equal does not vary: a mean may be off by a last bit.
    first_of = torch.full_like(counts, len(both))
    first_of.scatter_reduce_(0, group, torch.arange(len(both)), "amin")
    shifted = both - both[first_of[group]]
    means = shifted.new_zeros(len(counts), 2).index_add_(0, group, shifted) / counts.unsqueeze(-1)
    about = shifted - means[group]
    covariance = about.T @ about / freedom
    stds = covariance.diagonal().sqrt()
    correlation = None
    if bool(stds.isfinite().all()) and bool((stds > 0).all()):
        # Its last bit may lie beyond 1.
        correlation = float((covariance[0, 1] / stds.prod()).clamp(-1.0, 1.0))
    return Spread(float(stds[0]), float(stds[1]), correlation)
