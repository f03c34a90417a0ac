"""Algorithms as records of small functions: what to aim at, and the losses that aim there."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from kleash.functional.advantages import deviation, gae, whiten
from kleash.functional.chunks import TokenKL
from kleash.functional.losses import clipped_policy_loss, clipped_value_loss
from kleash.functional.penalties import Penalty, charges, loss_terms
from kleash.functional.rewards import shaped_rewards
from kleash.train.config import PPOConfig
from kleash.train.experience import Experience


class Targets(NamedTuple):
    """What an update aims at."""

    advantages: Tensor
    """[B, T]."""
    returns: Tensor
    """[B, T]."""
    penalty: Penalty
    kl_coef_effective: float
    """β beside the advantages as they enter the loss: β/σ where these were divided by σ."""

    @property
    def is_differentiated(self) -> bool:
        """Whether a part of the penalty is in the loss. At β = 0 none is: 0 · inf would be NaN."""
        return self.penalty.is_in_loss and self.kl_coef_effective > 0

    @property
    def needs_exact_gradient(self) -> bool:
        """Whether what is differentiated is the exact KL, for which both whole distributions are needed."""
        return self.is_differentiated and self.penalty.estimator == "exact"


class Minibatch(NamedTuple):
    """What was recorded at the tokens of some responses, flattened; [N] each."""

    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def part(self, tokens: slice) -> "Minibatch":
        """Some of the tokens."""
        return Minibatch(*(x[tokens] for x in self))


class TokenTerms(NamedTuple):
    """The parts of the loss that are sums over tokens; [N] each."""

    policy: Tensor
    penalty: Tensor | None
    """β times the term in the loss; None where the penalty is in the reward alone, or off."""
    clipped: Tensor

    @property
    def total(self) -> Tensor:
        """What is descended, per token."""
        return self.policy if self.penalty is None else self.policy + self.penalty


class Algorithm(NamedTuple):
    """What distinguishes one on-policy algorithm from another."""

    targets: Callable[[Experience, float, PPOConfig, Penalty], Targets]
    token_terms: Callable[[TokenKL, Minibatch, Targets, PPOConfig], TokenTerms]
    value_loss: Callable[[Tensor, Minibatch, PPOConfig], Tensor]


def ppo_targets(
    experience: Experience, kl_coef: float, config: PPOConfig, penalty: Penalty
) -> Targets:
    """Advantages of R less β times what the tokens are charged, and what β weighs beside them.

    Whatever scales the advantages scales β in the loss, so that both parts stay one penalty (`functional.penalties`).
    """
    mask, metered = experience.rollout.mask, experience.metered
    charged = charges(penalty, metered.kl, experience.log_ratio, mask)
    rewards = shaped_rewards(experience.penalised, charged, mask, kl_coef)
    scale = 1.0
    if config.whiten_rewards:
        scale *= float(deviation(rewards, mask))
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(
        rewards, metered.values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    if config.whiten_advantages:
        scale *= float(deviation(advantages, mask))
        advantages = whiten(advantages, mask)
    return Targets(advantages, returns, penalty, kl_coef / scale)


def ppo_token_terms(
    read: TokenKL, batch: Minibatch, targets: Targets, config: PPOConfig
) -> TokenTerms:
    """The clipped policy loss, and β times the penalty's term, of each token."""
    policy, clipped = clipped_policy_loss(
        read.logprobs, batch.old_logprobs, batch.advantages, clip_eps=config.clip_eps
    )
    if not targets.is_differentiated:
        return TokenTerms(policy, None, clipped)
    terms = loss_terms(
        targets.penalty, read.kl, read.logprobs, batch.ref_logprobs, batch.old_logprobs
    )
    return TokenTerms(policy, targets.kl_coef_effective * terms, clipped)


def ppo_value_loss(values: Tensor, batch: Minibatch, config: PPOConfig) -> Tensor:
    """The clipped value loss, a mean over tokens."""
    return clipped_value_loss(
        values, batch.old_values, batch.returns, clip_eps=config.value_clip_eps
    )


ALGORITHMS: dict[str, Algorithm] = {"ppo": Algorithm(ppo_targets, ppo_token_terms, ppo_value_loss)}
