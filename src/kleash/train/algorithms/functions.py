"""The functions that algorithms are put together from: advantages, the loss of a token, and of a value."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.advantages import (
    coefficient_of_others,
    deviation,
    deviation_of_others,
    gae,
    mean_of_others,
    returns_to_go,
    whiten,
)
from kleash.functional.chi_squared import Charge, chi_squared_charge, response_log_ratio
from kleash.functional.chunks import TokenKL
from kleash.functional.losses import clipped_policy_loss, clipped_value_loss, step_penalty
from kleash.functional.penalties import Penalty, charges, drawn_excess, loss_terms
from kleash.functional.rewards import shaped_rewards
from kleash.train.algorithms.config import AlgorithmConfig
from kleash.train.algorithms.record import Minibatch, Targets, TokenTerms
from kleash.train.experience import Experience


class Charged(NamedTuple):
    """What a rollout is worth, token by token."""

    experience: Experience
    scores: Tensor
    """[B], penalised, less what is charged for χ² of the whole response."""
    rewards: Tensor
    """[B, T], of these scores at the end, less β times what the tokens are charged."""
    excess: Tensor | None
    """[B, T], β times what the response's whole log-ratio is over what is still to be charged; None: not to be used."""

    @property
    def prompts(self) -> Tensor:
        """[B], which prompt each response is to."""
        return self.experience.rollout.prompt_index


class Compared(NamedTuple):
    """Returns less a baseline."""

    advantages: Tensor
    """[B, T]."""
    returns: Tensor | None = None
    """[B, T], for a value head."""
    share: float = 1.0
    """What of the gradient is left where a response is in its own baseline: 1 − 1/n."""
    drawn: Tensor | None = None
    """[B], the share of the penalty that is in the advantages as the log-ratio drawn."""


def targets(
    experience: Experience, kl_coef: float, config: AlgorithmConfig, penalty: Penalty
) -> Targets:
    """Advantages of R less β times what the tokens are charged, and what β weighs beside them.

    Whatever scales the advantages scales β in the loss, so that both parts stay one penalty (`functional.penalties`).
    """
    rollout, metered = experience.rollout, experience.metered
    mask, index = rollout.mask, rollout.prompt_index
    charged = charges(penalty, metered.kl, experience.log_ratio, mask)
    scores, bound = experience.penalised, None
    if penalty.chi_squared and kl_coef:
        amounts, bound = _chi_squared(experience, kl_coef * penalty.chi_squared, config.baseline)
        scores = scores - amounts.to(scores.dtype)
    rewards = shaped_rewards(scores, charged, mask, kl_coef)
    scale = torch.ones(len(mask), dtype=torch.double, device=mask.device)
    if config.whiten_rewards:
        scale *= deviation(rewards, mask).double()
        rewards = whiten(rewards, mask, shift_mean=False)
    excess = None
    # Without a penalty its estimates are not looked at: a broken reference can't reach the update.
    if config.control_variate and penalty.is_of_sequence and kl_coef:
        excess = kl_coef * drawn_excess(charged, experience.log_ratio, mask)
    compared = BASELINES[config.baseline](Charged(experience, scores, rewards, excess), config)
    advantages = compared.advantages
    if config.scale == "batch":
        scale *= deviation(advantages, mask).double()
        advantages = whiten(advantages, mask)
    elif config.scale == "group":
        spread = deviation_of_others(experience.penalised, index)
        scale *= spread.double()
        advantages = advantages / spread[:, None]
    kl_coefs = kl_coef * compared.share / scale
    return Targets(advantages, compared.returns, penalty, kl_coefs, compared.drawn, bound=bound)


def _chi_squared(experience: Experience, coef: float, baseline: str) -> Charge:
    """What responses are charged for χ²: as it is to be compared, or less the mean of the others where nothing does.

    Compared are the responses to a prompt; all, where the baseline is of all or each prompt has one.
    """
    rollout = experience.rollout
    index, log_ratios = rollout.prompt_index, response_log_ratio(experience.log_ratio, rollout.mask)
    if baseline == "batch" or len(index.unique()) == len(index):
        index = torch.zeros_like(index)
    charge = chi_squared_charge(log_ratios, experience.penalised, index, coef)
    if baseline in {"value", "none"}:
        others = mean_of_others(charge.amounts[:, None], index)[:, 0]
        charge = charge._replace(amounts=charge.amounts - others)
    return charge


def _by_value(charged: Charged, config: AlgorithmConfig) -> Compared:
    values = charged.experience.metered.values
    assert values is not None, "a value baseline has a value head"
    advantages, returns = gae(
        charged.rewards,
        values,
        charged.experience.rollout.mask,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    return Compared(advantages, returns)


def _by_others(charged: Charged, index: Tensor) -> Compared:
    """The return of each token less the mean of the others' at its position.

    What is still to be charged there differs less between responses than all that was. At the optimum, though, it is
    the whole response's reward and log-ratio that differ by the same and leave nothing: c of the way there is taken.
    """
    mask = charged.experience.rollout.mask
    # A response that has ended is worth its score at later positions, and charged no more.
    score = charged.scores[:, None]
    worth = torch.where(mask, returns_to_go(charged.rewards, mask), score)
    advantages, drawn = worth - mean_of_others(worth, index), None
    if charged.excess is not None:
        drawn = coefficient_of_others(worth, charged.excess, index).clamp(0.0, 1.0)
        excess = charged.excess - mean_of_others(charged.excess, index)
        advantages = advantages - drawn[:, None] * excess
    return Compared(torch.where(mask, advantages, 0.0), drawn=drawn)


def _by_leave_one_out(charged: Charged, config: AlgorithmConfig) -> Compared:
    return _by_others(charged, charged.prompts)


def _by_group(charged: Charged, config: AlgorithmConfig) -> Compared:
    """GRPO's mean, the response itself included."""
    compared = _by_others(charged, charged.prompts)
    share = 1.0 - len(charged.prompts.unique()) / len(charged.prompts)
    return compared._replace(advantages=share * compared.advantages, share=share)


def _by_batch(charged: Charged, config: AlgorithmConfig) -> Compared:
    return _by_others(charged, torch.zeros_like(charged.prompts))


def _by_nothing(charged: Charged, config: AlgorithmConfig) -> Compared:
    return Compared(returns_to_go(charged.rewards, charged.experience.rollout.mask))


BASELINES: dict[str, Callable[[Charged, AlgorithmConfig], Compared]] = {
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
    if targets.step_penalty:
        policy = policy + targets.step_penalty * step_penalty(read.logprobs, batch.old_logprobs)
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
