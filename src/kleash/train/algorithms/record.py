"""What an algorithm is: a few functions between a rollout and a loss."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from kleash.functional.chunks import TokenKL
from kleash.functional.penalties import Penalty
from kleash.train.algorithms.config import AlgorithmConfig
from kleash.train.experience import Experience


class Targets(NamedTuple):
    """What an update aims at."""

    advantages: Tensor
    """[B, T]."""
    returns: Tensor | None
    """[B, T], what the value head is to learn; None where there is none."""
    penalty: Penalty
    kl_coefs: Tensor
    """[B], β beside each response's advantages as they enter the loss: β/σ where these were divided by σ."""
    drawn: Tensor | None = None
    """[B], the share of each response's penalty that its advantages hold as the log-ratio drawn, in place of what the
    placement says; None where the placement is followed throughout."""

    step_penalty: float = 0.0
    """Weight of KL(old‖new) in the loss."""
    bound: Tensor | None = None
    """[B], whether a response is charged less for χ² than it costs; None where χ² is not charged."""

    @property
    def kl_coef_effective(self) -> float:
        """Their mean."""
        return float(self.kl_coefs.mean())

    @property
    def loss_coefs(self) -> Tensor:
        """[B], β of what is in the loss: not of the share drawn."""
        return self.kl_coefs if self.drawn is None else self.kl_coefs * (1.0 - self.drawn)

    @property
    def is_differentiated(self) -> bool:
        """Whether a part of the penalty is in the loss. At β = 0 none is: 0 · inf would be NaN."""
        return self.penalty.is_in_loss and bool((self.loss_coefs > 0).any())

    @property
    def needs_exact_gradient(self) -> bool:
        """Whether what is differentiated is the exact KL, for which both whole distributions are needed."""
        return self.is_differentiated and self.penalty.estimator == "exact"


class Minibatch(NamedTuple):
    """What was recorded at the tokens of some responses, flattened; [N] each."""

    old_logprobs: Tensor
    """Of the policy as it was metered before the update."""
    anchor_logprobs: Tensor
    """What the update's ratio is taken from: `old_logprobs`, or what makes it the ratio of the whole response."""
    ref_logprobs: Tensor
    old_values: Tensor | None
    advantages: Tensor
    returns: Tensor | None
    kl_coefs: Tensor
    weights: Tensor
    """What each token counts in the loss; their mean is 1 where every token counts alike."""

    def part(self, tokens: slice) -> "Minibatch":
        """Some of the tokens."""
        return Minibatch._make(None if x is None else x[tokens] for x in self)


class TokenTerms(NamedTuple):
    """The parts of the loss that are sums over tokens, each weighted; [N] each."""

    policy: Tensor
    """KL(old‖new), where that is penalised, is in it."""
    penalty: Tensor | None
    """β times the term in the loss; None where the penalty is in the reward alone, or off."""
    clipped: Tensor

    @property
    def total(self) -> Tensor:
        """What is descended, per token."""
        return self.policy if self.penalty is None else self.policy + self.penalty


class Algorithm(NamedTuple):
    """What distinguishes one on-policy algorithm from another."""

    settings: Mapping[str, Any]
    """The settings that it has, with its defaults; the others of `[algorithm]` mean nothing to it."""
    targets: Callable[[Experience, float, AlgorithmConfig, Penalty], Targets]
    token_terms: Callable[[TokenKL, Minibatch, Targets, AlgorithmConfig], TokenTerms]
    value_loss: Callable[[Tensor, Minibatch, AlgorithmConfig], Tensor] | None = None
    """Of the value head; None: there is none."""
