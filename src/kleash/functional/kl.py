"""The KL divergence of a policy q = π from a reference p = π_ref: exact, truncated, and sampled.

With u = log q(y)/p(y) on a token y ~ q, Schulman's estimators (joschu.net/blog/kl-approx.html) are k1 = u, k2 = u²/2
and k3 = e^{−u} − 1 + u. They estimate a value; differentiating an estimate is not estimating a gradient
(Tang & Munos 2025, arXiv 2506.09477): what each is, as a value, as a loss and as a reward, stands in `LABELS`, and
tests hold every label against enumeration.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleash.functional.divergences import DIVERGENCES, renyi, reverse_kl
from kleash.functional.logprobs import log_softmax, token_logprobs

Estimator = Callable[[Tensor, Tensor], Tensor]
Direction = Literal["reverse", "forward", "jensen_shannon", "renyi", "chi_squared"]
Level = Literal["token", "prefix", "sequence"]

TAIL = 40.0
"""Where −u is larger, k3 goes on as a straight line: float32 holds e^40, and the squares of such gradients."""


def exact_kl(
    logits: Float[Tensor, "*N V"],
    ref_logits: Float[Tensor, "*N V"],
    *,
    direction: Direction = "reverse",
    temperature: float = 1.0,
    alpha: float = 2.0,
) -> Float[Tensor, "*N"]:
    """A divergence between softmax(z/τ) and softmax(z_ref/τ), summed over the whole vocabulary.

    Args:
        logits: of the policy; log-probabilities will do.
        ref_logits: of the reference.
        direction: `reverse` is KL(π‖π_ref), the KL of RLHF; see `divergences` for the others.
        temperature: τ, on both sides.
        alpha: order of `renyi`.

    Returns:
        Nats per row (`chi_squared` has no unit).

    Raises:
        KeyError: there is no such direction.

    Examples:
        >>> exact_kl(torch.tensor([0.8, 0.2]).log(), torch.tensor([0.5, 0.5]).log())
        tensor(0.1927)
    """
    logprobs, ref_logprobs = log_softmax(logits, temperature), log_softmax(ref_logits, temperature)
    if direction == "renyi":
        return renyi(logprobs, ref_logprobs, alpha)
    return DIVERGENCES[direction](logprobs, ref_logprobs)


def topk_kl(
    logprobs: Float[Tensor, "*N V"],
    ref_logprobs: Float[Tensor, "*N V"],
    k: int,
    *,
    tokens: Int[Tensor, "*N"] | None = None,
) -> Float[Tensor, "*N"]:
    """KL(π‖π_ref) from the policy's k likeliest tokens and what is left of both sides.

    Without `tokens` the rest is one bucket: Σ_S q log(q/p) + q_rest log(q_rest/p_rest), at most the exact KL by the
    data processing inequality. With the sampled `tokens` the rest is sampled: Σ_S q log(q/p) + 1{y ∉ S} log(q/p),
    unbiased in value and, as a loss, in the gradient of the local KL: a sum of q·∇log q over a part of the vocabulary
    is not 0, so the sampled term is q/sg(q) · sg(u + 1) − 1, of value u and gradient (u + 1) ∇log q.

    Args:
        logprobs: normalised, of the policy.
        ref_logprobs: normalised, of the reference.
        k: how many tokens are taken exactly, 1 … V.
        tokens: drawn from the policy.

    Raises:
        ValueError: k is not in 1 … V.

    Examples:
        >>> q, p = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.2, 0.3]).log()
        >>> topk_kl(q, p, 1), exact_kl(q, p)
        (tensor(0.0823), tensor(0.1257))
    """
    if not 1 <= k <= logprobs.shape[-1]:
        raise ValueError(f"k must lie in 1 … {logprobs.shape[-1]}, not {k}")
    chosen = logprobs.detach().topk(k, -1).indices
    head, ref_head = logprobs.gather(-1, chosen), ref_logprobs.gather(-1, chosen)
    if tokens is None:
        rest, ref_rest = (
            x.scatter(-1, chosen, -torch.inf).logsumexp(-1, keepdim=True)
            for x in (logprobs, ref_logprobs)
        )
        return reverse_kl(torch.cat([head, rest], -1), torch.cat([ref_head, ref_rest], -1))
    exact = (head.exp() * (head - ref_head)).sum(-1)
    logprob = token_logprobs(logprobs, tokens)
    u = (logprob - token_logprobs(ref_logprobs, tokens)).detach()
    sampled = (logprob - logprob.detach()).exp() * (u + 1) - 1
    return exact + torch.where((chosen == tokens.unsqueeze(-1)).any(-1), 0.0, sampled)


def k1(logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """k1 = u. Unbiased value; its gradient as a loss is 0 in expectation.

    Examples:
        >>> k1(torch.tensor(-1.0), torch.tensor(-1.5))
        tensor(0.5000)
    """
    return _log_ratio(logprobs, ref_logprobs)


def k2(logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """k2 = u²/2. Biased value; its gradient as a loss is that of KL(q‖p), on-policy.

    Examples:
        >>> k2(torch.tensor(-1.0), torch.tensor(-1.5))
        tensor(0.1250)
    """
    return 0.5 * _log_ratio(logprobs, ref_logprobs).square()


def k3(logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """k3 = e^{−u} − 1 + u, never negative. Unbiased value; its gradient as a loss is that of KL(p‖q).

    Where −u > 40 (`in_tail`) the exponential goes on as its tangent: a number and a slope that any float can hold, and
    not the dead gradient of a clamp just where the drift is greatest. There, and only there, it reads low.

    Examples:
        >>> k3(torch.tensor(-1.0), torch.tensor(-1.5))
        tensor(0.1065)
    """
    u = _log_ratio(logprobs, ref_logprobs)
    inside = u.clamp(min=-TAIL)
    # The clamped part carries no gradient in the tail; the straight line carries it.
    beyond = math.exp(TAIL) * (inside.detach() - u)
    return torch.expm1(-inside) + torch.where(u < -TAIL, beyond, 0.0) + u


def _log_ratio(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """u, in float32 at least: half precision holds neither e^u nor the difference of two close numbers."""
    wide = torch.promote_types(logprobs.dtype, torch.float32)
    return logprobs.to(wide) - ref_logprobs.to(wide)


def in_tail(logprobs: Float[Tensor, "*N"], ref_logprobs: Float[Tensor, "*N"]) -> Bool[Tensor, "*N"]:
    """Where k3 is on its straight line: to be counted and reported, as its value is low there.

    Examples:
        >>> in_tail(torch.tensor([-50.0, -1.0]), torch.tensor([-1.0, -50.0]))
        tensor([ True, False])
    """
    return _log_ratio(logprobs, ref_logprobs) < -TAIL


ESTIMATORS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3}
"""From name to (logprobs, ref_logprobs of the sampled tokens) -> estimate per token."""


class Label(NamedTuple):
    """What an estimator, summed over a response, is in expectation. Tests read this and hold it against enumeration."""

    value: Literal["unbiased", "biased", "lower bound", "per token"]
    """As an estimate of the divergence of whole responses. `per token`: exact in each state, but not in the sum, whose
    states are not drawn as that divergence, or that policy, would draw them."""
    loss: (
        Literal[
            "reverse",
            "reverse per token",
            "forward",
            "forward per token",
            "own per token",
            "zero",
            "wrong",
        ]
        | None
    )
    """Whose gradient it has when it stands in the loss: of whole responses, or of each token's state alone. `own`: of
    what it is the value of. None: a value only."""
    reward: Literal["reverse", "future only", "wrong"] | None
    """Whose gradient Σ_t (Σ_{j≥t} k_j) ∇log π, the one that it has in the reward, is. `future only`: it lacks the own
    token's term. None: not for the reward."""
    of: Direction = "reverse"
    """The divergence that it estimates; `reverse` is KL(π‖π_ref)."""


LABELS: dict[str, Label] = {
    # From both distributions.
    "exact": Label("unbiased", "reverse per token", "future only"),
    "exact_forward": Label("per token", "forward per token", "future only", "forward"),
    "exact_jensen_shannon": Label("per token", "own per token", "future only", "jensen_shannon"),
    "exact_renyi": Label("per token", "own per token", "future only", "renyi"),
    "exact_chi_squared": Label("per token", "own per token", "future only", "chi_squared"),
    "exact_regressed": Label("unbiased", None, None),
    "topk_merged": Label("lower bound", "own per token", "future only"),
    "topk_sampled": Label("unbiased", "reverse per token", "wrong"),
    # From the token drawn.
    "k1": Label("unbiased", "zero", "reverse"),
    "k2": Label("biased", "reverse per token", "wrong"),
    "k3": Label("unbiased", "forward per token", "wrong"),
    # From the log-ratio of the whole response.
    "k1_sequence": Label("unbiased", "zero", "reverse"),
    "k2_sequence": Label("biased", "reverse", "wrong"),
    "k3_sequence": Label("unbiased", "forward", "wrong"),
    # From another policy's data, times `importance_weights` with their gradient.
    "k1_ratio": Label("per token", "reverse per token", None),
    "k2_ratio": Label("biased", "wrong", None),
    "k3_ratio": Label("per token", "reverse per token", None),
    "k1_ratio_prefix": Label("unbiased", "reverse", None),
    "k2_ratio_prefix": Label("biased", "wrong", None),
    "k3_ratio_prefix": Label("unbiased", "reverse", None),
    "k1_ratio_sequence": Label("unbiased", "reverse", None),
    "k2_ratio_sequence": Label("biased", "wrong", None),
    "k3_ratio_sequence": Label("unbiased", "reverse", None),
}


def regressed_kl(
    sampled: Float[Tensor, " B"], exact: Float[Tensor, " B"], coefficient: float | None = None
) -> tuple[Float[Tensor, " B"], float]:
    """U − c (U − RB): the sampled log-ratio with its distance from the exact sum as control variate.

    U and RB = Σ_t KL_t have one mean, so every c is unbiased; c* = Cov(U, U − RB)/Var(U − RB) has the least variance,
    at most that of either. RB alone is not always better than U: a step that overshoots now may owe less later.

    Args:
        sampled: U = Σ_t u_t per response.
        exact: RB per response.
        coefficient: c; None fits c* to these responses (a bias of order 1/B).

    Returns:
        The estimates per response, and c (1 where U and RB agree everywhere).

    Examples:
        >>> estimate, c = regressed_kl(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        >>> estimate.tolist(), c
        ([1.0, 1.0], 1.0)
    """
    gap = sampled - exact
    if coefficient is None:
        centred = gap - gap.mean()
        spread = float(centred.square().sum())
        coefficient = float((centred * sampled).sum()) / spread if spread > 0 else 1.0
    return sampled - coefficient * gap, coefficient


def importance_weights(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    level: Level,
) -> Float[Tensor, "B T"]:
    """ρ for data that another policy μ sampled: what multiplies the estimate at each token.

    `token` Π of its own π/μ: biased, it keeps μ's prefixes. `prefix` Π_{i≤t}: unbiased, the least variance of the two
    that are. `sequence` Π over the whole response: unbiased. Gradients flow through: ρ·k3 has the gradient of ρ·k1 in
    the reward only if they do. Masked positions weigh 0.

    Args:
        logprobs: of the policy that is asked about.
        old_logprobs: of the policy that sampled.
        mask: True at the response's own tokens.
        level: which product.

    Examples:
        >>> old = torch.zeros(1, 3)
        >>> mask = torch.tensor([[True, True, False]])
        >>> importance_weights(torch.log(torch.tensor([[2.0, 3.0, 5.0]])), old, mask, "prefix")
        tensor([[2., 6., 0.]])
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    if level == "prefix":
        log_ratio = log_ratio.cumsum(-1)
    elif level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    return torch.where(mask, log_ratio.exp(), 0.0)


def largest_share(weights: Float[Tensor, " B"]) -> float:
    """The largest weight's share of all: above a tenth, an interval around the weighted mean can't be trusted.

    Examples:
        >>> largest_share(torch.tensor([1.0, 1.0, 2.0]))
        0.5
    """
    return float(weights.max() / weights.sum())
