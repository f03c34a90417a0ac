"""The machine inside `linear_kl`: a few rows of logits of two models at a time, reduced, then differentiated, in place.

For one row z of the policy and r of the reference, both after softcap and temperature, with q = softmax(z),
d = log q − log p and upstream gradients a, b, c of log q_y, KL and entropy H:

    ∂/∂z_v = a (1{v = y} − q_v)  +  b q_v (d_v − KL)  −  c q_v (log q_v + H)

KL is Σ q (e^{−d} − 1 + d), whose terms are never negative (`divergences`).
"""

import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl

CHUNK_BYTES = 160 * 2**20
"""Of one buffer. Larger chunks read the heads less often; smaller ones take less memory."""
CUDA_CHUNK_BYTES = 2**30
"""The same on a GPU: with fewer rows the head's gradient, read and written for each chunk, is a share of the time."""
HELD_BYTES = 512 * 2**20
"""Of the logits of both models that may be held from a reading to the gradient of it, so as not to be made again."""
CUDA_HELD_BYTES = 2 * 2**30
BLOCK_BYTES = 2 * 2**20
"""Of the rows that a thread reduces together: what stays in its cache between one pass and the next."""
TILE = 4096
"""Rows of a head that are taken at a time, where they have to be widened or summed in pieces."""
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

    def detached(self) -> "TokenKL":
        """The same numbers, with no way back."""
        return TokenKL(*(x.detach() for x in self))

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
    """Some rows: first both models' logits, then q and −d, last the gradient of the policy head's output."""

    def __init__(
        self, own: Tensor, theirs: Tensor, scratch: Tensor, tokens: Tensor, given: Constants
    ) -> None:
        self.own, self.theirs, self.scratch = own, theirs, scratch
        self.tokens, self.given = tokens[:, None], given
        self.lse = own.new_empty(len(own), 1)
        # Σ q, Σ q (−d) and Σ q log q as they came out, in float32.
        self.sums = own.new_empty(3, len(own))
        self.read = TokenKL.empty(tokens, own.dtype)

    def reduce(self) -> TokenKL:
        """Reads the four quantities; leaves q and −d in the buffers."""
        for rows in blocks(len(self.own), len(self.scratch)):
            z, r, tokens = self.own[rows], self.theirs[rows], self.tokens[rows]
            _bound(z, self.given.softcap, self.given.temperature)
            _bound(r, self.given.ref_softcap, self.given.temperature)
            logit = z.gather(-1, tokens)
            logprobs = torch.log_softmax(z, -1, out=self.scratch[: len(z)])
            ref_logprobs = torch.log_softmax(r, -1, out=z)
            logprob = logprobs.gather(-1, tokens)
            self.lse[rows] = logit - logprob
            self.read.logprobs[rows] = logprob[:, 0]
            self.read.ref_logprobs[rows] = ref_logprobs.gather(-1, tokens)[:, 0]
            self.read.kl[rows], self.sums[:, rows] = _reduce(logprobs, ref_logprobs, r)
        torch.neg(self.sums[2], out=self.read.entropy)
        return self.read

    def differentiate(self, of_logprobs: Tensor, of_kl: Tensor, of_entropy: Tensor) -> Tensor:
        """The gradient of the head's output, [C, V], from those of the readings; in the policy's buffer."""
        softcap, temperature = self.given.softcap, self.given.temperature
        # Asking a GPU would be waiting for it.
        with_entropy = of_entropy.is_cuda or bool(of_entropy.any())
        a, b, c = (x[:, None] / temperature for x in (of_logprobs, of_kl, of_entropy))
        # q (b (d − KL) − a − c (log q + H)) = q (−b·(−d) − c log q − shift), with the shift that makes a row's sum 0 in
        # these very numbers: what is left of it would be multiplied by the mean of the head's rows.
        mass, drift, order = self.sums[..., None]
        shift = (a - b * drift - (c * order if with_entropy else 0)) / mass
        for rows in blocks(len(self.own), len(self.scratch)):
            q, slope = self.own[rows], self.theirs[rows]
            slope.mul_(-b[rows]).sub_(shift[rows])
            logprobs = self.scratch[: len(q)]
            if with_entropy or softcap is not None:
                torch.log(q, out=logprobs).clamp_(min=_NEVER)
                # The given token's own is known where q has underflowed, and its gradient does not vanish with q.
                known = self.read.logprobs[rows, None].clamp(min=_NEVER)
                logprobs.scatter_(-1, self.tokens[rows], known)
            if with_entropy:
                slope.addcmul_(logprobs, c[rows], value=-1)
            q.mul_(slope).scatter_add_(-1, self.tokens[rows], a[rows])
            if softcap is not None:
                tanh = logprobs.add_(self.lse[rows]).mul_(temperature / softcap)
                q.mul_(tanh.square_().neg_().add_(1))
        return self.own


class FusedChunk:
    """The same rows on a GPU: one kernel reads both logits once, one writes the gradient."""

    def __init__(
        self, own: Tensor, theirs: Tensor, out: Tensor, tokens: Tensor, given: Constants
    ) -> None:
        settings = (given.temperature, given.softcap, given.ref_softcap)
        self.logits = _fused().Logits(own, theirs, tokens.contiguous(), *settings)
        self.out = out
        self.numbers = own.new_empty(_fused().COLUMNS, len(tokens))
        self.read = TokenKL(*self.numbers[:4])

    def reduce(self) -> TokenKL:
        """Reads the four quantities; the logits stay as they are."""
        _fused().reduce(self.logits, self.numbers)
        return self.read

    def differentiate(self, of_logprobs: Tensor, of_kl: Tensor, of_entropy: Tensor) -> Tensor:
        """The gradient of the head's output, [C, V]: over the policy's logits, or beside them in half precision."""
        upstream = torch.stack([of_logprobs, of_kl, of_entropy])
        _fused().differentiate(self.logits, self.numbers, upstream, self.out)
        return self.out


def can_hold(policy: Policy) -> bool:
    """Whether all rows can be one chunk that is held."""
    logits = 2 * len(policy.hidden) * len(policy.weight) * wide(policy.hidden.dtype).itemsize
    return 0 < logits <= (CUDA_HELD_BYTES if policy.hidden.is_cuda else HELD_BYTES)


def chunks(
    policy: Policy, given: Constants, *, whole: bool = False
) -> Iterator[tuple[slice, Chunk | FusedChunk]]:
    """Every row once, some at a time, in buffers that the next rows overwrite; or, as a whole, in one chunk."""
    count, vocab = len(policy.hidden), len(policy.weight)
    device, dtype = policy.hidden.device, wide(policy.hidden.dtype)
    row_bytes = vocab * dtype.itemsize
    at_once = CUDA_CHUNK_BYTES if device.type == "cuda" else CHUNK_BYTES
    size = count if whole else max(1, min(count, at_once // row_bytes))
    block = max(1, min(size, BLOCK_BYTES * torch.get_num_threads() // row_bytes))
    own, theirs = (torch.empty(size, vocab, dtype=dtype, device=device) for _ in range(2))
    fused = dtype == torch.float32 and has_kernels(device)
    if not fused:
        beside = own.new_empty(block, vocab)
    elif _halves(policy):
        beside = torch.empty_like(own, dtype=policy.weight.dtype)
    else:
        beside = own
    for rows in blocks(count, size):
        part = rows.stop - rows.start
        _product(policy.hidden[rows], policy.weight, policy.bias, own[:part])
        _product(given.ref_hidden[rows], given.ref_weight, given.ref_bias, theirs[:part])
        tokens = given.tokens[rows]
        if fused:
            yield rows, FusedChunk(own[:part], theirs[:part], beside[:part], tokens, given)
        else:
            yield rows, Chunk(own[:part], theirs[:part], beside, tokens, given)


def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels do the rows: on a CUDA device that has it, or in its interpreter, for tests."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or interpreted) and find_spec("triton") is not None


def _fused() -> ModuleType:
    """Imported where it is used: Triton has no business on a machine that does not run it."""
    return import_module("kleash.functional.fused")


def blocks(count: int, size: int) -> Iterator[slice]:
    """0 … count in pieces of `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 where that is what came in."""
    return torch.promote_types(dtype, torch.float32)


def accumulate(grads: Gradients, rows: slice, of_product: Tensor, policy: Policy) -> None:
    """Adds what some rows contribute: G W to hidden, Gᵀ h to the weight; a row of NaN reaches the whole weight."""
    if grads.bias is not None:
        grads.bias.add_(of_product.sum(0, dtype=grads.bias.dtype))
    if _halves(policy):
        # As autograd has it; the sums are float32.
        of_product = of_product.to(policy.weight.dtype)
    if grads.hidden is not None:
        _multiply(of_product, policy.weight, grads.hidden[rows])
    if grads.weight is not None:
        hidden = policy.hidden[rows].to(of_product.dtype)
        if of_product.dtype == grads.weight.dtype:
            grads.weight.addmm_(of_product.t(), hidden)
            return
        for tile in blocks(len(grads.weight), TILE):
            part = torch.empty_like(grads.weight[tile])
            grads.weight[tile] += _multiply(of_product[:, tile].t(), hidden, part)


def _halves(policy: Policy) -> bool:
    """Whether both sides are bfloat16 on a GPU: its range is float32's, so gradients may be rounded to it."""
    types = {policy.hidden.dtype, policy.weight.dtype}
    return policy.hidden.is_cuda and types == {torch.bfloat16}


def _reduce(logprobs: Tensor, ref_logprobs: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """KL of some rows, and Σ q, Σ q (−d), Σ q log q; leaves q in `ref_logprobs`, −d in `out`, nothing in `logprobs`."""
    back = torch.sub(ref_logprobs, logprobs, out=out)
    far = _far(back)
    kept = None if far is None else (logprobs[far].clone(), ref_logprobs[far].clone())
    q = torch.exp(logprobs, out=ref_logprobs)
    if far is not None:
        # Limits instead of 0 · inf, here and in the gradient that follows.
        none = q[far] == 0
        back[far] = back[far].masked_fill_(none, 0.0)
        logprobs[far] = logprobs[far].masked_fill_(none, 0.0)
    order, drift = torch.linalg.vecdot(q, logprobs), torch.linalg.vecdot(q, back)
    terms = torch.expm1(back, out=logprobs).sub_(back)
    # A term that is 0 may be rounded below it.
    kl = torch.linalg.vecdot(q, terms).clamp_(min=0)
    if far is not None and kept is not None:
        kl[far] = reverse_kl(*kept)
    return kl, torch.stack([q.sum(-1), drift, order])


def _far(back: Tensor) -> Tensor | slice | None:
    """The rows that need care: where −d is large or not a number. On a GPU all of them, as asking is waiting."""
    if back.is_cuda:
        return slice(None)
    rows = (~(back.amax(-1) < _FAR)).nonzero()[:, 0]
    return rows if len(rows) else None


def _bound(product: Tensor, softcap: float | None, temperature: float) -> None:
    """From a head's output to logits, in place."""
    if softcap is not None:
        product.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1:
        product.div_(temperature)


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """h Wᵀ + b, accumulated and kept in float32 at least."""
    if weight.dtype in {out.dtype, hidden.dtype if hidden.is_cuda else out.dtype}:
        _multiply(hidden, weight.t(), out)
    else:
        for tile in blocks(len(weight), TILE):
            out[:, tile] = hidden.to(out.dtype) @ weight[tile].to(out.dtype).t()
    if bias is not None:
        out += bias


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left @ right, written to `out`, whose type is float32 at least."""
    if left.dtype == right.dtype == out.dtype and (left.is_cuda or len(right) <= TILE):
        return torch.mm(left, right, out=out)
    if left.is_cuda and left.dtype == right.dtype:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    # On a processor no half-precision product keeps float32, so it is widened, a tile at a time; and a sum over the
    # vocabulary keeps its digits where pieces are summed first: of a single row MKL adds one number after the other.
    out.zero_()
    for tile in blocks(len(right), TILE):
        out += left[:, tile].to(out.dtype) @ right[tile].to(out.dtype)
    return out
