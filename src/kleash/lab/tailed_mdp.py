"""A problem that can be enumerated and whose proxy reward has a heavy tail: what training makes of it is exact."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.chi_squared import chi_squared_tilt
from kleash.lab.mdp import MDP

VOCAB, LENGTH = 4, 3


class Tailed(NamedTuple):
    """The problem, whose rewards are the proxy, and what its sequences are really worth."""

    mdp: MDP
    gold: Tensor
    """[N]."""


def tailed() -> Tailed:
    """64 sequences: gold √2·sin(0.7 (i + 1)), and errors that are the quantiles of Student's t₂ in Weyl's order of √2.

    No random number in it. The largest error, 7.9, is that of a sequence with a gold reward below the mean: one above
    it would be luck.

    Examples:
        >>> problem = tailed()
        >>> top = problem.mdp.rewards.argmax()
        >>> problem.mdp.rewards[top], problem.gold[top]
        (tensor(7.3220, dtype=torch.float64), tensor(-0.5840, dtype=torch.float64))
    """
    count, prefixes = VOCAB**LENGTH, (VOCAB**LENGTH - 1) // (VOCAB - 1)
    states = torch.arange(prefixes, dtype=torch.double)[:, None]
    symbols = torch.arange(VOCAB, dtype=torch.double)
    logits = torch.sin(12.9898 * (states + 1) + 78.233 * (symbols + 1))
    index = torch.arange(1, count + 1, dtype=torch.double)
    gold = math.sqrt(2) * torch.sin(0.7 * index)
    rank = (index * math.sqrt(2) % 1).argsort().argsort().double()
    quantile = (rank + 0.5) / count
    error = (2 * quantile - 1) / (2 * quantile * (1 - quantile)).sqrt()
    return Tailed(MDP(VOCAB, LENGTH, logits, gold + error), gold)


class Worth(NamedTuple):
    """Of a policy, by enumeration."""

    gold: float
    proxy: float
    kl: float
    """KL(π‖π_ref), nats per response."""


def worth(problem: Tailed, log_law: Tensor) -> Worth:
    """What a law over sequences is worth.

    Args:
        problem: of `tailed`.
        log_law: [N], log π of each sequence.
    """
    mdp, law = problem.mdp, log_law.exp()
    log_ratio = log_law - mdp.logprobs(mdp.ref_logits).sum(-1)
    gold, proxy, kl = (float(law @ x) for x in (problem.gold, mdp.rewards, log_ratio))
    return Worth(gold, proxy, kl)


def best(problem: Tailed, beta: float, *, clip: float | None, chi_squared: float) -> Worth:
    """What the policy is worth that maximises E[U, clipped] − β (KL + (c/2) χ²).

    Args:
        problem: of `tailed`.
        beta: β.
        clip: U counts between ± that; None: as it is.
        chi_squared: c.

    Examples:
        >>> cases = {"kl": (None, 0.0), "clipped": (3.0, 0.0), "chi_squared": (None, 1.0)}
        >>> [round(best(tailed(), 1.0, clip=clip, chi_squared=c).gold, 3) for clip, c in cases.values()]
        [0.172, 0.855, 0.666]
    """
    reference = problem.mdp.logprobs(problem.mdp.ref_logits).sum(-1)
    rewards = problem.mdp.rewards if clip is None else problem.mdp.rewards.clamp(-clip, clip)
    log_weights, _ = chi_squared_tilt(rewards, reference, beta, chi_squared)
    return worth(problem, reference + log_weights)
