"""THE METER: log-probabilities in, `KLReading` out. One meter for training, audit and lab.

What it reads is never clamped, never sampled where it can be exact, and always measured, whatever β is.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.functional.intervals import clustered_mean
from kleash.functional.kl import in_tail, k3, largest_share
from kleash.functional.masking import masked_sum
from kleash.records import Direction, KLReading, Unit


def measure_drift(
    kl: Tensor,
    mask: Tensor,
    clusters: Tensor,
    *,
    reference: str,
    unit: Unit = "response",
    direction: Direction = "policy_ref",
    estimator: str = "exact",
) -> KLReading:
    """A reading of KLs per token, with an interval clustered by prompt.

    The sum over a sampled response of the exact per-token KLs is an unbiased estimate of the sequence KL (the
    Rao-Blackwell form: Amini et al. 2025, arXiv 2504.10637), as a rule with a fraction of the log-ratio's variance.

    A KL is never negative, so neither is the lower end of its interval: cutting it there costs no coverage.

    Args:
        kl: [B, T], nats; exact, or of an estimator that is never negative.
        mask: [B, T], True at the response's own tokens.
        clusters: [B], which prompt each response answers.
        reference: what the second distribution is.
        unit: nats per `response` or per `token`.
        direction: which KL it is.
        estimator: how each token's was had.

    Examples:
        >>> kl = torch.tensor([[0.1, 0.3], [0.2, 0.0]])
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> reading = measure_drift(kl, mask, torch.tensor([0, 1]), reference="base")
        >>> round(reading.value, 6), round(reading.largest_share, 6)
        (0.3, 0.666667)
    """
    return measure_drift_totals(
        masked_sum(kl.double(), mask),
        mask.sum(-1),
        clusters,
        reference=reference,
        unit=unit,
        direction=direction,
        estimator=estimator,
    )


def measure_drift_totals(
    totals: Tensor,
    lengths: Tensor,
    clusters: Tensor,
    *,
    reference: str,
    unit: Unit = "response",
    direction: Direction = "policy_ref",
    estimator: str = "exact",
) -> KLReading:
    """The same of KLs that are summed over their responses already.

    Args:
        totals: [B], nats, in double precision.
        lengths: [B], tokens.
        clusters: [B], which prompt each response answers.
        reference: what the second distribution is.
        unit: nats per `response` or per `token`.
        direction: which KL it is.
        estimator: how each token's was had.
    """
    weights = lengths.double() if unit == "token" else torch.ones_like(totals)
    interval = clustered_mean(totals, weights, clusters)
    share = largest_share(totals)
    return KLReading(
        value=interval.value,
        low=None if interval.low is None else min(interval.value, max(interval.low, 0.0)),
        high=interval.high,
        n=len(totals),
        clusters=int(clusters.unique().numel()),
        direction=direction,
        unit=unit,
        estimator=estimator,
        reference=reference,
        largest_share=share if math.isfinite(share) else None,
    )


def measure_mismatch(
    sampled_logprobs: Tensor, logprobs: Tensor, mask: Tensor, clusters: Tensor, *, policy: str
) -> KLReading:
    """KL(μ‖π) per token: how far what the sampler drew from is from the policy that learns from it.

    The sampler gives log μ of the tokens it drew and nothing else, so this one reading is an estimate: k3 of
    u = log μ − log π, unbiased and, this near 0, of the least variance. 0 but for rounding where both are one engine.

    Args:
        sampled_logprobs: [B, T], log μ(y_t|h_t) as recorded at sampling.
        logprobs: [B, T], log π(y_t|h_t) by the training forward pass.
        mask: [B, T], True at the response's own tokens.
        clusters: [B], which prompt each response answers.
        policy: the policy's name.

    Examples:
        >>> mask = torch.ones(2, 1, dtype=torch.bool)
        >>> mu, pi = torch.tensor([[-1.0], [-1.0]]), torch.tensor([[-1.1], [-0.9]])
        >>> reading = measure_mismatch(mu, pi, mask, torch.tensor([0, 1]), policy="base")
        >>> reading.name, round(reading.value, 6)
        ('kl_sampler_policy_per_token', 0.005004)
    """
    return measure_drift(
        k3(sampled_logprobs, logprobs),
        mask,
        clusters,
        reference=policy,
        unit="token",
        direction="sampler_policy",
        estimator="k3",
    )


class Tails(NamedTuple):
    """What a mean doesn't show."""

    token_p99: float
    """KL that one token in a hundred exceeds, nats."""
    token_max: float
    """Largest KL at one token, nats."""
    response_max: float
    """Largest KL of one response, nats."""
    k3_tail_tokens: int
    """Tokens the reference holds e^40 times likelier or more: k3 reads low there (`functional.kl.in_tail`)."""


def measure_tails(kl: Tensor, log_ratio: Tensor, mask: Tensor) -> Tails:
    """The tails of a KL per token.

    Args:
        kl: [B, T], exact, nats.
        log_ratio: [B, T], u_t = log π/π_ref of the tokens drawn.
        mask: [B, T], True at the response's own tokens.

    Examples:
        >>> kl = torch.tensor([[0.1, 0.3], [0.2, 9.0]])
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> tails = measure_tails(kl, torch.zeros(2, 2), mask)
        >>> [round(x, 6) for x in tails]
        [0.3, 0.3, 0.4, 0]
    """
    tokens = kl[mask].double()
    rank = math.ceil(0.99 * len(tokens))
    return Tails(
        token_p99=float(tokens.kthvalue(rank).values),
        token_max=float(tokens.max()),
        response_max=float(masked_sum(kl.double(), mask).max()),
        k3_tail_tokens=int(in_tail(log_ratio, torch.zeros_like(log_ratio))[mask].sum()),
    )


def break_down(
    kl: Tensor,
    log_ratio: Tensor,
    tokens: Tensor,
    mask: Tensor,
    clusters: Tensor,
    *,
    name: Callable[[int], str] = str,
    top: int = 20,
) -> dict[str, list[dict[str, Any]]]:
    """Where a KL per response comes from: by position, by prompt, by token.

    Positions add up to the reading; prompts average to it, weighted by their responses. An exact KL belongs to a state
    and not to the token drawn there, so that tokens share out Σ u_t instead, the sampled KL: signed, equal on average.

    Args:
        kl: [B, T], exact, nats.
        log_ratio: [B, T], u_t of the tokens drawn.
        tokens: [B, T], their ids.
        mask: [B, T], True at the response's own tokens.
        clusters: [B], which prompt each response answers.
        name: what to call a token.
        top: how many prompts and tokens, those with most first.

    Returns:
        `by_position`, `by_prompt` and `by_token`: lists of records, nats per response, with the counts behind them.

    Examples:
        >>> kl, tokens = torch.tensor([[0.1, 0.3], [0.4, 0.0]]), torch.tensor([[5, 6], [5, 0]])
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> found = break_down(kl, kl, tokens, mask, torch.tensor([0, 1]))
        >>> [round(x["nats"], 3) for x in found["by_position"]], found["by_prompt"][0]["prompt"]
        ([0.25, 0.15], 0)
        >>> [(x["token"], x["count"]) for x in found["by_token"]]
        [('5', 2), ('6', 1)]
    """
    count = len(kl)
    kl, log_ratio = (torch.where(mask, x, 0.0).double() for x in (kl, log_ratio))
    prompts, of, sizes = clusters.unique(return_inverse=True, return_counts=True)
    per_prompt = torch.zeros(len(prompts), dtype=torch.double, device=kl.device)
    per_prompt = per_prompt.index_add_(0, of, kl.sum(-1)) / sizes
    ids, at, counts = tokens[mask].unique(return_inverse=True, return_counts=True)
    per_token = torch.zeros(len(ids), dtype=torch.double, device=kl.device)
    per_token = per_token.index_add_(0, at, log_ratio[mask]) / count
    return {
        "by_position": [
            {"position": t, "nats": float(nats), "count": int(n)}
            for t, (nats, n) in enumerate(zip(kl.sum(0) / count, mask.sum(0), strict=True))
        ],
        "by_prompt": [
            {"prompt": int(prompts[i]), "nats": float(per_prompt[i]), "count": int(sizes[i])}
            for i in per_prompt.argsort(descending=True, stable=True)[:top].tolist()
        ],
        "by_token": [
            {"token": name(int(ids[i])), "nats": float(per_token[i]), "count": int(counts[i])}
            for i in per_token.abs().argsort(descending=True, stable=True)[:top].tolist()
        ],
    }
