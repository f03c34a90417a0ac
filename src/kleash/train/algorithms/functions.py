"""The functions that algorithms are put together from: advantages, the loss of a token, and of a value."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.advantages import (
    deviation,
    deviation_of_others,
    gae,
    mean_of_others,
    returns_to_go,
    whiten,
)
from kleash.functional.chunks import TokenKL
from kleash.functional.losses import clipped_policy_loss, clipped_value_loss
from kleash.functional.penalties import Penalty, charges, loss_terms
from kleash.functional.rewards import shaped_rewards
from kleash.train.algorithms.config import AlgorithmConfig
from kleash.train.algorithms.record import Minibatch, Targets, TokenTerms
from kleash.train.experience import Experience


class Compared(NamedTuple):
    """Returns less a baseline."""

    advantages: Tensor
    """[B, T]."""
    returns: Tensor | None
    """[B, T], for a value head."""
    share: float = 1.0
    """What of the gradient is left where a response is in its own baseline: 1 − 1/n."""


def targets(
    experience: Experience, kl_coef: float, config: AlgorithmConfig, penalty: Penalty
) -> Targets:
    """Advantages of R less β times what the tokens are charged, and what β weighs beside them.

    Whatever scales the advantages scales β in the loss, so that both parts stay one penalty (`functional.penalties`).
    """
    rollout, metered = experience.rollout, experience.metered
    mask, index = rollout.mask, rollout.prompt_index
    charged = charges(penalty, metered.kl, experience.log_ratio, mask)
    rewards = shaped_rewards(experience.penalised, charged, mask, kl_coef)
    scale = torch.ones(len(mask), dtype=torch.double, device=mask.device)
    if config.whiten_rewards:
        scale *= deviation(rewards, mask).double()
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns, share = BASELINES[config.baseline](experience, rewards, config)
    if config.scale == "batch":
        scale *= deviation(advantages, mask).double()
        advantages = whiten(advantages, mask)
    elif config.scale == "group":
        spread = deviation_of_others(experience.penalised, index)
        scale *= spread.double()
        advantages = advantages / spread[:, None]
    return Targets(advantages, returns, penalty, kl_coef * share / scale)


def _by_value(experience: Experience, rewards: Tensor, config: AlgorithmConfig) -> Compared:
    values = experience.metered.values
    assert values is not None, "a value baseline has a value head"
    advantages, returns = gae(
        rewards,
        values,
        experience.rollout.mask,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    return Compared(advantages, returns)


def _by_others(experience: Experience, rewards: Tensor, index: Tensor) -> Compared:
    """The return of each token less the mean of the others' at its position.

    What is still to be charged there differs less between responses than all that was.
    """
    mask = experience.rollout.mask
    # A response that has ended is worth its score at later positions, and charged no more.
    worth = torch.where(mask, returns_to_go(rewards, mask), experience.penalised[:, None])
    return Compared(torch.where(mask, worth - mean_of_others(worth, index), 0.0), None)


def _by_leave_one_out(experience: Experience, rewards: Tensor, config: AlgorithmConfig) -> Compared:
    return _by_others(experience, rewards, experience.rollout.prompt_index)


def _by_group(experience: Experience, rewards: Tensor, config: AlgorithmConfig) -> Compared:
    """GRPO's mean, the response itself included."""
    index = experience.rollout.prompt_index
    advantages = _by_others(experience, rewards, index).advantages
    share = 1.0 - len(index.unique()) / len(index)
    return Compared(share * advantages, None, share)


def _by_batch(experience: Experience, rewards: Tensor, config: AlgorithmConfig) -> Compared:
    return _by_others(experience, rewards, torch.zeros_like(experience.rollout.prompt_index))


def _by_nothing(experience: Experience, rewards: Tensor, config: AlgorithmConfig) -> Compared:
    return Compared(returns_to_go(rewards, experience.rollout.mask), None)


BASELINES: dict[str, Callable[[Experience, Tensor, AlgorithmConfig], Compared]] = {
    "value": _by_value,
    "group": _by_group,
    "leave_one_out": _by_leave_one_out,
    "batch": _by_batch,
    "none": _by_nothing,
}


def token_terms(
    read: TokenKL, batch: Minibatch, targets: Targets, config: AlgorithmConfig
) -> TokenTerms:
    """The clipped policy loss, and β times the penalty's term, of each token."""
    policy, clipped = clipped_policy_loss(
        read.logprobs,
        batch.anchor_logprobs,
        batch.advantages,
        clip_eps=config.clip_eps,
        clip_eps_high=config.clip_eps_high,
    )
    policy = batch.weights * policy
    if not targets.is_differentiated:
        return TokenTerms(policy, None, clipped)
    terms = loss_terms(
        targets.penalty, read.kl, read.logprobs, batch.ref_logprobs, batch.old_logprobs
    )
    return TokenTerms(policy, batch.weights * (batch.kl_coefs * terms), clipped)


def value_loss(values: Tensor, batch: Minibatch, config: AlgorithmConfig) -> Tensor:
    """The clipped value loss, a mean over tokens."""
    assert batch.old_values is not None
    assert batch.returns is not None
    return clipped_value_loss(
        values, batch.old_values, batch.returns, clip_eps=config.value_clip_eps
    )


def token_weights(mask: Tensor, max_new_tokens: int, config: AlgorithmConfig) -> Tensor:
    """What each token of a minibatch counts beside a mean over all of them, [N].

    Args:
        mask: [B, T] of its responses.
        max_new_tokens: the longest possible response.
        config: `aggregate` says which.
    """
    lengths = mask.sum(-1, keepdim=True).expand_as(mask)[mask].float()
    if config.aggregate == "token":
        return torch.ones_like(lengths)
    mean_length = len(lengths) / len(mask)
    if config.aggregate == "response":
        return mean_length / lengths
    return torch.full_like(lengths, mean_length / max_new_tokens)


def sequence_anchors(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """What makes π/anchor the geometric mean of the response's ratios, [N], as GSPO has it (arXiv 2507.18071).

    Each token's own log π is in it, so that the ratio is the response's at every token and yet has the slope of
    log π of that token (their GSPO-token form, in which advantages may differ between tokens).

    Args:
        logprobs: of the tokens as they are now, [N], without gradient.
        old_logprobs: as they were, [N].
        mask: [B, T] of the responses, N of it True.
    """
    change = torch.zeros(mask.shape, dtype=logprobs.dtype, device=logprobs.device)
    change[mask] = logprobs - old_logprobs
    means = change.sum(-1) / mask.sum(-1)
    return logprobs - means[:, None].expand(mask.shape)[mask]
