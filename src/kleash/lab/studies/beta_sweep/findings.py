"""What the arms of a sweep over β show by themselves: whether they are at rest, and how KL and gold answer to β."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from kleash.lab.arms.sweep import Hold
from kleash.lab.study.findings import Claim, Table, decide
from kleash.lab.study.statistics import Estimate, cells, estimate

PARTS = 4
"""Of a run: its last part is compared with the one before to see whether it has come to rest."""
SLACK = 0.15
"""Relative error within which the slope of KL is what the formula says (A19)."""


class Ended(NamedTuple):
    """Where an arm of one seed ends, on fresh responses, and how it got there."""

    kl: float
    reward: float
    gold: float
    variance: float | None
    """Of the reward about each prompt's mean, over the last part of the run."""
    growth: float | None
    """Of the mean KL from the last part but one to the last, relative: 0 of an arm that has come to rest."""


Arms = Mapping[Hold, Sequence[Ended]]


def ended(result: Mapping[str, Any]) -> Ended:
    """By what `train_arm` gives."""
    end, steps = result["end"], result["steps"]
    size = max(1, len(steps) // PARTS)
    last, before = steps[-size:], steps[-2 * size : -size]
    spreads = [row["reward_std"] ** 2 for row in last if row["reward_std"] is not None]
    kl, kl_before = (fmean(row["kl"] for row in part) if part else 0.0 for part in (last, before))
    return Ended(
        kl=end["kl"],
        reward=end["reward"],
        gold=end["gold"],
        variance=fmean(spreads) if spreads else None,
        growth=kl / kl_before - 1 if kl_before > 0 else None,
    )


def rest_claims(arms: Arms) -> list[Claim]:
    """Whether each arm is still on its way when it ends; one without a penalty has nowhere to come to rest."""
    return [
        decide(
            f"still on its way: {hold.name}",
            estimate([each.growth for each in group]),
            (
                f"The KL of {hold.name} is still rising when the run ends: longer, it goes farther.",
                f"The KL of {hold.name} no longer rises when the run ends.",
                f"Whether the KL of {hold.name} still rises when the run ends is open.",
            ),
            unit="of the KL",
        )
        for hold, group in arms.items()
    ]


class Slope(NamedTuple):
    """How KL, and gold, answer to β between two of them."""

    low: float
    high: float
    """β."""
    measured: Estimate | None
    """Δ log KL/Δ log β."""
    formula: Estimate | None
    """−Var/(β² KL) by what the runs were, the mean of both ends."""
    ratio: Estimate | None
    """Of the two, seed by seed."""
    gold: Estimate | None
    """Change of the gold reward from the larger β to the smaller."""


def slopes(arms: Arms) -> list[Slope]:
    """Of neighbouring β above 0."""
    by_beta = {hold.beta: group for hold, group in arms.items() if hold.beta}
    return [_slope(low, high, by_beta) for low, high in pairwise(sorted(by_beta))]


def _slope(low: float, high: float, by_beta: Mapping[float, Sequence[Ended]]) -> Slope:
    measured, formula, gold = list[float | None](), list[float | None](), list[float | None]()
    for a, b in zip(by_beta[low], by_beta[high], strict=True):
        is_known = a.kl > 0 and b.kl > 0
        measured.append(math.log(b.kl / a.kl) / math.log(high / low) if is_known else None)
        ends = [_sensitivity(a, low), _sensitivity(b, high)]
        known = [each for each in ends if each is not None]
        formula.append(fmean(known) if len(known) == 2 else None)
        gold.append(a.gold - b.gold)
    ratio = [x / y if x is not None and y else None for x, y in zip(measured, formula, strict=True)]
    return Slope(low, high, estimate(measured), estimate(formula), estimate(ratio), estimate(gold))


def _sensitivity(end: Ended, beta: float) -> float | None:
    if end.variance is None or end.kl <= 0:
        return None
    return -end.variance / (beta * beta * end.kl)


def slope_claims(found: Sequence[Slope]) -> list[Claim]:
    """Whether KL answers to β as it would on the frontier."""
    claims: list[Claim] = []
    for each in found:
        between = f"Between β = {each.low:g} and {each.high:g}"
        holds = _agrees(each.ratio)
        says = {
            True: f"{between} KL answers to β as the spread of the reward says that an optimum's does.",
            False: f"{between} KL does not answer to β as an optimum's does: these arms are not on the frontier, or "
            "not at rest.",
            None: f"{between} it is open whether KL answers to β as an optimum's does.",
        }[holds]
        name = f"KL answers to β: {each.low:g} to {each.high:g}"
        unit = "of −Var/(β² KL)"
        claims.append(Claim(name=name, says=says, holds=holds, estimate=each.ratio, unit=unit))
    return claims


def _agrees(ratio: Estimate | None) -> bool | None:
    """Whether a ratio is 1 within the slack, as its interval decides it."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return None
    if ratio.low >= 1 - SLACK and ratio.high <= 1 + SLACK:
        return True
    return False if ratio.high < 1 - SLACK or ratio.low > 1 + SLACK else None


def slopes_table(found: Sequence[Slope]) -> Table:
    """How KL and gold answer to β."""
    rows = [
        (each.low, each.high, *cells(each.measured), *cells(each.formula), *cells(each.gold))
        for each in found
    ]
    return Table(
        title="How the outcome answers to β",
        columns=(
            *("β from", "to", "Δ log KL/Δ log β", "its low", "its high"),
            *("−Var/(β² KL)", "formula low", "formula high"),
            *("gold at the smaller less at the larger", "gold low", "gold high"),
        ),
        rows=tuple(rows),
        note="The formula is of an optimum, with each run's own KL and spread of reward, the mean of both ends.",
    )
