"""Confidence intervals for means of clustered data: several responses to one prompt are not independent."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor

FEWEST_BEYOND = 5
"""Values that have to be expected beyond a quantile for an interval of it."""


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval; the ends are None when there are fewer than two clusters."""

    value: float
    low: float | None
    high: float | None


def clustered_mean(
    totals: Float[Tensor, " B"],
    weights: Float[Tensor, " B"],
    clusters: Int[Tensor, " B"],
    *,
    level: float = 0.95,
) -> Interval:
    """The ratio mean Σx/Σw with a cluster-robust Student-t interval.

    Linearised: with residuals e_i = x_i − m·w_i summed to E_c over the C clusters,
    Var(m) = C/(C−1) · Σ_c E_c² / (Σw)², and t has C − 1 degrees of freedom. With w = 1 it is a mean per response,
    with w = token counts a mean per token.

    Args:
        totals: x_i, one total per response.
        weights: w_i, what the total is per.
        clusters: which prompt each response belongs to.
        level: confidence level.

    Examples:
        >>> mean = clustered_mean(torch.tensor([1.0, 3.0]), torch.ones(2), torch.tensor([0, 1]))
        >>> mean.value, round(mean.low, 3), round(mean.high, 3)
        (2.0, -10.706, 14.706)
    """
    totals, weights = totals.double(), weights.double()
    weight = weights.sum()
    mean = totals.sum() / weight
    _, index = clusters.unique(return_inverse=True)
    count = int(index.max()) + 1
    if count < 2:
        return Interval(float(mean), None, None)
    residuals = torch.zeros(count, dtype=torch.double, device=totals.device)
    residuals.index_add_(0, index, totals - mean * weights)
    variance = count / (count - 1) * residuals.square().sum() / weight.square()
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * math.sqrt(float(variance))
    return Interval(float(mean), float(mean) - half, float(mean) + half)


def clustered_quantile(
    values: Float[Tensor, " N"],
    clusters: Int[Tensor, " N"],
    share: float,
    *,
    level: float = 0.95,
) -> Interval:
    """The value that a share of all lies at or below, with a cluster-robust interval.

    Woodruff (1952, JASA 47:635): the interval of the share that lies at or below the quantile found is as one for a
    mean, and its ends are read back as quantiles. There is none where fewer than `FEWEST_BEYOND` values are expected
    on the quantile's shorter side: its end would be the last value seen, whatever lies beyond.

    Args:
        values: of any unit.
        clusters: which prompt each belongs to.
        share: 0 to 1.
        level: confidence level.

    Examples:
        >>> found = clustered_quantile(torch.arange(100.0), torch.arange(100), 0.5)
        >>> found.value, found.low, found.high
        (49.0, 40.0, 59.0)
    """
    ordered = values.double().sort().values

    def at(wanted: float) -> float:
        rank = math.ceil(min(1.0, max(0.0, wanted)) * len(ordered))
        return float(ordered[max(1, rank) - 1])

    value = at(share)
    if min(share, 1 - share) * len(ordered) < FEWEST_BEYOND:
        return Interval(value, None, None)
    below = (values.double() <= value).double()
    found = clustered_mean(below, torch.ones_like(below), clusters, level=level)
    if found.low is None or found.high is None:
        return Interval(value, None, None)
    half = (found.high - found.low) / 2
    return Interval(value, at(share - half), at(share + half))
