# ruff: noqa: ANN001, ANN202, N803, PLR0913, PLR0917 - a kernel is given untyped values one by one, and CONSTANTS
"""Triton's kernels for `chunks`: both logits of a row are read once and reduced, then once more for the gradient.

The usual single pass over a row (an online softmax) keeps E_q[z − r] and subtracts two log-normalisers: in float32 a KL
of 1e-6 drowns in that difference. Here each block of the vocabulary is normalised by itself, in registers, and blocks
are merged by the chain rule of relative entropy (Cover & Thomas 2006, theorem 2.5.3). With Q_i and P_i the masses of
two parts under policy and reference, D_i = log(Q_i/P_i), and KL_i and H_i inside each,

    KL = Σ_i Q_i KL_i + Σ_i Q_i (e^{−D_i} − 1 + D_i),      H = Σ_i Q_i H_i − Σ_i Q_i log Q_i,

and inside a block KL_i = Σ q (e^{−d} − 1 + d), as everywhere (`divergences`). No term is negative, each is of second
order in the log-ratio, nothing cancels, and no normaliser has to be known in advance.

`chunks` imports this only where it is to run. Where Triton can't be had the kernels are functions that nobody calls.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, no_type_check

import torch
from torch import Tensor

jit: Any = no_type_check
if TYPE_CHECKING or find_spec("triton") is not None:
    import triton
    import triton.language as tl

    jit, constexpr = triton.jit, tl.constexpr
else:
    constexpr = Any

REDUCE_BLOCK = 4096
"""Tokens of a row that are in registers at a time."""
WRITE_BLOCK = 2048
"""Tokens of a row whose gradient one program writes."""
COLUMNS = 8
"""Numbers kept of a row: the four of `TokenKL`, max z, Σ e^{z − max}, log Σ e^z − log Σ e^r, and E_q d.

The last is KL, but for the rounding of the normalisers: with it the gradient of a row sums to 0 in float32 too.
"""


class Logits(NamedTuple):
    """Both heads' outputs for some rows, and what makes logits of them."""

    own: Tensor
    """[C, V], float32, contiguous."""
    theirs: Tensor
    """[C, V]."""
    tokens: Tensor
    """[C]."""
    temperature: float
    softcap: float | None
    ref_softcap: float | None


def reduce(logits: Logits, read: Tensor) -> None:
    """Fills `read`, [COLUMNS, C]; the logits stay as they are."""
    own, theirs, tokens, temperature, softcap, ref_softcap = logits
    count, vocab = own.shape
    block = min(REDUCE_BLOCK, triton.next_power_of_2(vocab))
    values = (own, theirs, tokens, read, count, vocab, 1 / temperature, softcap, ref_softcap)
    # Unfused: contracted, the difference of two equal logits would be a rounding error and not 0.
    with torch.cuda.device_of(own):
        _reduce[(count,)](*values, BLOCK=block, num_warps=8, enable_fp_fusion=False)


def differentiate(logits: Logits, read: Tensor, upstream: Tensor, out: Tensor) -> None:
    """Writes the gradient by `own` from those by logprobs, kl and entropy, [3, C]; `out` may be `own`."""
    own, theirs, tokens, temperature, softcap, ref_softcap = logits
    count, vocab = own.shape
    block = min(WRITE_BLOCK, triton.next_power_of_2(vocab))
    grid = (count, triton.cdiv(vocab, block))
    given = (own, theirs, tokens, read, upstream, out)
    values = (*given, count, vocab, 1 / temperature, softcap, ref_softcap)
    with torch.cuda.device_of(own):
        _differentiate[grid](*values, BLOCK=block, num_warps=4, enable_fp_fusion=False)


@jit
@no_type_check
def _excess(x):
    """e^x − 1 − x to its last digits: where x is small by the series, whose next term is below 4e-8 of it."""
    y = tl.where(tl.abs(x) < 0.5, x, 0.0)
    series = 1 / 120 + y * (1 / 720 + y * (1 / 5040 + y * (1 / 40320)))
    series = 1 / 2 + y * (1 / 6 + y * (1 / 24 + y * series))
    return tl.where(tl.abs(x) < 0.5, y * y * series, tl.exp(x) - 1 - x)


@jit
@no_type_check
def _divergence(q, p, d, supported):
    """q (e^{−d} − 1 + d), with its limits where q vanishes beside p, or is 0 (`divergences.reverse_kl`)."""
    near = -d < 30.0
    close = q * _excess(tl.where(near & supported, -d, 0.0))
    return tl.where(supported, tl.where(near, close, p - q + q * d), p)


@jit
@no_type_check
def _load(product, at, inside, scale, cap):
    """Logits, from a head's output; −inf outside."""
    z = tl.load(product + at, mask=inside, other=0.0)
    if cap is not None:
        e = -2 * tl.abs(z / cap)
        fall = _excess(e) + e
        tanh = -fall / (2 + fall)
        z = tl.where(z < 0, -tanh, tanh) * cap
    return tl.where(inside, z * scale, float("-inf"))


@jit
@no_type_check
def _base(top):
    """A maximum to subtract, also where all is −inf."""
    return tl.where(top == float("-inf"), 0.0, top)


@jit
@no_type_check
def _whole(mass):
    """A mass to divide by, also where there is none; NaN stays NaN."""
    return tl.where(mass == 0, 1.0, mass)


@jit
@no_type_check
def _lift(top, mass, ref_top, ref_mass):
    """log Σe^z − log Σe^r of a part."""
    return _base(top) - _base(ref_top) + tl.log(_whole(mass) / _whole(ref_mass))


@jit
@no_type_check
def _part(z, r):
    """A block by itself: both maxima and masses above them; KL, entropy and E_q d inside."""
    top, ref_top = tl.max(z, 0), tl.max(r, 0)
    q, p = tl.exp(z - _base(top)), tl.exp(r - _base(ref_top))
    mass, ref_mass = tl.sum(q, 0), tl.sum(p, 0)
    q, p = q / _whole(mass), p / _whole(ref_mass)
    d = z - r - _lift(top, mass, ref_top, ref_mass)
    supported = z != float("-inf")
    kl = tl.sum(_divergence(q, p, d, supported), 0)
    logprobs = z - _base(top) - tl.log(_whole(mass))
    entropy = -tl.sum(tl.where(supported, q * logprobs, 0.0), 0)
    drift = tl.sum(tl.where(q == 0, 0.0, q * d), 0)
    return top, mass, ref_top, ref_mass, kl, entropy, drift


@jit
@no_type_check
def _joint(top, mass, more_top, more_mass):
    """Maximum and mass of two parts together, and the share of each."""
    both = tl.maximum(top, more_top)
    left, right = mass * tl.exp(top - _base(both)), more_mass * tl.exp(more_top - _base(both))
    whole = _whole(left + right)
    return both, left + right, left / whole, right / whole


@jit
@no_type_check
def _reduce(own, theirs, tokens, read, count, vocab, scale, cap, ref_cap, BLOCK: constexpr):
    row = tl.program_id(0).to(tl.int64)
    own += row * vocab
    theirs += row * vocab
    top, mass, ref_top, ref_mass = float("-inf"), 0.0, float("-inf"), 0.0
    kl, entropy, drift = 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = _load(own, at, at < vocab, scale, cap)
        r = _load(theirs, at, at < vocab, scale, ref_cap)
        top_1, mass_1, ref_top_1, ref_mass_1, kl_1, entropy_1, drift_1 = _part(z, r)
        lift_0 = _lift(top, mass, ref_top, ref_mass)
        lift_1 = _lift(top_1, mass_1, ref_top_1, ref_mass_1)
        none_0, none_1 = mass == 0, mass_1 == 0
        top, mass, q_0, q_1 = _joint(top, mass, top_1, mass_1)
        ref_top, ref_mass, p_0, p_1 = _joint(ref_top, ref_mass, ref_top_1, ref_mass_1)
        lift = _lift(top, mass, ref_top, ref_mass)
        kl = q_0 * kl + q_1 * kl_1
        kl += _divergence(q_0, p_0, lift_0 - lift, ~none_0)
        kl += _divergence(q_1, p_1, lift_1 - lift, ~none_1)
        drift = tl.where(q_0 == 0, 0.0, q_0 * (drift + lift_0 - lift))
        drift += tl.where(q_1 == 0, 0.0, q_1 * (drift_1 + lift_1 - lift))
        entropy = q_0 * entropy + q_1 * entropy_1
        entropy -= q_0 * tl.log(_whole(q_0)) + q_1 * tl.log(_whole(q_1))
    y = tl.load(tokens + row)
    logprob = _load(own, y, y >= 0, scale, cap) - top - tl.log(mass)
    ref_logprob = _load(theirs, y, y >= 0, scale, ref_cap) - ref_top - tl.log(ref_mass)
    nothing = float("nan")
    tl.store(read + row, logprob)
    tl.store(read + count + row, ref_logprob)
    tl.store(read + 2 * count + row, tl.where((mass == 0) | (ref_mass == 0), nothing, kl))
    tl.store(read + 3 * count + row, tl.where(mass == 0, nothing, entropy))
    tl.store(read + 4 * count + row, top)
    tl.store(read + 5 * count + row, mass)
    tl.store(read + 6 * count + row, _lift(top, mass, ref_top, ref_mass))
    tl.store(read + 7 * count + row, drift)


@jit
@no_type_check
def _differentiate(
    own, theirs, tokens, read, upstream, out, count, vocab, scale, cap, ref_cap, BLOCK: constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab
    entropy, top = tl.load(read + 3 * count + row), tl.load(read + 4 * count + row)
    mass, lift = tl.load(read + 5 * count + row), tl.load(read + 6 * count + row)
    drift = tl.load(read + 7 * count + row)
    a, b = tl.load(upstream + row), tl.load(upstream + count + row)
    c = tl.load(upstream + 2 * count + row)
    z = _load(own + row * vocab, at, inside, scale, cap)
    r = _load(theirs + row * vocab, at, inside, scale, ref_cap)
    q = tl.exp(z - top) / mass
    some = q > 0
    d = tl.where(some, z - r - lift, 0.0)
    logprobs = tl.where(some, z - top - tl.log(mass), 0.0)
    slope = b * (d - drift) - a - c * (logprobs + entropy)
    gradient = (q * slope + tl.where(at == tl.load(tokens + row), a, 0.0)) * scale
    if cap is not None:
        tanh = z / (cap * scale)
        gradient *= 1 - tanh * tanh
    tl.store(out + row * vocab + at, gradient.to(out.dtype.element_ty), mask=inside)
