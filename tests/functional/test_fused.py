"""Triton's kernels against the plain formulas in float64: on a CUDA device, or on a processor in Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so these tests run in a process of their own, which the last
of them starts.
"""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kleash.functional import chunks
from kleash.functional.chunks import Policy, TokenKL
from kleash.functional.kl import exact_kl
from kleash.functional.linear_kl import linear_kl, linear_kl_loss
from kleash.functional.logprobs import entropy, token_logprobs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).parents[2]
N, V, H = 3, 83, 6
NAMES = ("hidden", "weight", "bias")

if INTERPRETED:
    from kleash.functional import fused

    fused.REDUCE_BLOCK, fused.WRITE_BLOCK = 32, 64  # several blocks, the last one ragged


@pytest.fixture(
    params=[
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(not INTERPRETED, reason="runs inside the interpreter"),
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def case(device: str, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {"hidden": (N, H), "weight": (V, H), "ref_hidden": (N, H), "ref_weight": (V, H)}
    x = {k: spread * torch.randn(*shape, generator=g) for k, shape in shapes.items()}
    x |= {"bias": torch.randn(V, generator=g), "ref_bias": torch.randn(V, generator=g)}
    # A column of a batch: not contiguous.
    tokens = torch.randint(V, (N, 2), generator=g)[:, 0]
    return {k: v.to(device, dtype) for k, v in x.items()} | {"tokens": tokens.to(device)}


def meter(x: dict[str, Tensor], **options: Any) -> TokenKL:
    main = [x[k] for k in ("hidden", "weight", "ref_hidden", "ref_weight", "tokens")]
    return linear_kl(*main, bias=x["bias"], ref_bias=x["ref_bias"], **options)


def plain(x: dict[str, Tensor], temperature: float = 1.0, softcap: float | None = None) -> TokenKL:
    """The slow twin, in float64."""

    def logprobs(hidden: str, weight: str, bias: str) -> Tensor:
        z = x[hidden] @ x[weight].t() + x[bias]
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        return torch.log_softmax(z / temperature, -1)

    q = logprobs("hidden", "weight", "bias")
    p = logprobs("ref_hidden", "ref_weight", "ref_bias")
    own, theirs = (token_logprobs(rows, x["tokens"]) for rows in (q, p))
    return TokenKL(own, theirs, exact_kl(q, p), entropy(q))


def differentiated(x: dict[str, Tensor], read: TokenKL) -> list[Tensor]:
    """Gradients of a mix of all that is read."""
    (read.logprobs.sum() - 2 * read.kl.sum() + 0.7 * read.entropy.sum()).backward()
    grads = [x[name].grad for name in NAMES]
    assert all(grad is not None for grad in grads)
    return [grad for grad in grads if grad is not None]


def doubled(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v if k == "tokens" else v.detach().double() for k, v in x.items()}


def watched(x: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in NAMES:
        x[name].requires_grad_()
    return x


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"temperature": 1.3, "softcap": 4.0}])
def test_the_kernels_read_and_differentiate_as_the_formulas(
    device: str, options: dict[str, float]
) -> None:
    assert chunks.has_kernels(torch.device(device))
    x = watched(case(device))
    twin = watched(doubled(x))
    found, expected = meter(x, **options), plain(twin, **options)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
    grads = zip(differentiated(x, found), differentiated(twin, expected), strict=True)
    for one, other in grads:
        assert float((one - other).norm()) <= 1e-5 * float(other.norm())


def test_a_loss_made_on_the_way_is_the_loss_made_after(device: str) -> None:
    x = watched(case(device))
    after = differentiated(x, meter(x))
    y = watched(case(device))
    main = (y["hidden"], y["weight"], y["ref_hidden"], y["ref_weight"], y["tokens"])
    loss, _ = linear_kl_loss(
        *main,
        lambda read, _: read.logprobs - 2 * read.kl + 0.7 * read.entropy,
        bias=y["bias"],
        ref_bias=y["ref_bias"],
    )
    loss.backward()
    for name, other in zip(NAMES, after, strict=True):
        grad = y[name].grad
        assert grad is not None
        assert torch.equal(grad, other)


@pytest.mark.parametrize("nats", [1e-8, 1e-6])
def test_one_pass_keeps_three_digits_of_a_small_kl(device: str, nats: float) -> None:
    """Where E[z − r] less two log-normalisers has lost them all."""
    x = case(device)
    noise = torch.randn(V, H, generator=torch.Generator().manual_seed(2)).to(device)
    x["ref_weight"] = x["weight"] + (2 * nats) ** 0.5 * noise / H**0.5
    x["ref_hidden"], x["ref_bias"] = x["hidden"], x["bias"]
    found, truth = meter(x).kl, plain(doubled(x)).kl
    assert bool((found > 0).all())
    # Rounded logits are all that is left: below 1e-7 they are the larger part of d.
    assert float(((found - truth) / truth).abs().max()) < (1e-3 if nats >= 1e-6 else 2e-2)
    x["ref_weight"] = x["weight"]
    # A compiler may round the two log-normalisers differently: one ulp of d is 1e-7, and d²/2 is what is left of it.
    assert float(meter(x).kl.max()) <= (1e-13 if device == "cuda" else 0.0)


def test_suppressed_tokens_and_ratios_beyond_float32(device: str) -> None:
    """A block that one side or both give nothing, tokens of probability 0, and a ratio of e^150."""
    x = watched(case(device, spread=0.3))
    with torch.no_grad():
        x["bias"][:40] = x["ref_bias"][:36] = -torch.inf
        x["bias"][60], x["ref_bias"][61], x["bias"][62] = -150.0, -150.0, -45.0
        x["tokens"] += 41 - x["tokens"].clamp(max=41)
    twin = watched(doubled(x))
    found, expected = meter(x), plain(twin)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
    for one in differentiated(x, found):
        assert bool(one.isfinite().all())
    x["ref_bias"][70] = -torch.inf
    assert bool((meter(x).kl == torch.inf).all()), "the reference excludes what the policy may say"


def test_a_broken_row_breaks_nothing_else(device: str) -> None:
    x, whole = watched(case(device)), watched(case(device))
    with torch.no_grad():
        x["hidden"][0, 0], x["ref_hidden"][1, 0] = torch.nan, torch.inf
    broken, sound = meter(x), meter(whole)
    assert bool(broken.kl[:2].isnan().all())
    for one, other in zip(broken, sound, strict=True):
        assert torch.equal(one[2:], other[2:])
    of_hidden, expected = (differentiated(*y)[0] for y in ((x, broken), (whole, sound)))
    assert torch.equal(of_hidden[2:], expected[2:])


def test_the_gradient_may_be_written_beside_the_logits_in_half_precision(device: str) -> None:
    """What a GPU multiplies on with: the float32 gradient, rounded once."""
    x = case(device)
    policy = Policy(x["hidden"], x["weight"], x["bias"])
    given = chunks.Constants(
        x["ref_hidden"], x["ref_weight"], x["ref_bias"], x["tokens"], 1.0, None, None
    )
    upstream = torch.ones(3, N, device=device)
    written: list[Tensor] = []
    for half in (True, False):
        for _, chunk in chunks.chunks(policy, given):
            assert isinstance(chunk, chunks.FusedChunk)
            if half:
                chunk.out = torch.empty_like(chunk.out, dtype=torch.bfloat16)
            chunk.reduce()
            written.append(chunk.differentiate(*upstream).clone())
    assert written[0].dtype == torch.bfloat16
    torch.testing.assert_close(written[0].float(), written[1], rtol=2**-7, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    x = watched(case("cuda", dtype))
    twin = watched(doubled(x))
    found, expected = meter(x), plain(twin)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-5)
    grads = zip(differentiated(x, found), differentiated(twin, expected), strict=True)
    for one, other in grads:
        assert one.dtype == dtype
        assert float((one - other).norm()) <= 2e-2 * float(other.norm())


@pytest.mark.gpu
def test_a_gpu_without_triton_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = watched(case("cuda"))
    found = meter(x)
    grads = differentiated(x, found)
    monkeypatch.setattr(chunks, "has_kernels", lambda _device: False)
    y = watched(case("cuda"))
    other = meter(y)
    for one, two in zip([*found, *grads], [*other, *differentiated(y, other)], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton can't be installed here")
@pytest.mark.parametrize("name", ["_reduce", "_differentiate"])
@pytest.mark.parametrize("cap", [None, "fp32"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(
    name: str, cap: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types, shapes and registers, as far as they can be checked without running."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = import_module("triton.compiler")
    target = import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    kernel = getattr(import_module("kleash.functional.fused"), name)
    kinds = {"own": "*fp32", "theirs": "*fp32", "tokens": "*i64", "read": "*fp32"}
    kinds |= {"upstream": "*fp32", "out": "*bf16"} if name == "_differentiate" else {}
    kinds |= {"count": "i32", "vocab": "i32", "scale": "fp32"}
    kinds |= dict.fromkeys(("cap", "ref_cap"), cap or "constexpr") | {"BLOCK": "constexpr"}
    constants = {"BLOCK": 4096} | ({} if cap else {"cap": None, "ref_cap": None})
    places = {(list(kinds).index(key),): value for key, value in constants.items()}
    source = compiler.ASTSource(fn=kernel, signature=kinds, constexprs=places)
    options = {"num_warps": 8, "enable_fp_fusion": False}
    assert compiler.compile(source, target=target, options=options).asm["cubin"]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton can't be installed here")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-o", "addopts="]
    # NumPy, which interprets, warns of the −inf − −inf that the kernels then mask.
    command += ["--strict-markers", "--import-mode=importlib", "-W", "ignore", __file__]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
