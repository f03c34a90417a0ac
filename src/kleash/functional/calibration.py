"""Whether predictions can be believed: intervals, calibration and correlation."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Proportion(NamedTuple):
    """A proportion and the ends of its confidence interval."""

    value: float
    low: float
    high: float


class ReliabilityBin(NamedTuple):
    """What the predictions in [low, high) promised and kept; the last bin holds `high` too."""

    low: float
    high: float
    num: int
    """Predictions in the bin."""
    confidence: float | None
    """Mean predicted probability; None in an empty bin."""
    accuracy: float | None
    """Mean outcome; None in an empty bin."""


def wilson_interval(
    successes: float | int, trials: int, *, level: float = 0.95
) -> Proportion | None:
    """Wilson's interval for a proportion p = k/n: it stays in [0, 1] and is honest at its ends.

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n), z the normal quantile. Wilson (1927), eq. 6.

    Args:
        successes: k; a tie may count as a half.
        trials: n, independent trials.
        level: confidence level in (0, 1).

    Returns:
        The proportion with its interval; None without trials.

    Examples:
        >>> wilson_interval(8, 10)
        Proportion(value=0.8, low=0.490162, high=0.943318)
    """
    if trials == 0:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, shrink = successes / trials, 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2) / shrink
    # At p = 0 and p = 1 an end is exactly p; rounding may put it beyond.
    return Proportion(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def reliability_curve(
    probabilities: Float[Tensor, " N"],
    outcomes: Float[Tensor, " N"],
    *,
    num_bins: int = 10,
    low: float = 0.0,
    high: float = 1.0,
) -> list[ReliabilityBin]:
    """Mean prediction against mean outcome in bins of equal width. Guo et al. (2017), section 2.

    Args:
        probabilities: predicted, each in [low, high].
        outcomes: 1 where the prediction came true, 0 where not, 0.5 for a tie.
        num_bins: number of bins.
        low: lower end of the first bin: 0.5 for the confidence of a two-way choice.
        high: upper end of the last bin.

    Returns:
        `num_bins` bins, the lowest first.

    Examples:
        >>> p, outcome = torch.tensor([0.9, 0.7, 0.8]), torch.tensor([1.0, 0.0, 1.0])
        >>> curve = reliability_curve(p, outcome, num_bins=2)
        >>> curve[1].num, curve[1].confidence, curve[1].accuracy
        (3, 0.8, 0.666667)
        >>> curve[0]
        ReliabilityBin(low=0.0, high=0.5, num=0, confidence=None, accuracy=None)
    """
    p, outcome = probabilities.double(), outcomes.double()
    edges = [low + (high - low) * k / num_bins for k in range(num_bins + 1)]
    index = ((p - low) / (high - low) * num_bins).floor().long().clamp(0, num_bins - 1)
    curve: list[ReliabilityBin] = []
    for k in range(num_bins):
        inside = index == k
        count = int(inside.sum())
        confidence = float(p[inside].mean()) if count else None
        accuracy = float(outcome[inside].mean()) if count else None
        curve.append(ReliabilityBin(edges[k], edges[k + 1], count, confidence, accuracy))
    return curve


def expected_calibration_error(curve: list[ReliabilityBin]) -> float | None:
    """Expected calibration error: how far predictions miss on average. Guo et al. (2017), eq. 5.

    ECE = Σ_b (n_b/N)·|accuracy_b − confidence_b|, over the bins b.

    Args:
        curve: from `reliability_curve`.

    Returns:
        A number in [0, 1]; None when the curve has no predictions in it.

    Examples:
        >>> low, high = ReliabilityBin(0.0, 0.5, 1, 0.3, 0.0), ReliabilityBin(0.5, 1.0, 3, 0.8, 1.0)
        >>> expected_calibration_error([low, high])
        0.225
        >>> expected_calibration_error([]) is None
        True
    """
    total = sum(each.num for each in curve)
    if total == 0:
        return None
    gaps = (
        each.num * abs(each.accuracy - each.confidence)
        for each in curve
        if each.accuracy is not None and each.confidence is not None
    )
    return sum(gaps) / total


def pearson(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> float | None:
    """Pearson's r = Σ(x−x̄)(y−ȳ) / √(Σ(x−x̄)²·Σ(y−ȳ)²).

    Args:
        x: one number per item.
        y: another number per item.

    Returns:
        A number in [−1, 1]; None when either does not vary, for then there is nothing to correlate.

    Examples:
        >>> pearson(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 5.0]))
        0.831522
        >>> pearson(torch.tensor([1.0, 2.0]), torch.tensor([7.0, 7.0])) is None
        True
    """
    if x.numel() < 2 or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return None
    dx, dy = x.double() - x.double().mean(), y.double() - y.double().mean()
    # Normed one by one: the product of two sums of squares can underflow.
    r = float((dx / torch.linalg.vector_norm(dx)) @ (dy / torch.linalg.vector_norm(dy)))
    return max(-1.0, min(1.0, r))
