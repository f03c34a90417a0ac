"""THE METER: log-probabilities in, `KLReading` out. One meter for training, audit and lab.

What it reads is never clamped, never sampled where it can be exact, and always measured, whatever β is.
"""

import torch
from torch import Tensor

from kleash.functional.intervals import clustered_mean
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
