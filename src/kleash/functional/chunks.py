"""The machine inside `linear_kl`: a few rows of logits of two models at a time, reduced, then differentiated, in place.

For one row z of the policy and r of the reference, both after softcap and temperature, with q = softmax(z),
d = log q − log p and upstream gradients a, b, c of log q_y, KL and entropy H:

    ∂/∂z_v = a (1{v = y} − q_v)  +  b q_v (d_v − KL)  −  c q_v (log q_v + H)

KL is Σ q (e^{−d} − 1 + d), whose terms are never negative (`divergences`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.functional.logprobs import entropy as entropy_of

CHUNK_BYTES = 160 * 2**20
"""Of one buffer. Larger chunks read the heads less often; smaller ones take less memory."""
BLOCK_BYTES = 1 * 2**20
"""Of the rows that are reduced together: what stays in a cache between one pass and the next."""
TILE = 8192
"""Rows of a half-precision head that are widened together on a processor."""
_FAR = 30.0
"""Where −d is larger, q is negligible beside p and e^{−d} soon overflows: the careful path."""
_NEVER = -1e4
"""Stands for log 0 where it will only be exponentiated or multiplied by 0."""


class TokenKL(NamedTuple):
    """What the meter reads at each token, [N] each, nats."""

    logprobs: Tensor
    """log π(y_t|h_t)."""
    ref_logprobs: Tensor
    """log π_ref(y_t|h_t)."""
    kl: Tensor
    """Exact KL(π(·|h_t) ‖ π_ref(·|h_t))."""
    entropy: Tensor
    """H(π(·|h_t))."""

    @classmethod
    def empty(cls, tokens: Tensor, dtype: torch.dtype) -> "TokenKL":
        """Room for the readings of some tokens."""
        return cls(*(torch.empty(len(tokens), dtype=dtype, device=tokens.device) for _ in range(4)))


class Policy(NamedTuple):
    """What gradients flow to."""

    hidden: Tensor
    """[N, H]."""
    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""


class Constants(NamedTuple):
    """What is given beside the policy."""

    ref_hidden: Tensor
    """[N, R]."""
    ref_weight: Tensor
    """[V, R]."""
    ref_bias: Tensor | None
    tokens: Tensor
    """[N]."""
    temperature: float
    softcap: float | None
    """Of the policy's logits."""
    ref_softcap: float | None


class Gradients(NamedTuple):
    """Of the policy's three tensors; None where none is asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Chunk:
    """Some rows: first both models' logits, then log q and d, last the gradient of the policy head's output."""

    def __init__(
        self, own: Tensor, theirs: Tensor, scratch: Tensor, tokens: Tensor, given: Constants
    ) -> None:
        self.own, self.theirs, self.scratch = own, theirs, scratch
        self.tokens, self.given = tokens[:, None], given
        self.lse = torch.empty(len(own), 1, dtype=own.dtype, device=own.device)
        self.read = TokenKL.empty(tokens, own.dtype)

    def reduce(self) -> TokenKL:
        """Reads the four quantities; leaves log q and d in the buffers."""
        for rows in blocks(len(self.own), len(self.scratch)):
            z, r, tokens = self.own[rows], self.theirs[rows], self.tokens[rows]
            _bound(z, self.given.softcap, self.given.temperature)
            _bound(r, self.given.ref_softcap, self.given.temperature)
            self.lse[rows] = z.logsumexp(-1, keepdim=True)
            z -= self.lse[rows]
            r -= r.logsumexp(-1, keepdim=True)
            self.read.logprobs[rows] = z.gather(-1, tokens)[:, 0]
            self.read.ref_logprobs[rows] = r.gather(-1, tokens)[:, 0]
            self.read.kl[rows], self.read.entropy[rows] = _reduce(z, r, self.scratch[: len(z)])
        return self.read

    def differentiate(self, of_logprobs: Tensor, of_kl: Tensor, of_entropy: Tensor) -> Tensor:
        """The gradient of the head's output, [C, V], from those of the readings; in the policy's buffer."""
        with_entropy = bool(of_entropy.any())
        for rows in blocks(len(self.own), len(self.scratch)):
            z, d = self.own[rows], self.theirs[rows]
            a, b, c = (x[rows, None] for x in (of_logprobs, of_kl, of_entropy))
            slope = self._slope(z, self.lse[rows])
            q = torch.exp(z, out=self.scratch[: len(z)])
            d.sub_(self.read.kl[rows, None]).mul_(b).sub_(a)
            if with_entropy:
                d.sub_(z.add_(self.read.entropy[rows, None]).mul_(c))
            torch.mul(q, d, out=z).scatter_add_(-1, self.tokens[rows], a)
            z *= slope
        return self.own

    def _slope(self, logprobs: Tensor, lse: Tensor) -> Tensor | float:
        """The derivative of a logit by the head's output: (1 − tanh²)/τ."""
        temperature, softcap = self.given.temperature, self.given.softcap
        if softcap is None:
            return 1 / temperature
        return (1 - ((logprobs + lse) * (temperature / softcap)).square()) / temperature


def chunks(policy: Policy, given: Constants) -> Iterator[tuple[slice, Chunk]]:
    """Every row once, some at a time, in two buffers that the next rows overwrite."""
    count, vocab = len(policy.hidden), len(policy.weight)
    dtype = wide(policy.hidden.dtype)
    row_bytes = vocab * dtype.itemsize
    size = max(1, min(count, CHUNK_BYTES // row_bytes))
    block = max(1, min(size, BLOCK_BYTES // row_bytes))
    own, theirs, scratch = (
        torch.empty(n, vocab, dtype=dtype, device=policy.hidden.device) for n in (size, size, block)
    )
    for rows in blocks(count, size):
        part = rows.stop - rows.start
        _product(policy.hidden[rows], policy.weight, policy.bias, own[:part])
        _product(given.ref_hidden[rows], given.ref_weight, given.ref_bias, theirs[:part])
        yield rows, Chunk(own[:part], theirs[:part], scratch, given.tokens[rows], given)


def blocks(count: int, size: int) -> Iterator[slice]:
    """0 … count in pieces of `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 where that is what came in."""
    return torch.promote_types(dtype, torch.float32)


def accumulate(grads: Gradients, rows: slice, of_product: Tensor, policy: Policy) -> None:
    """Adds what some rows contribute: G W to hidden, Gᵀ h to the weight."""
    if grads.hidden is not None:
        if policy.weight.dtype == of_product.dtype:
            torch.mm(of_product, policy.weight, out=grads.hidden[rows])
        else:
            for tile in blocks(len(policy.weight), TILE):
                grads.hidden[rows].addmm_(
                    of_product[:, tile], policy.weight[tile].to(of_product.dtype)
                )
    if grads.weight is not None:
        grads.weight.addmm_(of_product.t(), policy.hidden[rows].to(of_product.dtype))
    if grads.bias is not None:
        grads.bias.add_(of_product.sum(0))


def _reduce(logprobs: Tensor, ref_logprobs: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """KL and entropy of some rows; overwrites the reference's with d = log q − log p."""
    log_ratio = torch.sub(logprobs, ref_logprobs, out=scratch)
    if not bool(log_ratio.amin() > -_FAR):
        return _reduce_far(logprobs, ref_logprobs)
    log_ratio = ref_logprobs.copy_(log_ratio)
    probs = torch.exp(logprobs, out=scratch)
    entropy = -torch.linalg.vecdot(probs, logprobs)
    terms = torch.neg(log_ratio).expm1_().add_(log_ratio)
    return torch.linalg.vecdot(probs, terms), entropy


def _reduce_far(logprobs: Tensor, ref_logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The same where q vanishes beside p, or is 0: limits instead of 0 · inf, for the gradient that follows too."""
    kl, entropy = reverse_kl(logprobs, ref_logprobs), entropy_of(logprobs)
    log_ratio = torch.where(logprobs.exp() > 0, logprobs - ref_logprobs, 0.0)
    ref_logprobs.copy_(log_ratio)
    logprobs.clamp_(min=_NEVER)
    return kl, entropy


def _bound(product: Tensor, softcap: float | None, temperature: float) -> None:
    """From a head's output to logits, in place."""
    if softcap is not None:
        product.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1:
        product.div_(temperature)


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """h Wᵀ + b, accumulated and kept in float32 at least."""
    if hidden.dtype == out.dtype and weight.dtype == out.dtype:
        torch.mm(hidden, weight.t(), out=out)
    elif hidden.is_cuda:
        torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out)
    else:
        # No half-precision product of a processor keeps float32: widen the head, a tile at a time.
        for tile in blocks(len(weight), TILE):
            out[:, tile] = hidden.to(out.dtype) @ weight[tile].to(out.dtype).t()
    if bias is not None:
        out += bias
