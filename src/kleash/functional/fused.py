"""Triton's kernels for `chunks`: both logits of a row are read once and reduced, then once more for the gradient.

The usual single pass over a row (FlashAttention's online softmax) keeps E_q[z − r] and subtracts two log-normalisers: in
float32 a KL below 1e-6 drowns in that difference. Here each block of the vocabulary is normalised by itself, in
registers, and blocks are merged by the chain rule of relative entropy (Cover & Thomas 2006, theorem 2.5.3). With Q_i and
P_i the masses of two parts, D_i = log(Q_i/P_i), and KL_i and H_i inside each,

    KL = Σ_i Q_i KL_i + Σ_i Q_i (e^{−D_i} − 1 + D_i),      H = Σ_i Q_i H_i − Σ_i Q_i log Q_i

and inside a block KL_i = Σ q (e^{−d} − 1 + d) as everywhere (`divergences`). No term is negative, all are of second
order in the log-ratio, nothing cancels, and no normaliser has to be known in advance.

`chunks` imports this only where it is to run. Triton has no wheels for macOS: there the kernels below are plain
functions that nobody calls.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, no_type_check

import torch
from torch import Tensor

if TYPE_CHECKING or find_spec("triton") is not None:
    import triton
    import triton.language as tl

    jit = triton.jit
    constexpr = tl.constexpr
else:
    jit, constexpr = no_type_check, Any

REDUCE_BLOCK = 4096
"""Tokens of a row that are in registers at a time."""
WRITE_BLOCK = 2048
_FAR = 30.0
"""As in `chunks`: where −d is larger, q is negligible beside p and e^{−d} soon overflows."""


def reduce(  # noqa: PLR0913 - a kernel takes its tensors one by one
    own: Tensor,
    theirs: Tensor,
    tokens: Tensor,
    temperature: float,
    softcap: float | None,
    ref_softcap: float | None,
    normalisers: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl: Tensor,
    entropy: Tensor,
) -> None:
    """Reads the four quantities of [C, V] head outputs; `normalisers` are log Σe^z, and that minus log Σe^r."""
    count, vocab = own.shape
    block = min(REDUCE_BLOCK, triton.next_power_of_2(vocab))
    with torch.cuda.device_of(own):
        _reduce[(count,)](
            own,
            theirs,
            tokens,
            normalisers,
            logprobs,
            ref_logprobs,
            kl,
            entropy,
            count,
            vocab,
            1 / temperature,
            softcap or 1.0,
            ref_softcap or 1.0,
            CAPPED=softcap is not None,
            REF_CAPPED=ref_softcap is not None,
            BLOCK=block,
            num_warps=8,
        )


def differentiate(  # noqa: PLR0913 - as above
    own: Tensor,
    theirs: Tensor,
    tokens: Tensor,
    temperature: float,
    softcap: float | None,
    ref_softcap: float | None,
    normalisers: Tensor,
    kl: Tensor,
    entropy: Tensor,
    upstream: Tensor,
    out: Tensor,
) -> None:
    """The gradient by `own` from those by logprobs, kl and entropy, [3, C]; `out` may be `own`."""
    count, vocab = own.shape
    block = min(WRITE_BLOCK, triton.next_power_of_2(vocab))
    with torch.cuda.device_of(own):
        _differentiate[(count, triton.cdiv(vocab, block))](
            own,
            theirs,
            tokens,
            normalisers,
            kl,
            entropy,
            upstream,
            out,
            count,
            vocab,
            1 / temperature,
            softcap or 1.0,
            ref_softcap or 1.0,
            CAPPED=softcap is not None,
            REF_CAPPED=ref_softcap is not None,
            BLOCK=block,
            num_warps=4,
        )


@jit
@no_type_check
def _excess(x):  # noqa: ANN001, ANN202 - Triton's own values
    """e^x − 1 − x, to the last digits also where x is small: the series there, whose next term is below 4e-8 of it."""
    y = tl.where(tl.abs(x) < 0.5, x, 0.0)
    series = 1 / 720 + y * (1 / 5040 + y * (1 / 40320))
    series = 1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * series)))
    return tl.where(tl.abs(x) < 0.5, y * y * series, tl.exp(x) - 1 - x)


@jit
@no_type_check
def _divergence(q, p, d, supported):  # noqa: ANN001, ANN202
    """q (e^{−d} − 1 + d), with its limits where q vanishes beside p, or is 0."""
    near = -d < 30.0
    close = q * _excess(tl.where(near & supported, -d, 0.0))
    return tl.where(supported, tl.where(near, close, p - q + q * d), p)


@jit
@no_type_check
def _bounded(product, scale, cap, CAPPED: constexpr):  # noqa: ANN001, ANN202, N803
    """From a head's output to logits."""
    if CAPPED:
        e = -2 * tl.abs(product / cap)
        fall = _excess(e) + e
        tanh = -fall / (2 + fall)
        product = tl.where(product < 0, -cap * tanh, cap * tanh)
    return product * scale


@jit
@no_type_check
def _reduce(  # noqa: ANN202, PLR0913
    own,  # noqa: ANN001
    theirs,  # noqa: ANN001
    tokens,  # noqa: ANN001
    normalisers,  # noqa: ANN001
    logprobs,  # noqa: ANN001
    ref_logprobs,  # noqa: ANN001
    kls,  # noqa: ANN001
    entropies,  # noqa: ANN001
    count,  # noqa: ANN001
    vocab,  # noqa: ANN001
    scale,  # noqa: ANN001
    cap,  # noqa: ANN001
    ref_cap,  # noqa: ANN001
    CAPPED: constexpr,
    REF_CAPPED: constexpr,
    BLOCK: constexpr,
):
    pass
