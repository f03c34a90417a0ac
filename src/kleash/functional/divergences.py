"""Divergences between two categorical distributions, exact over the vocabulary.

Each is a sum of terms p·f(q/p) with f convex, f(1) = f′(1) = 0: every term is ≥ 0 and of second order in the
log-ratio, so that nothing cancels when policy and reference nearly agree, which is where a leash holds them. The usual
forms have lost all digits there in float32. Rows are log-probabilities, normalised, q of the policy and p of the
reference; d = log q − log p. A token of probability 0 on either side adds the limit of its term; NaN stays NaN.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]

_LARGE = 30.0
"""Beyond this log-ratio one side is negligible, and the small-ratio form would overflow."""


def reverse_kl(
    logprobs: Float[Tensor, "*N V"], ref_logprobs: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """KL(q‖p) = Σ_v q_v (e^{−d_v} − 1 + d_v): the KL of RLHF, nats.

    Equal to Σ q log(q/p) because Σ q (p/q − 1) = 0. A token that q gives probability 0 adds p_v; one that only p
    gives 0 adds inf.

    Examples:
        >>> reverse_kl(torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log())
        tensor(0.1927)
    """
    supported = logprobs != -torch.inf
    log_ratio = torch.where(supported, logprobs - ref_logprobs, 0.0)
    near = ~(log_ratio <= -_LARGE)
    small = torch.where(near, log_ratio, 0.0)
    probs, ref_probs = logprobs.exp(), ref_logprobs.exp()
    # Far out q may underflow while p/q overflows; their product is p.
    far = ref_probs - probs + probs * log_ratio
    terms = torch.where(near, probs * (torch.expm1(-small) + small), far)
    # Where p is 0 and q is not: inf, also where exp(log q) has underflowed to 0.
    terms = torch.where(supported & (log_ratio == torch.inf), torch.inf, terms)
    return torch.where(supported, terms, ref_probs).sum(-1)


def forward_kl(
    logprobs: Float[Tensor, "*N V"], ref_logprobs: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """KL(p‖q): mass-covering, the divergence whose gradient k3 has as a loss; nats.

    Examples:
        >>> forward_kl(torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log())
        tensor(0.2231)
    """
    return reverse_kl(ref_logprobs, logprobs)


def jensen_shannon(
    logprobs: Float[Tensor, "*N V"], ref_logprobs: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """½ KL(q‖m) + ½ KL(p‖m), m = ½(q + p): symmetric, at most log 2 nats.

    Examples:
        >>> jensen_shannon(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log())
        tensor(0.6931)
    """
    return 0.5 * (
        _kl_from_mixture(logprobs, ref_logprobs) + _kl_from_mixture(ref_logprobs, logprobs)
    )


def _kl_from_mixture(logprobs: Tensor, other: Tensor) -> Tensor:
    """KL(q‖½(q + p)): log(m/q) is log1p(expm1(−d)/2) where d is moderate, and log(m) − log(q) far out."""
    supported = logprobs != -torch.inf
    log_ratio = torch.where(supported, logprobs - other, 0.0)
    near = ~(log_ratio <= -_LARGE)
    probs, mixed = logprobs.exp(), 0.5 * (logprobs.exp() + other.exp())
    x = torch.log1p(0.5 * torch.expm1(-torch.where(near, log_ratio, 0.0)))
    far = mixed - probs + probs * (torch.where(near, 0.0, log_ratio) + math.log(2))
    terms = torch.where(near, probs * (torch.expm1(x) - x), far)
    return torch.where(supported, terms, mixed).sum(-1)


def chi_squared(
    logprobs: Float[Tensor, "*N V"], ref_logprobs: Float[Tensor, "*N V"]
) -> Float[Tensor, "*N"]:
    """χ²(q‖p) = Σ_v (q_v − p_v)²/p_v: the variance of the importance weight q/p under p; no unit.

    Examples:
        >>> chi_squared(torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log())
        tensor(0.3600)
    """
    return _power_sum(logprobs, ref_logprobs, 2.0)


def renyi(
    logprobs: Float[Tensor, "*N V"], ref_logprobs: Float[Tensor, "*N V"], alpha: float = 2.0
) -> Float[Tensor, "*N"]:
    """Rényi's D_α(q‖p) = log(Σ_v q_v^α p_v^{1−α}) / (α − 1), nats (van Erven & Harremoës 2014, arXiv 1206.2459).

    α → 1 is KL(q‖p); α = ½ is symmetric; α = 2 is log(1 + χ²); it grows with α. Finite wherever the sum is, even where
    no float holds the sum itself.

    Args:
        logprobs: of the policy, q.
        ref_logprobs: of the reference, p.
        alpha: positive, and not 1.

    Raises:
        ValueError: α is 1 or not positive.

    Examples:
        >>> renyi(torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log(), 2.0)
        tensor(0.3075)
    """
    if not alpha > 0 or alpha == 1:
        raise ValueError(f"alpha must be positive and not 1 (that is reverse_kl), not {alpha}")
    supported = logprobs != -torch.inf
    powers = alpha * torch.where(supported, logprobs, 0.0) + (1 - alpha) * ref_logprobs
    powers = torch.where(supported, powers, -torch.inf)
    log_sum = powers.detach().logsumexp(-1, keepdim=True)
    # Far out the sum overflows, or 1 + its distance from 1 is 0, where its logarithm is an ordinary number.
    far = (log_sum > _LARGE) | (log_sum < -1)
    near = torch.log1p(_power_sum(torch.where(far, ref_logprobs, logprobs), ref_logprobs, alpha))
    beyond = torch.where(far, powers, 0.0).logsumexp(-1)
    return torch.where(far.squeeze(-1), beyond, near) / (alpha - 1)


def _power_sum(logprobs: Tensor, ref_logprobs: Tensor, alpha: float) -> Tensor:
    """Σ q^α p^{1−α} − 1, as Σ q (expm1(a·d) + a·expm1(−d)) with a = α − 1: the added sum is 0."""
    order = alpha - 1
    supported = logprobs != -torch.inf
    log_ratio = torch.where(supported, logprobs - ref_logprobs, 0.0)
    probs, ref_probs = logprobs.exp(), ref_logprobs.exp()
    near = max(1.0, abs(order)) * log_ratio.abs() < _LARGE
    small = torch.where(near, log_ratio, 0.0)
    # Far out the powers are taken of the product, which is finite where its factors are not.
    power = torch.where(near, -torch.inf, logprobs + order * log_ratio).exp()
    far = power - probs + order * (ref_probs - probs)
    terms = torch.where(
        near, probs * (torch.expm1(order * small) + order * torch.expm1(-small)), far
    )
    return torch.where(supported, terms, order * ref_probs).sum(-1)


DIVERGENCES: dict[str, Divergence] = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    "jensen_shannon": jensen_shannon,
    "renyi": renyi,
    "chi_squared": chi_squared,
}
"""From name to (logprobs, ref_logprobs) -> divergence per row. `renyi` is of order 2 here."""
