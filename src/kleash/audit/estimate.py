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
        js=_js_of_responses(policy, reference),
        js_token=_js_of_tokens(policy, reference),
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
        "kl_per_token": _tail(stream.read.kl.double(), of_token, "token"),
        "log_ratio_per_token": _tail(u, of_token, "token"),
        "log_ratio_per_response": _tail(stream.totals(u), stream.prompt, "response"),
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


def _js_of_responses(policy: Stream, reference: Stream) -> Estimate:
    """Jensen-Shannon of whole responses, from two estimates of it that are both unbiased.

    Along a response Σ KL(q‖mixture) is the quieter one where the models are close, log 2 − log(1 + P/Q) of the whole
    response where they are far apart. Their difference is 0 on average, and as much of it is added as leaves least
    variance between prompts. Half of each model's mean, as there are as many responses of both.
    """
    sides = policy, reference
    along = torch.cat([side.totals(side.read.to_mixture) for side in sides])
    whole = torch.cat(
        [math.log(2) - torch.nn.functional.softplus(-side.totals(side.log_ratio)) for side in sides]
    )
    prompts = torch.cat([side.prompt for side in sides])
    difference = whole - along
    mixed = along + least_variance(along, difference, prompts) * difference
    return _estimate(mixed, torch.ones_like(mixed), prompts, "response", most=math.log(2))


FEW = 8
"""Clusters below which no share of a noise can be told from them."""


def least_variance(values: Tensor, noise: Tensor, clusters: Tensor) -> Tensor:
    """How much of a noise with mean 0 to add for the mean of both to vary least between clusters: −cov/var, 0 to 1.

    Each cluster's is told from the others: told from itself too, it would make the clusters look more alike than
    they are. Of fewer than `FEW` it is 0.

    Returns:
        [B], for each value that of its cluster.

    Examples:
        >>> x, clusters = torch.tensor([1.0, 3.0, 2.0]).repeat(3), torch.arange(9)
        >>> least_variance(x, 2.0 - x, clusters).unique(), least_variance(x, x, clusters).unique()
        (tensor([1.]), tensor([0.]))
    """
    names, of = clusters.unique(return_inverse=True)
    blank = torch.zeros(len(names), dtype=torch.double)
    one, other = (
        blank.index_add(0, of, (x - x.mean()).double()) if len(names) >= FEW else blank
        for x in (values, noise)
    )
    together = (one * other).sum() - one * other
    spread = other.square().sum() - other.square()
    share = torch.where(spread > 0, -together / spread.clamp(min=1e-300), 0.0).clamp(0, 1)
    return share[of].to(values.dtype)


def _js_of_tokens(policy: Stream, reference: Stream) -> Estimate:
    """Of next-token distributions, at the states of both."""
    sides = policy, reference
    totals = torch.cat([side.totals(side.read.jensen_shannon) for side in sides])
    lengths = torch.cat([side.lengths for side in sides]).double()
    prompts = torch.cat([side.prompt for side in sides])
    return _estimate(totals, lengths, prompts, "token", most=math.log(2))


def _per_token(stream: Stream) -> Estimate:
    totals = stream.totals(stream.read.entropy)
    return _estimate(totals, stream.lengths.double(), stream.prompt, "token")


def _length(stream: Stream) -> Estimate:
    lengths = stream.lengths.double()
    return _estimate(lengths, torch.ones_like(lengths), stream.prompt, "response")


def _estimate(
    totals: Tensor, weights: Tensor, clusters: Tensor, unit: Unit, *, most: float = math.inf
) -> Estimate:
    """A mean of what is never negative, and never above `most`: the ends of its interval are cut there, it is not."""
    found = clustered_mean(totals, weights, clusters)
    return Estimate(
        value=found.value,
        low=None if found.low is None else min(found.value, max(found.low, 0.0)),
        high=None if found.high is None else max(found.value, min(found.high, most)),
        n=len(totals),
        clusters=int(clusters.unique().numel()),
        unit=unit,
    )


def _tail(values: Tensor, clusters: Tensor, unit: Unit) -> Tail:
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
