"""What became of an arm: reward and gold reward over √KL along the way, and what it ended as; one of each a seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.functional.best_of_n import best_of_n_kl_estimate, best_of_n_reward
from kleash.lab.arms.arm import column
from kleash.lab.study.curves import Curve, curve, grid, peaks, values_at
from kleash.lab.study.findings import Mark, Series, series_of
from kleash.lab.study.statistics import estimate
from kleash.lab.study.work import Result

SEEN = 3
"""Seeds that must come to a place for it to be drawn."""


class Ends(NamedTuple):
    """What a trained policy is worth, on fresh responses."""

    proxy: float
    gold: float
    kl: float


class Arms(NamedTuple):
    """The seeds of one arm: proxy and gold reward over d = √KL along the way, and what they end as."""

    proxy: list[Curve]
    gold: list[Curve]
    ends: list[Ends]


def arms_of(runs: Sequence[Result]) -> Arms:
    """The curves and ends of the seeds of one arm."""
    proxy, gold = (
        [curve(column(run["steps"], "kl"), column(run["steps"], name)) for run in runs]
        for name in ("reward", "gold")
    )
    ends = [Ends(run["end"]["reward"], run["end"]["gold"], run["end"]["kl"]) for run in runs]
    return Arms(proxy, gold, ends)


def peak_values(arms: Arms) -> list[float | None]:
    """Gold reward of each seed where the others say that it is highest."""
    return [None if each is None else each.value for each in peaks(arms.gold)]


def band(
    name: str, curves: Sequence[Curve], colour: int, mark: Mark, reach: float = math.inf
) -> Series:
    """The mean over seeds with its interval, as far as three of them come, and a reach; of two no interval."""
    places = [d for d in grid(curves, SEEN) if d <= reach]
    found = [estimate(values) for values in values_at(curves, places)]
    return series_of(name, places, found, mark=mark, colour=colour, least=SEEN)


def best_of_n(pool: Mapping[str, Any]) -> Arms:
    """Best-of-n by each proxy of a pool, over √KL: from n = 1 to all samples.

    KL by Beirami et al.'s estimate of the responses that are chosen, not by log n − (n−1)/n, which is above it.
    """
    gold, logprobs = (torch.tensor(pool[name]).double() for name in ("gold", "logprobs"))
    most = gold.shape[-1]
    counts = sorted({round(most ** (i / 24)) for i in range(25)})
    among = torch.tensor(counts)
    proxies, golds = list[Curve](), list[Curve]()
    for scores in pool["rewards"]:
        proxy = torch.tensor(scores).double()
        told, worth = (
            tuple(best_of_n_reward(proxy, values, n=among).mean(0).tolist())
            for values in (proxy, gold)
        )
        kl = [_kl_of_best(proxy, logprobs, n) for n in counts]
        d = tuple(math.sqrt(max(each, 0.0)) for each in kl)
        proxies.append(Curve(d, told))
        golds.append(Curve(d, worth))
    ends = [Ends(p.end, g.end, g.d[-1] ** 2) for p, g in zip(proxies, golds, strict=True)]
    return Arms(proxies, golds, ends)


def _kl_of_best(proxy: Tensor, logprobs: Tensor, n: int) -> float:
    """KL of best-of-n, nats: Beirami et al.'s estimate of what is chosen, over every choice of n, mean over prompts."""
    estimates = best_of_n_kl_estimate(logprobs, n)
    return float(best_of_n_reward(proxy, estimates, n=torch.tensor([n])).mean())
