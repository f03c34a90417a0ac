"""Algorithms as records of two small functions: what to aim at, and the loss that aims there."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.advantages import deviation, gae, whiten
from kleash.functional.losses import clipped_policy_loss, clipped_value_loss
from kleash.functional.rewards import kl_shaped_rewards
from kleash.train.config import PPOConfig
from kleash.train.experience import Experience


class Targets(NamedTuple):
    """What an update aims at; [B, T] each."""

    advantages: Tensor
    returns: Tensor
    kl_loss_coef: float
    """β of the local KL term, in the units that the advantages were brought to."""


class Minibatch(NamedTuple):
    """The tokens of some responses, flattened; [N] each."""

    logprobs: Tensor
    values: Tensor
    kl: Tensor
    """Exact KL_t of the policy being trained, with its gradient."""
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


class Loss(NamedTuple):
    """A loss and its parts."""

    total: Tensor
    policy: Tensor
    value: Tensor
    clip_fraction: Tensor


class Algorithm(NamedTuple):
    """What distinguishes one on-policy algorithm from another."""

    targets: Callable[[Experience, float, PPOConfig], Targets]
    loss: Callable[[Minibatch, float, PPOConfig], Loss]


def ppo_targets(experience: Experience, kl_coef: float, config: PPOConfig) -> Targets:
    """Advantages of R − β Σ_{j>t} KL_j, and what β weighs beside them.

    The KL of the states that follow a token goes through its advantage, the KL of the state it was drawn in through
    the loss: together they are the gradient of the sequence KL (`functional.rewards`). Whatever scales the advantages
    scales β in the loss, so that the two parts stay one penalty.
    """
    mask = experience.rollout.mask
    rewards = kl_shaped_rewards(experience.penalised, experience.metered.kl, mask, kl_coef)
    scale = 1.0
    if config.whiten_rewards:
        scale *= float(deviation(rewards, mask))
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(
        rewards,
        experience.metered.values,
        mask,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    if config.whiten_advantages:
        scale *= float(deviation(advantages, mask))
        advantages = whiten(advantages, mask)
    return Targets(advantages, returns, kl_coef / scale)


def ppo_loss(batch: Minibatch, kl_loss_coef: float, config: PPOConfig) -> Loss:
    """Clipped policy loss + value_coef · clipped value loss + β · mean exact KL_t.

    At β = 0 the KL is not multiplied in: 0 · inf would be NaN.
    """
    policy, clip_fraction = clipped_policy_loss(
        batch.logprobs, batch.old_logprobs, batch.advantages, clip_eps=config.clip_eps
    )
    value = clipped_value_loss(
        batch.values, batch.old_values, batch.returns, clip_eps=config.value_clip_eps
    )
    total = policy + config.value_coef * value
    if kl_loss_coef > 0:
        total = total + kl_loss_coef * batch.kl.mean()
    return Loss(total, policy.detach(), value.detach(), clip_fraction.detach())


ALGORITHMS: dict[str, Algorithm] = {"ppo": Algorithm(ppo_targets, ppo_loss)}


def mean_losses(losses: list[Loss]) -> dict[str, float | None]:
    """Means over an update's minibatches, as metrics; None where there were none."""
    if not losses:
        return dict.fromkeys(("policy_loss", "value_loss", "clip_fraction"))
    return {
        "policy_loss": float(torch.stack([x.policy for x in losses]).mean()),
        "value_loss": float(torch.stack([x.value for x in losses]).mean()),
        "clip_fraction": float(torch.stack([x.clip_fraction for x in losses]).mean()),
    }
