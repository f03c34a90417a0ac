"""THE METER: log-probabilities in, `KLReading` out. One meter for training, audit and lab.

What it reads is never clamped, never sampled where it can be exact, and always measured, whatever β is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.functional.intervals import clustered_mean
from kleash.functional.logprobs import entropy, log_softmax, token_logprobs
from kleash.functional.masking import masked_sum
from kleash.records import Direction, KLReading, Unit


@dataclass(frozen=True, slots=True)
class TokenDrift:
    """What the meter reads at each token, [N] each, in nats."""

    logprobs: Tensor
    """log π(y_t|h_t)."""
    ref_logprobs: Tensor
    """log π_ref(y_t|h_t)."""
    kl: Tensor
    """Exact KL(π(·|h_t) ‖ π_ref(·|h_t)), full vocabulary."""
    entropy: Tensor
    """H(π(·|h_t))."""


def token_drift(
    logits: Tensor, ref_logits: Tensor, tokens: Tensor, temperature: float = 1.0
) -> TokenDrift:
    """The drift at every token, from both models' logits at one temperature.

    Args:
        logits: [N, V] of the policy.
        ref_logits: [N, V] of the reference.
        tokens: [N], the tokens that were sampled.
        temperature: divides both.

    Examples:
        >>> logits = torch.tensor([[0.8, 0.2]]).log()
        >>> token_drift(logits, torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0])).kl
        tensor([0.1927])
    """
    logprobs = log_softmax(logits, temperature)
    ref_logprobs = log_softmax(ref_logits, temperature)
    return TokenDrift(
        logprobs=token_logprobs(logprobs, tokens),
        ref_logprobs=token_logprobs(ref_logprobs, tokens),
        kl=reverse_kl(logprobs, ref_logprobs),
        entropy=entropy(logprobs),
    )


def measure_drift(
    kl: Tensor,
    mask: Tensor,
    clusters: Tensor,
    *,
    reference: str,
    unit: Unit = "response",
    direction: Direction = "policy_ref",
) -> KLReading:
    """A reading of exact KLs per token, with an interval clustered by prompt.

    The sum over a sampled response of the exact per-token KLs is an unbiased estimate of the sequence KL (the
    Rao-Blackwell form: Amini et al. 2025, arXiv 2504.10637), as a rule with a fraction of the log-ratio's variance.

    A KL is never negative, so neither is the lower end of its interval: cutting it there costs no coverage.

    Args:
        kl: [B, T], nats.
        mask: [B, T], True at the response's own tokens.
        clusters: [B], which prompt each response answers.
        reference: what the second distribution is.
        unit: nats per `response` or per `token`.
        direction: which KL it is.

    Examples:
        >>> kl = torch.tensor([[0.1, 0.3], [0.2, 0.0]])
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> measure_drift(kl, mask, torch.tensor([0, 1]), reference="base").value  # doctest: +NUMBER
        0.30
    """
    totals = masked_sum(kl.double(), mask)
    weights = mask.sum(-1).double() if unit == "token" else torch.ones_like(totals)
    interval = clustered_mean(totals, weights, clusters)
    return KLReading(
        value=interval.value,
        low=None if interval.low is None else min(interval.value, max(interval.low, 0.0)),
        high=interval.high,
        n=len(totals),
        clusters=int(clusters.unique().numel()),
        direction=direction,
        unit=unit,
        estimator="exact",
        reference=reference,
    )
