"""A fault that reward says nothing of, on a problem that can be enumerated: where a leashed policy ends with it.

The set B of faulty responses is a union of whole responses, so that of the optimum π* = π_ref exp(R/β)/Z

    logit π*(B) = logit π_ref(B) + log E_ref[e^{R/β} | B] − log E_ref[e^{R/β} | not B].

Where R does not depend on the fault the last two cancel, at every β; a penalty D on B leaves −D/β.
"""

import math

import torch
from torch import Tensor

from kleash.lab.mdp import MDP


def with_fault(mdp: MDP, share: float, penalty: float = 0.0) -> MDP:
    """A problem with one token more, the first, which decides the fault and nothing else.

    Args:
        mdp: what follows, whatever that token is.
        share: π_ref(B), of the token 0; the others have the rest alike.
        penalty: D, taken off the reward of B.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> mdp = with_fault(golden(), 0.3)
        >>> mdp.length, mdp.num_sequences, round(fault_share(mdp, mdp.ref_logits), 10)
        (5, 32768, 0.3)
    """
    others = [(1 - share) / (mdp.vocab - 1)] * (mdp.vocab - 1)
    rows = [torch.tensor([[share, *others]], dtype=torch.double).log()]
    first = 0
    for depth in range(mdp.length):
        count = mdp.vocab**depth
        rows.append(mdp.ref_logits[first : first + count].repeat(mdp.vocab, 1))
        first += count
    rewards = mdp.rewards.repeat(mdp.vocab)
    rewards[: mdp.num_sequences] -= penalty
    return MDP(mdp.vocab, mdp.length + 1, torch.cat(rows), rewards)


def fault_share(mdp: MDP, logits: Tensor) -> float:
    """π(B) of a policy, by enumeration: all sequences that begin with 0.

    Args:
        mdp: of `with_fault`.
        logits: [S, V].
    """
    law = mdp.logprobs(logits.double()).sum(-1).exp()
    return float(law[: mdp.num_sequences // mdp.vocab].sum())


def leashed_share(share: float, penalty: float, beta: float) -> float:
    """π*(B) from π_ref(B) where a penalty D is on B: logit π*(B) = logit π_ref(B) − D/β.

    Examples:
        >>> round(leashed_share(0.3, 0.5, 0.2), 4)
        0.034
    """
    return 1 / (1 + math.exp(penalty / beta) * (1 - share) / share)


def halving_penalty(share: float, beta: float) -> float:
    """The D that halves π_ref(B): β log((2 − p)/(1 − p)).

    Examples:
        >>> round(leashed_share(0.3, halving_penalty(0.3, 0.2), 0.2), 10)
        0.15
    """
    return beta * math.log((2 - share) / (1 - share))
