"""The fused meter against the plain formulas in float64: values, gradients, any upstream, any head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from kleash.functional import chunks
from kleash.functional.chunks import TokenKL
from kleash.functional.kl import exact_kl
from kleash.functional.linear_kl import TokenLoss, linear_kl, linear_kl_loss
from kleash.functional.logprobs import entropy, token_logprobs

N, V, H, R = 13, 97, 8, 5
NAMES = ("hidden", "weight", "bias")
TILE = chunks.TILE


def case(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "hidden": draw(N, H),
        "weight": draw(V, H),
        "ref_hidden": draw(N, R),
        "ref_weight": draw(V, R),
        "tokens": torch.randint(V, (N,), generator=g),
        "bias": draw(V),
        "ref_bias": draw(V),
    }


def plain(x: dict[str, Tensor], temperature: float = 1.0, softcap: float | None = None) -> TokenKL:
    """The slow twin: every logit held, every formula as in the textbook."""

    def logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        z = hidden @ weight.t() + bias
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        return torch.log_softmax(z / temperature, -1)

    q = logits(x["hidden"], x["weight"], x["bias"])
    p = logits(x["ref_hidden"], x["ref_weight"], x["ref_bias"])
    own, theirs = (token_logprobs(rows, x["tokens"]) for rows in (q, p))
    return TokenKL(own, theirs, (q.exp() * (q - p)).sum(-1), entropy(q))


def fused(x: dict[str, Tensor], **options: Any) -> TokenKL:
    main = [x[k] for k in ("hidden", "weight", "ref_hidden", "ref_weight", "tokens")]
    return linear_kl(*main, bias=x["bias"], ref_bias=x["ref_bias"], **{**HOLDING, **options})


HOLDING = {"hold": False}


@pytest.fixture(params=["one chunk", "many chunks", "held"], autouse=True)
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers must not depend on how the rows are cut, nor on whether they are held for the way back."""
    monkeypatch.setitem(HOLDING, "hold", request.param == "held")
    if request.param != "one chunk":
        monkeypatch.setattr(chunks, "CHUNK_BYTES", 5 * V * 8)
        monkeypatch.setattr(chunks, "BLOCK_BYTES", 2 * V * 8)
        monkeypatch.setattr(chunks, "TILE", 10)


OPTIONS = [{}, {"temperature": 0.7}, {"softcap": 2.5}, {"temperature": 1.3, "softcap": 4.0}]


@pytest.mark.parametrize("options", OPTIONS)
def test_values(options: dict[str, float]) -> None:
    x = case()
    for found, expected in zip(fused(x, **options), plain(x, **options), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mix", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, -2, 1.7)])
def test_gradients_of_any_mix(options: dict[str, float], mix: tuple[float, float, float]) -> None:
    names, grads = ("hidden", "weight", "bias"), []
    upstream = torch.randn(3, N, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for compute in (fused, plain):
        x = case()
        for name in names:
            x[name].requires_grad_()
        read = compute(x, **options)
        parts = zip(mix, upstream, (read.logprobs, read.kl, read.entropy), strict=True)
        torch.stack([(weight * u * y).sum() for weight, u, y in parts]).sum().backward()
        grads.append([x[name].grad for name in names])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def clipped(read: TokenKL, rows: slice) -> Tensor:
    """A loss as training has it: a clipped ratio, a price on the KL, a bonus for entropy."""
    old = torch.linspace(-6, -3, N, dtype=torch.float64)[rows]
    advantages = torch.linspace(-1, 1, N, dtype=torch.float64)[rows]
    ratio = (read.logprobs - old).exp()
    policy = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return policy + 0.3 * read.kl - 0.01 * read.entropy


@pytest.mark.parametrize("options", OPTIONS)
def test_a_loss_made_on_the_way_is_the_loss_made_after(options: dict[str, float]) -> None:
    names, found = ("hidden", "weight", "bias"), []
    for way in ("after", "on the way"):
        x = case()
        for name in names:
            x[name].requires_grad_()
        if way == "after":
            loss = clipped(plain(x, **options), slice(None)).sum()
        else:
            loss, read = linear_kl_loss(
                x["hidden"],
                x["weight"],
                x["ref_hidden"],
                x["ref_weight"],
                x["tokens"],
                clipped,
                bias=x["bias"],
                ref_bias=x["ref_bias"],
                temperature=options.get("temperature", 1.0),
                softcap=options.get("softcap"),
            )
            assert not read.kl.requires_grad
        (2.5 * loss).backward()
        found.append([loss.detach(), *(x[name].grad for name in names)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def made(x: dict[str, Tensor], token_loss: TokenLoss = clipped) -> Tensor:
    heads = (x["hidden"], x["weight"], x["ref_hidden"], x["ref_weight"], x["tokens"])
    return linear_kl_loss(*heads, token_loss, bias=x["bias"], ref_bias=x["ref_bias"])[0]


def doubled(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v if k == "tokens" else v.detach().double() for k, v in x.items()}


def watched(x: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in NAMES:
        x[name].requires_grad_()
    return x


def test_the_gradient_of_the_head_is_handed_over_and_not_copied() -> None:
    """It is as large as the head: at V = 151,936 and H = 896 a copy is half a gigabyte."""
    x = watched(case())
    loss = made(x)
    node: Any = loss.grad_fn
    places = [grad.data_ptr() for grad in node.made]
    loss.backward()
    found = [x[name].grad for name in NAMES]
    assert [grad.data_ptr() for grad in found if grad is not None] == places


def test_a_gradient_can_be_asked_for_again() -> None:
    """The first one is its owner's by then: clipping it in place must not reach the second."""
    x, once = watched(case()), watched(case())
    made(once).backward()
    loss = made(x)
    for factor in (2.0, -0.5):
        (factor * loss).backward(retain_graph=True)
        for name in NAMES:
            grad, expected = x[name].grad, once[name].grad
            assert grad is not None
            assert expected is not None
            torch.testing.assert_close(grad, factor * expected, rtol=1e-12, atol=1e-14)
            grad.mul_(1e6)
            x[name].grad = None
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_add_up_over_calls() -> None:
    x, once = watched(case()), watched(case())
    made(once).backward()
    for _ in range(2):
        made(x).backward()
    for name in NAMES:
        grad, expected = x[name].grad, once[name].grad
        assert grad is not None
        assert expected is not None
        torch.testing.assert_close(grad, 2 * expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("room", [2 * N * V * 8, 2 * N * V * 8 - 1])
def test_what_is_held_is_not_made_again_but_the_second_time(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is held that is larger than there is room for."""
    monkeypatch.setattr(chunks, "HELD_BYTES", room)
    made, real = list[int](), chunks._product

    def product(hidden: Tensor, *others: Any) -> None:
        made.append(len(hidden))
        real(hidden, *others)

    monkeypatch.setattr(chunks, "_product", product)
    x = watched(case())
    kl, found = fused(x, hold=True).kl.sum(), list[tuple[Tensor, ...]]()
    for passes in ((1, 2), (2, 3))[room % 2]:
        found.append(torch.autograd.grad(kl, [x[name] for name in NAMES], retain_graph=True))
        assert sum(made) == passes * 2 * N
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """It would be silently wrong: the reductions are differentiated once, by hand."""
    x = watched(case())
    (grad,) = torch.autograd.grad(fused(x).kl.square().sum(), x["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_only_what_is_asked_for_is_differentiated() -> None:
    x = case()
    x["hidden"].requires_grad_()
    read = fused(x)
    assert not read.ref_logprobs.requires_grad
    read.kl.sum().backward()
    assert x["weight"].grad is None
    with torch.no_grad():
        assert not fused(x).kl.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    """The numbers are those of the rounded inputs in float64, not of rounded logits; gradients keep the type."""
    x = case(dtype)
    wide = {k: v if k == "tokens" else v.double() for k, v in x.items()}
    for name in ("hidden", "weight"):
        x[name].requires_grad_()
        wide[name].requires_grad_()
    found, expected = fused(x), plain(wide)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-5)
    found.kl.sum().backward()
    expected.kl.sum().backward()
    for name in ("hidden", "weight"):
        grad = x[name].grad
        assert grad is not None
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), wide[name].grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("nats", [1e-6, 1e-4])
def test_a_small_kl_keeps_three_digits_and_is_never_negative(nats: float) -> None:
    g = torch.Generator().manual_seed(4)
    hidden, weight = torch.randn(16, 32, generator=g), torch.randn(4096, 32, generator=g) / 4
    other = weight + (2 * nats) ** 0.5 * torch.randn(4096, 32, generator=g) / 32**0.5
    tokens = torch.randint(4096, (16,), generator=g)
    found = linear_kl(hidden, weight, hidden, other, tokens).kl
    truth = exact_kl(hidden.double() @ weight.double().t(), hidden.double() @ other.double().t())
    assert bool((found >= 0).all())
    assert float(((found - truth) / truth).abs().max()) < 1e-3
    assert bool((linear_kl(hidden, weight, hidden, weight, tokens).kl == 0).all())


def large(vocab: int, apart: float) -> dict[str, Tensor]:
    """Heads of a real vocabulary; hidden is narrow, which changes no law and saves gigabytes."""
    g = torch.Generator().manual_seed(5)
    hidden, weight = torch.randn(8, 64, generator=g), torch.randn(vocab, 64, generator=g) / 4
    return {
        "hidden": hidden,
        "weight": weight,
        "ref_hidden": hidden,
        "ref_weight": weight + apart * torch.randn(vocab, 64, generator=g) / 8,
        "tokens": torch.randint(vocab, (8,), generator=g),
        "bias": torch.zeros(vocab),
        "ref_bias": torch.zeros(vocab),
    }


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [49_152, 151_936])
def test_float32_keeps_five_digits_of_a_real_vocabulary(
    vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a row by itself, whose sum over the vocabulary is made tile by tile."""
    monkeypatch.setattr(chunks, "TILE", TILE)
    x = watched(large(vocab, 0.5))
    wide = watched(doubled(x))
    reads = fused(x), plain(wide)
    for one, other in zip(*reads, strict=True):
        assert float(((one - other) / other).abs().max().detach()) < 1e-5
    for mix in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0.1, 0.01)):
        for y, read in zip((x, wide), reads, strict=True):
            for name in NAMES:
                y[name].grad = None
            parts = zip(mix, (read.logprobs, read.kl, read.entropy), strict=True)
            torch.stack([c * part.sum() for c, part in parts]).sum().backward(retain_graph=True)
        for name in NAMES:
            found, expected = x[name].grad, wide[name].grad
            assert found is not None
            assert expected is not None
            assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [49_152, 151_936])
@pytest.mark.parametrize("nats", [1e-6, 1e-9])
def test_a_small_kl_of_a_real_vocabulary(vocab: int, nats: float) -> None:
    """Three digits of a millionth of a nat; far below that float32 logits have no digits left, but no sign is wrong."""
    x = large(vocab, (2 * nats) ** 0.5)
    found, truth = fused(x).kl, plain(doubled(x)).kl
    assert bool((found >= 0).all())
    assert 0.2 * nats < float(truth.min()) < float(truth.max()) < 5 * nats
    if nats >= 1e-6:
        assert float(((found - truth) / truth).abs().max()) < 1e-3


def test_probabilities_of_zero_and_ratios_beyond_float32() -> None:
    """Pitfall 7: a suppressed token has probability 0 on both sides, and a ratio of e^100 is still a number."""
    bias, ref_bias = torch.zeros(4), torch.zeros(4)
    bias[3] = ref_bias[3] = -torch.inf
    bias[2] = -200.0
    hidden = torch.ones(2, 1)
    weight = torch.zeros(4, 1, requires_grad=True)
    read = linear_kl(
        hidden,
        weight,
        hidden,
        torch.zeros(4, 1),
        torch.tensor([0, 1]),
        bias=bias,
        ref_bias=ref_bias,
    )
    expected = torch.tensor([1.5, 1.5]).log()
    torch.testing.assert_close(read.kl.detach(), expected)
    torch.testing.assert_close(read.entropy.detach(), torch.tensor([2.0, 2.0]).log())
    (read.kl + read.entropy + read.logprobs).sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["hidden", "ref_hidden", "upstream"])
def test_a_broken_row_breaks_nothing_else(side: str, value: float) -> None:
    """Bit for bit: what the others read, and the gradient of their hidden states."""
    x, whole = watched(case()), watched(case())
    upstream, sound = torch.ones(3, N, dtype=torch.float64), torch.ones(3, N, dtype=torch.float64)
    with torch.no_grad():
        (upstream.t() if side == "upstream" else x[side])[3, 0] = value
    rest = torch.arange(N) != 3
    read, expected = fused(x), fused(whole)
    if side != "upstream":
        assert bool(read.kl[3].isnan())
    for one, other in zip(read, expected, strict=True):
        assert torch.equal(one[rest], other[rest])
    for part, weights in ((read, upstream), (expected, sound)):
        torch.autograd.backward([part.logprobs, part.kl, part.entropy], list(weights))
    found, true = x["hidden"].grad, whole["hidden"].grad
    assert found is not None
    assert true is not None
    assert torch.equal(found[rest], true[rest])
    assert not bool(found[3].isfinite().all())


def test_autocast_does_not_take_the_digits() -> None:
    x, whole = case(torch.float32), fused(case(torch.float32))
    for tensor in (x["hidden"], x["weight"]):
        tensor.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = fused(x)
    for found, expected in zip(read, whole, strict=True):
        assert torch.equal(found.detach(), expected)


def test_no_tokens_at_all() -> None:
    empty = torch.zeros(0, 2, requires_grad=True)
    weight = torch.zeros(3, 2, requires_grad=True)
    read = linear_kl(empty, weight, empty, torch.zeros(3, 2), torch.zeros(0, dtype=torch.long))
    read.kl.sum().backward()
    assert read.kl.shape == (0,)
    assert weight.grad is not None
    assert not bool(weight.grad.any())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda x: x.update(ref_weight=x["ref_weight"][:-1]), "ref_bias|ref_weight"),
        (lambda x: x.update(ref_hidden=x["ref_hidden"][:-1]), "ref_hidden"),
        (lambda x: x.update(hidden=x["hidden"][:, :-1]), "hidden"),
        (lambda x: x.update(bias=x["bias"][:-1]), "bias"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Callable[[dict[str, Tensor]], None], complaint: str
) -> None:
    """Pitfall 44: another vocabulary is another space."""
    x = case()
    change(x)
    # The tests' own shape checker may see it first.
    with pytest.raises((ValueError, TypeCheckError), match=complaint):
        fused(x)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"softcap": 0.0}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        fused(case(), **options)


def test_a_capped_token_whose_probability_underflows_keeps_its_gradient() -> None:
    """log q is −160 and q is 0 in float32: the slope of the cap is that of the logit all the same."""
    logits = torch.tensor([[20.0, -20.0, 1.0]])
    found: list[Tensor] = []
    for dtype, read in ((torch.float32, fused), (torch.float64, plain)):
        x = {
            "hidden": torch.ones(1, 1, dtype=dtype),
            "weight": torch.zeros(3, 1, dtype=dtype),
            "ref_hidden": torch.ones(1, 1, dtype=dtype),
            "ref_weight": torch.zeros(3, 1, dtype=dtype),
            "tokens": torch.tensor([1]),
            "bias": logits[0].to(dtype).requires_grad_(),
            "ref_bias": torch.zeros(3, dtype=dtype),
        }
        logprob = read(x, temperature=0.25, softcap=30.0).logprobs.sum()
        found.append(torch.autograd.grad(logprob, x["bias"])[0].double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert float(found[1][1]) == pytest.approx(2.6415, rel=1e-4)
