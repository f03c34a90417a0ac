"""Two models at the states of one of them, both ways round: both KLs, Jensen-Shannon of tokens and of whole responses.

With q of the model that sampled, p of the other, d = log q − log p and e = e^d − 1, so that q − p = p e,

    KL(q‖p) = Σ q d − p e            KL(p‖q) = Σ p e − p d
    KL(q‖m) = Σ q (d − x) − (1 − w) p e,      m = w q + (1 − w) p,   x = log(m/p) = log(1 + w e)

each a sum of terms that are of second order where the two agree, which is where they would else cancel. A few rows at a
time are reduced in buffers that the next overwrite: they stay in the cache, and no page is touched for the first time.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleash.functional.chunks import BLOCK_BYTES, blocks
from kleash.functional.divergences import forward_kl, jensen_shannon, reverse_kl

_STEEP = 60.0
"""Where d is larger, e^d and what it is multiplied by leave the floats: the careful path."""
_BUFFERS = 7


class Pairwise(NamedTuple):
    """What two models say at each state, [N] each, nats."""

    logprobs: Tensor
    """log q of the token drawn."""
    other_logprobs: Tensor
    """log p of it."""
    kl: Tensor
    """Exact KL(q‖p)."""
    other_kl: Tensor
    """Exact KL(p‖q)."""
    jensen_shannon: Tensor
    """Exact, of the two next-token distributions: at most log 2."""
    to_mixture: Tensor
    """The state's part of KL(Q‖½(Q + P)) between distributions of whole responses: half of it and half of the other
    model's make their Jensen-Shannon divergence."""
    entropy: Tensor
    """H(q)."""
    other_entropy: Tensor
    """H(p)."""


def pairwise(
    logits: Float[Tensor, "N V"],
    other_logits: Float[Tensor, "N V"],
    tokens: Int[Tensor, " N"],
    starts: Bool[Tensor, " N"],
    *,
    carried: float = 0.0,
    gained: Float[Tensor, " V"] | None = None,
) -> tuple[Pairwise, float]:
    """Reads every row both ways; rows stand in the order in which their responses' tokens were drawn.

    The mixture of two distributions of responses has as its next token's, after h, w q + (1 − w) p with the weight
    w = Q(h)/(Q(h) + P(h)), which the log-ratio of the tokens before says. By the chain rule for KL the sum of
    KL(q‖that) along a response is an estimate of KL(Q‖½(Q + P)) that is never negative and of little variance where the
    two are close, where log 2 − log(1 + P/Q) of the sampled response is nearly all noise.

    Args:
        logits: of the model that sampled.
        other_logits: of the other.
        tokens: drawn.
        starts: where a response begins.
        carried: Σ log q/p of the tokens before the first row, where that goes on with a response.
        gained: to which Σ_rows (q − p) is added.

    Returns:
        The readings, and what the rows that follow are to be given as `carried`.

    Examples:
        >>> q, p = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> read, _ = pairwise(q, p, torch.tensor([0]), torch.tensor([True]))
        >>> read.kl, read.other_kl, read.jensen_shannon
        (tensor([0.1927]), tensor([0.2231]), tensor([0.0507]))
    """
    count, vocab = logits.shape
    size = max(1, min(count, BLOCK_BYTES * torch.get_num_threads() // (4 * vocab)))
    scratch = logits.new_empty(_BUFFERS, size, vocab)
    whole = logits.new_empty(len(Pairwise._fields), count)
    for rows in blocks(count, size):
        drawn = tokens[rows, None]
        own, other = scratch[:2, : len(drawn)]
        torch.log_softmax(logits[rows], -1, out=own)
        torch.log_softmax(other_logits[rows], -1, out=other)
        whole[:2, rows] = torch.stack([x.gather(-1, drawn)[:, 0] for x in (own, other)])
        ratios = whole[0, rows].double() - whole[1, rows].double()
        weights, carried = _weights(ratios, starts[rows], carried)
        whole[2:, rows] = _reduce(scratch[:, : len(drawn)], weights.to(own.dtype), gained)
    return Pairwise(*whole), carried


def _weights(log_ratios: Tensor, starts: Tensor, carried: float) -> tuple[Tensor, float]:
    """w at each row, from the log-ratios of the tokens before it in its response."""
    before: list[float] = []
    for first, ratio in zip(starts.tolist(), log_ratios.tolist(), strict=True):
        before.append(0.0 if first else carried)
        carried = before[-1] + ratio
    found = torch.tensor(before, dtype=torch.double, device=log_ratios.device)
    return found.sigmoid(), carried


def _reduce(scratch: Tensor, weights: Tensor, gained: Tensor | None) -> Tensor:
    """What is measured of some rows, [6, C], from both log-probabilities in the first two buffers."""
    own, other, d, q, p, e, x = scratch
    dot, w = torch.linalg.vecdot, weights[:, None]
    torch.sub(own, other, out=d)
    torch.exp(own, out=q)
    torch.exp(other, out=p)
    drift, back = dot(q, d), dot(p, d)
    entropies = -dot(q, own), -dot(p, other)
    odd = ~(drift.isfinite() & back.isfinite() & (d.amax(-1) < _STEEP))
    careful = _carefully(own[odd], other[odd], w[odd]) if bool(odd.any()) else None
    torch.expm1(d, out=e)
    torch.mul(p, e, out=x)
    moved = x.sum(-1)
    if gained is not None:
        gained += (q - p if careful is not None else x).sum(0)
    # 1 + w e is 1 − w at least. Where that is less than a float can tell from 0, q is nothing beside p.
    mixed = dot(q, torch.mul(e, w, out=x).clamp_(min=-1 + torch.finfo(x.dtype).eps).log1p_())
    torch.mul(e, 0.5, out=x).log1p_()
    halves = dot(q, x) + dot(p, x)
    found = torch.stack(
        [
            drift - moved,
            moved - back,
            0.5 * (drift - halves),
            drift - mixed - (1 - weights) * moved,
            *entropies,
        ]
    )
    if careful is not None:
        found[:, odd] = careful
    # What is never negative may be rounded below 0; NaN stays.
    return found.clamp_(min=0)


def _carefully(own: Tensor, other: Tensor, w: Tensor) -> Tensor:
    """The same where a token is far likelier on one side, or impossible."""
    q, p = own.exp(), other.exp()
    mixture = torch.logaddexp(w.log() + own, (1 - w).log() + other)
    return torch.stack(
        [
            reverse_kl(own, other),
            forward_kl(own, other),
            jensen_shannon(own, other),
            reverse_kl(own, mixture),
            -torch.xlogy(q, q).sum(-1),
            -torch.xlogy(p, p).sum(-1),
        ]
    )
