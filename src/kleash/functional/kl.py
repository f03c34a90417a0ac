"""The KL divergence of a policy q = π from a reference p = π_ref: exact per step, and sampled estimators.

With u = log q(y)/p(y) on a token y ~ q, Schulman's estimators (joschu.net/blog/kl-approx.html) are k1 = u, k2 = u²/2
and k3 = e^{−u} − 1 + u. They estimate a value; differentiating an estimate is not estimating a gradient
(Tang & Munos 2025, arXiv 2506.09477). The exact form needs both full rows of log-probabilities and has the lowest
variance of all: it is what the meter reads and what the penalty uses.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]


def exact_kl(
    logprobs: Float[Tensor, "*N V"], ref_logprobs: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """KL(q‖p) = Σ_v q_v (e^{−d_v} − 1 + d_v), d = log q − log p: exact, full vocabulary, nats per token.

    Equal to Σ q log(q/p) because Σ q (p/q − 1) = 0, but every summand is ≥ 0, so that nothing cancels: at a KL of
    1e-6 nats the usual form has lost its digits in float32 and half its signs; this one keeps four.

    A token that q gives probability 0 adds p_v (the limit of the summand); one that only p gives 0 adds inf.

    Args:
        logprobs: normalised log-probabilities of the policy.
        ref_logprobs: normalised log-probabilities of the reference, at the same temperature.

    Examples:
        >>> exact_kl(torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log())
        tensor(0.1927)
    """
    supported = logprobs > -torch.inf
    log_ratio = torch.where(supported, logprobs - ref_logprobs, 0.0)
    terms = torch.where(
        supported, logprobs.exp() * (torch.expm1(-log_ratio) + log_ratio), ref_logprobs.exp()
    )
    return terms.sum(-1)


def k1(logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """k1 = u. Unbiased value; its gradient as a loss is 0 in expectation.

    Examples:
        >>> k1(torch.tensor(-1.0), torch.tensor(-1.5))
        tensor(0.5000)
    """
    return logprobs - ref_logprobs


def k2(logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """k2 = u²/2. Biased value; its gradient as a loss is that of KL(q‖p), on-policy.

    Examples:
        >>> k2(torch.tensor(-1.0), torch.tensor(-1.5))
        tensor(0.1250)
    """
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """k3 = e^{−u} − 1 + u. Unbiased value, never negative; its gradient as a loss is that of KL(p‖q).

    Examples:
        >>> k3(torch.tensor(-1.0), torch.tensor(-1.5))
        tensor(0.1065)
    """
    log_ratio = logprobs - ref_logprobs
    return torch.expm1(-log_ratio) + log_ratio


ESTIMATORS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3}
"""From name to (logprobs, ref_logprobs of the sampled tokens) -> estimate per token."""
