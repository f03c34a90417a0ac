"""From two streams of tokens to figures with intervals that are clustered by prompt."""

import math
from collections.abc import Mapping

import torch
from scipy.special import stdtrit
from torch import Tensor

from kleash.audit.result import Drift, Estimate, Tail
from kleash.audit.stream import Stream
from kleash.drift import measure_drift_totals
from kleash.functional.intervals import clustered_mean, clustered_quantile
from kleash.records import Direction, KLReading, Unit

LEVELS = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
"""Quantiles of the tails."""


def measure(policy: Stream, reference: Stream, name: str) -> Drift:
    """All that is said of a set of prompts.

    Args:
        policy: responses of the policy.
        reference: responses of the reference to the same prompts, as many to each.
        name: of the reference model.
    """
    return Drift(
        reverse=_kl(policy, name, "policy_ref", "response"),
        forward=_kl(reference, name, "ref_policy", "response"),
        reverse_token=_kl(policy, name, "policy_ref", "token"),
        forward_token=_kl(reference, name, "ref_policy", "token"),
        js=_pooled(policy, reference, "to_mixture", "nats/response"),
        js_token=_pooled(policy, reference, "jensen_shannon", "nats/token"),
        entropy_policy=_per_token(policy),
        entropy_ref=_per_token(reference),
        length_policy=_length(policy),
        length_ref=_length(reference),
    )


def chosen(stream: Stream, prompts: Tensor) -> Stream:
    """The responses to some prompts.

    Args:
        stream: all responses.
        prompts: [B] bool, which of them.
    """
    kept = prompts[stream.response]
    number = prompts.long().cumsum(0) - 1
    return Stream(
        type(stream.read)(*(x[kept] for x in stream.read)),
        stream.tokens[kept],
        number[stream.response[kept]],
        stream.position[kept],
        stream.prompt[prompts],
    )


def tails(stream: Stream) -> dict[str, Tail]:
    """What a mean doesn't show, of a model's own tokens and responses.

    Returns:
        `kl_per_token`, `log_ratio_per_token` and `log_ratio_per_response`, nats; a log-ratio is that of the model that
        drew over the other.
    """
    of_token = stream.prompt[stream.response]
    u = stream.log_ratio
    return {
        "kl_per_token": _tail(stream.read.kl.double(), of_token, "nats/token"),
        "log_ratio_per_token": _tail(u, of_token, "nats/token"),
        "log_ratio_per_response": _tail(stream.totals(u), stream.prompt, "nats/response"),
    }


def width(reading: KLReading) -> float:
    """Of a reading's interval; infinite where it has none."""
    if reading.low is None or reading.high is None:
        return math.inf
    return reading.high - reading.low


def least_width(stream: Stream) -> float:
    """How wide the interval of KL per response would stay if each prompt's own mean were known exactly.

    The variance of prompts' means is that between prompts and an n-th of that within: more responses to the same
    prompts lessen the second alone. 0 where each prompt has one response, of which nothing can be told.
    """
    totals = stream.totals(stream.read.kl)
    prompts, of, sizes = stream.prompt.unique(return_inverse=True, return_counts=True)
    count = len(prompts)
    if count < 2 or int(sizes.min()) < 2:
        return 0.0
    means = torch.zeros(count, dtype=torch.double).index_add_(0, of, totals) / sizes
    within = float((totals - means[of]).square().sum() / (len(totals) - count))
    between = max(0.0, float(means.var()) - within * float((1 / sizes).mean()))
    return 2 * float(stdtrit(count - 1, 0.975)) * math.sqrt(between / count)


def _kl(stream: Stream, reference: str, direction: Direction, unit: Unit) -> KLReading:
    return measure_drift_totals(
        stream.totals(stream.read.kl),
        stream.lengths,
        stream.prompt,
        reference=reference,
        unit=unit,
        direction=direction,
    )


def _pooled(policy: Stream, reference: Stream, name: str, unit: str) -> Estimate:
    """Of both models' responses together: half of the one's mean and half of the other's, as there are as many."""
    both = [(x.totals(getattr(x.read, name)), x.lengths, x.prompt) for x in (policy, reference)]
    totals, lengths, prompts = (torch.cat(parts) for parts in zip(*both, strict=True))
    weights = lengths.double() if unit == "nats/token" else torch.ones_like(totals)
    return _estimate(totals, weights, prompts, unit)


def _per_token(stream: Stream) -> Estimate:
    totals = stream.totals(stream.read.entropy)
    return _estimate(totals, stream.lengths.double(), stream.prompt, "nats/token")


def _length(stream: Stream) -> Estimate:
    lengths = stream.lengths.double()
    return _estimate(lengths, torch.ones_like(lengths), stream.prompt, "tokens/response")


def _estimate(totals: Tensor, weights: Tensor, clusters: Tensor, unit: str) -> Estimate:
    found = clustered_mean(totals, weights, clusters)
    low = None if found.low is None else min(found.value, max(found.low, 0.0))
    return Estimate(
        value=found.value,
        low=low,  # none of these is ever negative
        high=found.high,
        n=len(totals),
        clusters=int(clusters.unique().numel()),
        unit=unit,
    )


def _tail(values: Tensor, clusters: Tensor, unit: str) -> Tail:
    count = int(clusters.unique().numel())
    quantiles: Mapping[str, Estimate] = {
        name: Estimate(
            **clustered_quantile(values, clusters, share)._asdict(),
            n=len(values),
            clusters=count,
            unit=unit,
        )
        for name, share in LEVELS.items()
    }
    return Tail(lowest=float(values.min()), quantiles=quantiles, highest=float(values.max()))
