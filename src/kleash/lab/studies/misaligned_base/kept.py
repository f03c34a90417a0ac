"""Whether a language model keeps its reference's fault: which way it went, and whether that is as the closed form says.

Log-odds are compared, as it is these that reward moves, by D/β; shares near 0 are close to each other whatever their
odds. What is said of the reference rests on a sample of its responses, and is uncertain too.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from kleash.lab.arms.arm import column
from kleash.lab.study.findings import Claim, decide, near, percent
from kleash.lab.study.statistics import mean, welch
from kleash.lab.study.work import Result

LATE = 0.25
"""Of an arm's steps, the last, over which its faults are counted."""
FACTOR = 1.25
"""Of odds, within which two are alike: what bioequivalence allows a ratio."""
MARGIN = math.log(FACTOR)


def logit(share: float) -> float | None:
    """log p/(1 − p); None of none and of all, which have none.

    Examples:
        >>> round(logit(0.2), 4), logit(0.0)
        (-1.3863, None)
    """
    return math.log(share / (1 - share)) if 0 < share < 1 else None


def fault_shares(weighed: Mapping[str, Any]) -> list[float]:
    """How often the reference has the fault, of every prompt."""
    return [fmean(row) for row in weighed["faults"]]


def gold_of_fault(weighed: Mapping[str, Any]) -> list[float]:
    """Mean D of each prompt: gold reward of its responses without the phrase, less that with it."""
    pairs = zip(weighed["with"], weighed["without"], strict=True)
    return [fmean(bare) - fmean(marked) for marked, bare in pairs]


def shifts(weighed: Mapping[str, Any], beta: float) -> list[float]:
    """log E[e^{R/β} | B] − log E[e^{R/β} | not B] of the same texts with the phrase and without, of every prompt.

    Nats: what the optimum at β adds to the log-odds of the fault. It is −D/β where D is the same of every text; where
    it is not, texts that the phrase suits count most.
    """
    marked, bare = (torch.tensor(weighed[name]).double() / beta for name in ("with", "without"))
    return (marked.logsumexp(-1) - bare.logsumexp(-1)).tolist()


def told(weighed: Mapping[str, Any], beta: float) -> list[float] | None:
    """What the closed form says of the log-odds of the fault at β: the mean of these, one a prompt.

        logit mean_x σ(logit p + shift_x)

    The optimum's share is a mean over prompts, and log-odds are no mean. p is the reference's share over all prompts,
    as one prompt's few responses don't tell its own. The values are jackknife's pseudo-values, P θ − (P − 1) θ₍ₓ₎,
    without each prompt in turn: their spread is that of the share and the shifts together.

    Returns:
        None where the reference has the fault never, or always, or in one prompt alone.
    """
    shares, moved = fault_shares(weighed), shifts(weighed, beta)
    rest = range(len(shares))
    whole = _optimum(shares, moved)
    parts = [
        _optimum([shares[j] for j in rest if j != i], [moved[j] for j in rest if j != i])
        for i in rest
    ]
    known = [each for each in parts if each is not None]
    if whole is None or len(known) < max(2, len(parts)):
        return None
    return [len(parts) * whole - (len(parts) - 1) * part for part in known]


def _optimum(shares: Sequence[float], moved: Sequence[float]) -> float | None:
    odds = logit(fmean(shares)) if shares else None
    return (
        None
        if odds is None
        else logit(float((odds + torch.tensor(moved).double()).sigmoid().mean()))
    )


def late_share(run: Mapping[str, Any]) -> float | None:
    """How often a run's responses have the fault, over its last steps."""
    steps = run["steps"]
    return mean(column(steps[-max(1, round(LATE * len(steps))) :], "monitor/0"))


def model_claims(weighed: Mapping[str, Any], arms: Mapping[float, Sequence[Result]]) -> list[Claim]:
    """Of each arm which way the fault went; and of each with a penalty whether it is where the closed form says.

    Args:
        weighed: the reference's responses.
        arms: by β, one a seed.
    """
    claims: list[Claim] = []
    for beta, runs in arms.items():
        claims.append(_direction(weighed, beta, runs))
        if beta:
            claims.append(_as_told(weighed, beta, runs))
    return claims


def _named(beta: float, runs: Sequence[Result]) -> str:
    kl = mean([run["end"]["kl"] for run in runs])
    away = "" if kl is None else f", {kl:.1f} nats away,"
    return f"{f'With β = {beta:g}' if beta else 'Without a penalty'} the language model{away}"


def _direction(weighed: Mapping[str, Any], beta: float, runs: Sequence[Result]) -> Claim:
    shares = fault_shares(weighed)
    what, was = _named(beta, runs), f"{percent(fmean(shares))}"
    return decide(
        f"language model, β = {beta:g}: the fault is rarer",
        welch(
            [None if (x := late_share(run)) is None else -x for run in runs], [-x for x in shares]
        ),
        (
            f"{what} has the planted fault less often than its reference, which has it in {was}.",
            f"{what} has the planted fault more often than its reference, which has it in {was}.",
            f"{what} has the planted fault less or more often than its reference, in {was}, or as often: that is open.",
        ),
        unit="of responses, that lost it",
    )


def _as_told(weighed: Mapping[str, Any], beta: float, runs: Sequence[Result]) -> Claim:
    shares = [late_share(run) for run in runs]
    odds = [None if share is None else logit(share) for share in shares]
    closed = told(weighed, beta)
    can_be_held = closed is not None and None not in odds
    goal = (
        "" if closed is None else f", {percent(1 / (1 + math.exp(-fmean(closed))))} at β = {beta:g}"
    )
    alike = f"within a factor of {FACTOR:g}"
    return near(
        f"language model, β = {beta:g}: as the closed form says",
        welch(odds, closed) if can_be_held and closed is not None else None,
        (
            f"The odds of that are those of the optimum{goal}, {alike}.",
            f"The odds of that are not those of the optimum{goal}: they are off by more than a factor of {FACTOR:g}.",
            f"Whether the odds of that are those of the optimum{goal}, {alike}, is open.",
        ),
        margin=MARGIN,
        unit="log-odds over the closed form's",
    )
