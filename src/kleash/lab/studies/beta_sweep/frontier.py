"""The arms of a sweep over β beside what their KL could have bought: the frontier, by samples of the reference."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from kleash.lab.studies.beta_sweep.findings import Arms, Ended
from kleash.lab.study.findings import Claim, Table, decide, decide_all
from kleash.lab.study.many import together
from kleash.lab.study.reach import Reach
from kleash.lab.study.statistics import cells, estimate, geometric, mean

HALF = 0.5
Reaches = Sequence[Reach]
"""One a seed."""


def frontier_claims(arms: Arms, reaches: Reaches) -> list[Claim]:
    """Whether any arm is above what its KL can buy, and how near the one of least KL comes."""
    # As shares: of an arm without a penalty the KL, and with it the distance, differs tenfold from seed to seed.
    missing = [_missing(shares(group, reaches)[0]) for group in arms.values()]
    if not any(estimate(each) for each in missing):
        return []
    mildest = min(arms, key=lambda hold: fmean(each.kl for each in arms[hold]))
    return [
        decide_all(
            "no arm is above the frontier",
            together(missing),
            (
                "Every arm has less reward than the most that its KL could buy.",
                "Some arm has the most reward that its KL could buy or more: samples make too little of it, or "
                "something is measured wrongly.",
                "Whether every arm has less reward than its KL could buy is open: of some the interval reaches to it.",
            ),
            unit="of what it could buy missing, of all arms at once",
        ),
        _half(mildest.name, arms[mildest], reaches),
        decide(
            f"less than √(2 Var KL): {mildest.name}",
            estimate(_missing(root_laws(arms[mildest], reaches))),
            (
                f"{mildest.name} gains less than √(2 Var KL), which an optimum of Gaussian reward gains.",
                f"{mildest.name} gains √(2 Var KL) or more, which an optimum of Gaussian reward gains: its reward has "
                "a heavier tail, or something is measured wrongly.",
                f"Whether {mildest.name} gains less than √(2 Var KL) is open.",
            ),
            unit="of it missing",
        ),
    ]


def _half(name: str, group: Sequence[Ended], reaches: Reaches) -> Claim:
    """More than half only where the least share is, and no more only where the greatest isn't."""
    least, most = (estimate(each) for each in shares(group, reaches))
    holds = None
    if least is not None and least.is_above(HALF):
        holds = True
    elif most is not None and most.is_above(HALF) is False:
        holds = False
    says = {
        True: f"{name}, the arm of least KL, gains more than half of what its KL could buy.",
        False: f"{name}, the arm of least KL, gains no more than half of what its KL could buy.",
        None: f"Whether {name}, the arm of least KL, gains half of what its KL could buy is open.",
    }[holds]
    shown = most if holds is False else least
    unit = "of it, at most" if holds is False else "of it, at least"
    return Claim(
        name=f"half of what KL can buy: {name}", says=says, holds=holds, estimate=shown, unit=unit
    )


def objective_claims(arms: Arms, reaches: Reaches) -> list[Claim]:
    """Whether what an arm gained is worth its KL at its own β: J = E[R] − β KL against the reference's."""
    return [
        decide(
            f"worth its KL: {hold.name}",
            estimate(objectives(hold.beta, group, reaches)),
            (
                f"By its own objective {hold.name} is better than the reference.",
                f"By its own objective {hold.name} is no better than the reference: its KL cost more than it bought.",
                f"Whether {hold.name} is better than the reference by its own objective is open.",
            ),
            unit="proxy reward",
        )
        for hold, group in arms.items()
        if hold.beta
    ]


def objectives(beta: float | None, group: Sequence[Ended], reaches: Reaches) -> list[float | None]:
    """Of each seed, the gain in proxy reward less β KL; None of an arm that no β was held for."""
    return [
        None if beta is None else gain - beta * each.kl
        for gain, each in zip(gains(group, reaches), group, strict=True)
    ]


def gains(group: Sequence[Ended], reaches: Reaches) -> list[float]:
    """Of each seed, the proxy reward over that of the reference."""
    return [each.reward - near.floor for each, near in zip(group, reaches, strict=True)]


def shares(
    group: Sequence[Ended], reaches: Reaches
) -> tuple[list[float | None], list[float | None]]:
    """Of each seed, the gain in proxy reward over the most that its KL can buy, at least and at most.

    The two are one where samples reach. Beyond, the least is of the tangent, which no policy exceeds, and the greatest
    of the last tilt: above 1 it says nothing.
    """

    def share(most: Callable[[Reach, float], float | None]) -> list[float | None]:
        return _each(
            lambda each, near: (
                None
                if (top := most(near, each.kl)) is None or top <= near.floor
                else (each.reward - near.floor) / (top - near.floor)
            ),
            group,
            reaches,
        )

    return share(Reach.most), share(Reach.least)


def root_laws(group: Sequence[Ended], reaches: Reaches) -> list[float | None]:
    """Of each seed, the gain in proxy reward over √(2 Var KL), with the variance of the reference."""
    return _each(
        lambda each, near: (
            (each.reward - near.floor) / math.sqrt(2 * near.variance * each.kl)
            if each.kl > 0 and near.variance > 0
            else None
        ),
        group,
        reaches,
    )


def _missing(found: Sequence[float | None]) -> list[float | None]:
    return [None if x is None else 1 - x for x in found]


def _each(
    figure: Callable[[Ended, Reach], float | None], group: Sequence[Ended], reaches: Reaches
) -> list[float | None]:
    return [figure(each, near) for each, near in zip(group, reaches, strict=True)]


def arms_table(arms: Arms, reaches: Reaches) -> Table:
    """Every arm, where it ends."""
    rows = [
        (
            hold.name,
            *cells(geometric([each.kl for each in group])),
            mean([each.reward for each in group]),
            *cells(estimate([each.gold for each in group])),
            *(mean(each) for each in shares(group, reaches)),
            mean(root_laws(group, reaches)),
            mean(objectives(hold.beta, group, reaches)),
            mean([each.growth for each in group]),
        )
        for hold, group in arms.items()
    ]
    farthest = [near.last for near in reaches if near.last is not None]
    shown = f"{min(farthest):.2g} nats" if farthest else "no KL at all"
    return Table(
        title="Where the arms end",
        columns=(
            *("arm", "KL, nats", "KL low", "KL high", "proxy", "gold", "gold low", "gold high"),
            *("share of what KL can buy, at least", "at most", "of √(2 Var KL)"),
            *("proxy gain less β KL", "growth of KL"),
        ),
        rows=tuple(rows),
        note="Means over seeds (of KL the geometric) with 95 % intervals: the final policy on fresh responses to the "
        "prompts of the frontier. An average over the last steps would be of as many policies as steps, and of no "
        "one's KL. Growth is of the mean KL of the run's last quarter over the one before: an arm above 0 is not at "
        f"rest, and its place is of so many steps. Samples show the frontier to {shown}; beyond, a share lies between "
        "the two, of which one above 1 says nothing.",
    )
