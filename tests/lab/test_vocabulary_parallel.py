"""The reduction of docs/scaling.md: exact KL and its gradient where each rank has a piece of the vocabulary.

The law is the chain rule of relative entropy by which `functional.fused` merges the blocks of a row, one level up: nine
numbers a token from every rank, and every rank merges all of them in the same order.
"""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.functional.linear_kl import linear_kl_loss

TOKENS, VOCAB, HIDDEN = 7, 48, 5


class Part(NamedTuple):
    """What one rank sends of its columns, [N] each: nine numbers a token."""

    top: Tensor
    mass: Tensor
    """Σ e^{z − top}."""
    ref_top: Tensor
    ref_mass: Tensor
    kl: Tensor
    """Inside the piece, both distributions normalised there."""
    entropy: Tensor
    drift: Tensor
    """E_q d inside the piece."""
    logit: Tensor
    """Of the sampled token; 0 where another rank has it."""
    ref_logit: Tensor


class Merged(NamedTuple):
    """What every rank knows after one all-gather, [N] each."""

    lse: Tensor
    ref_lse: Tensor
    kl: Tensor
    entropy: Tensor
    drift: Tensor
    logprob: Tensor
    ref_logprob: Tensor


def part(z: Tensor, r: Tensor, tokens: Tensor, first: int) -> Part:
    """One rank's share, from its logits [N, V/t] of both models; its columns begin at `first`."""
    (top, mass, logq), (ref_top, ref_mass, logp) = (_normalised(x) for x in (z, r))
    here = (tokens >= first) & (tokens < first + z.shape[-1])
    at = (tokens - first).clamp(0, z.shape[-1] - 1)[:, None]
    q, d = logq.exp(), logq - logp
    logits = [torch.where(here, x.gather(-1, at)[:, 0], 0.0) for x in (z, r)]
    kl, entropy, drift = (q * (torch.expm1(-d) + d), -q * logq, q * d)
    inside = (x.sum(-1) for x in (kl, entropy, drift))
    return Part(top, mass, ref_top, ref_mass, *inside, *logits)


def _normalised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top = x.amax(-1)
    mass = (x - top[:, None]).exp().sum(-1)
    return top, mass, x - (top + mass.log())[:, None]


def merge(parts: list[Part]) -> Merged:
    """All pieces, in the order of the ranks, which is the same on each of them.

    With Q_i, P_i the masses of piece i and D_i = log(Q_i/P_i):
    KL = Σ Q_i KL_i + Σ Q_i (e^{−D_i} − 1 + D_i), H = Σ Q_i H_i − Σ Q_i log Q_i, E_q d = Σ Q_i (E_i d + D_i).
    """
    whole = Part(*(torch.stack(column) for column in zip(*parts, strict=True)))
    sizes = whole.top + whole.mass.log(), whole.ref_top + whole.ref_mass.log()
    lse, ref_lse = (x.logsumexp(0) for x in sizes)
    log_q, log_p = sizes[0] - lse, sizes[1] - ref_lse
    q, lift = log_q.exp(), log_q - log_p
    kl = (q * whole.kl + q * (torch.expm1(-lift) + lift)).sum(0)
    entropy = (q * whole.entropy - q * log_q).sum(0)
    drift = (q * (whole.drift + lift)).sum(0)
    logprob, ref_logprob = whole.logit.sum(0) - lse, whole.ref_logit.sum(0) - ref_lse
    return Merged(lse, ref_lse, kl, entropy, drift, logprob, ref_logprob)


def gradient(z: Tensor, r: Tensor, tokens: Tensor, first: int, found: Merged) -> Tensor:
    """∂(Σ KL − Σ log q_y)/∂z of one rank's columns: q (d − E_q d) − (1{y} − q), with nothing more from the others."""
    logq, logp = z - found.lse[:, None], r - found.ref_lse[:, None]
    q, d = logq.exp(), logq - logp
    chosen = torch.arange(first, first + z.shape[-1]) == tokens[:, None]
    return q * (d - found.drift[:, None]) - chosen.double() + q


@pytest.fixture
def heads() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    shapes = ((TOKENS, HIDDEN), (VOCAB, HIDDEN), (TOKENS, HIDDEN), (VOCAB, HIDDEN))
    made = [torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes]
    return *made, torch.randint(VOCAB, (TOKENS,), generator=generator)


def sharded(z: Tensor, r: Tensor, tokens: Tensor, ranks: int) -> Merged:
    width = VOCAB // ranks
    starts = range(0, VOCAB, width)
    return merge([part(z[:, i : i + width], r[:, i : i + width], tokens, i) for i in starts])


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 48])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 20.0])
def test_shards_say_what_the_whole_says(
    heads: tuple[Tensor, ...], ranks: int, scale: float
) -> None:
    hidden, weight, _, ref_weight, tokens = heads
    r = hidden @ weight.T
    z = r + scale * (hidden @ ref_weight.T)
    found = sharded(z, r, tokens, ranks)
    logq, logp = z.log_softmax(-1), r.log_softmax(-1)
    exact = reverse_kl(logq, logp)
    at = tokens[:, None]
    torch.testing.assert_close(found.kl, exact, rtol=1e-9, atol=1e-12)
    entropy = -(logq.exp() * logq).sum(-1)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logprob, logq.gather(-1, at)[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.ref_logprob, logp.gather(-1, at)[:, 0], rtol=0, atol=1e-12)
    assert (found.kl >= 0).all()


@pytest.mark.parametrize("ranks", [2, 8])
def test_the_gradient_needs_one_sum_of_hidden_states(heads: tuple[Tensor, ...], ranks: int) -> None:
    """Each rank's rows of the head get theirs alone; the hidden states' is the sum over ranks of G_i W_i."""
    hidden, weight, ref_hidden, ref_weight, tokens = heads
    z, r, width = hidden @ weight.T, ref_hidden @ ref_weight.T, VOCAB // ranks
    found = sharded(z, r, tokens, ranks)
    starts = range(0, VOCAB, width)
    pieces = [gradient(z[:, i : i + width], r[:, i : i + width], tokens, i, found) for i in starts]
    of_hidden = sum(
        (g @ weight[i : i + width] for i, g in zip(starts, pieces, strict=True)),
        torch.zeros_like(hidden),
    )
    of_weight = torch.cat([g.T @ hidden for g in pieces])

    own, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, _ = linear_kl_loss(
        own, head, ref_hidden, ref_weight, tokens, lambda x, _: x.kl - x.logprobs
    )
    loss.backward()
    torch.testing.assert_close(of_hidden, own.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_weight, head.grad, rtol=0, atol=1e-12)


def test_equal_models_are_at_zero_whatever_the_shards() -> None:
    z = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    for ranks in (1, 4, 16):
        assert (
            sharded(z, z.clone(), torch.zeros(4, dtype=torch.long), ranks).kl.tolist() == [0.0] * 4
        )


def test_two_ranks_by_hand() -> None:
    """q = (.5, .25, .25) against p = (.25, .25, .5), the first token on one rank: ¼ log 2, as .5 log 2 − .25 log 2."""
    z, r = (torch.tensor([x]).double().log() for x in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]))
    tokens = torch.tensor([0])
    parts = [part(z[:, :1], r[:, :1], tokens, 0), part(z[:, 1:], r[:, 1:], tokens, 1)]
    assert parts[0].kl.item() == 0
    inside = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    assert parts[1].kl.item() == pytest.approx(inside, abs=1e-15)
    assert merge(parts).kl.item() == pytest.approx(0.25 * math.log(2), abs=1e-15)
    assert merge(parts).logprob.item() == pytest.approx(math.log(0.5), abs=1e-15)
