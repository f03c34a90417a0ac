"""Every divergence against its usual form in float64, near zero in float32, and at the edges of the simplex."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kleash.functional.divergences import (
    DIVERGENCES,
    chi_squared,
    jensen_shannon,
    renyi,
    reverse_kl,
)

distributions = st.lists(st.floats(-6, 6), min_size=5, max_size=5).map(
    lambda logits: torch.log_softmax(torch.tensor(logits, dtype=torch.double), -1)
)


def usual(name: str, q: Tensor, p: Tensor) -> float:
    """The forms of the textbooks."""
    if name == "reverse":
        return float((q * (q / p).log()).sum())
    if name == "forward":
        return float((p * (p / q).log()).sum())
    if name == "jensen_shannon":
        m = (q + p) / 2
        return float(((q * (q / m).log()).sum() + (p * (p / m).log()).sum()) / 2)
    chi = float(((q - p) ** 2 / p).sum())
    return math.log1p(chi) if name == "renyi" else chi


@pytest.mark.parametrize("name", DIVERGENCES)
@given(distributions, distributions)
def test_each_is_what_its_name_says(name: str, q: Tensor, p: Tensor) -> None:
    expected = usual(name, q.exp(), p.exp())
    assert float(DIVERGENCES[name](q, p)) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 1.1, 3.0])
@given(distributions, distributions)
def test_renyi_of_any_order(alpha: float, q: Tensor, p: Tensor) -> None:
    power = float((q.exp() ** alpha * p.exp() ** (1 - alpha)).sum())
    expected = math.log(power) / (alpha - 1)
    assert float(renyi(q, p, alpha)) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(distributions, distributions)
def test_renyi_is_ordered_around_kl(q: Tensor, p: Tensor) -> None:
    orders = [float(renyi(q, p, a)) for a in (0.5, 0.999)]
    orders += [float(reverse_kl(q, p))] + [float(renyi(q, p, a)) for a in (1.001, 2.0)]
    assert orders == sorted(orders)
    assert float(renyi(q, p, 2.0)) == pytest.approx(math.log1p(float(chi_squared(q, p))))
    assert 0 <= float(jensen_shannon(q, p)) <= math.log(2)


@pytest.mark.parametrize("alpha", [1.0, 0.0, -1.0, math.nan])
def test_renyi_has_orders_that_are_not_its_own(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        renyi(torch.zeros(1), torch.zeros(1), alpha)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-1])
def test_near_zero_float32_keeps_its_digits(name: str, size: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(32, 4096, generator=generator) * 2
    other = logits + size * torch.randn(32, 4096, generator=generator)
    rows = [torch.log_softmax(x, -1) for x in (logits, other)]
    exact = DIVERGENCES[name](*(torch.log_softmax(x.double(), -1) for x in (logits, other)))
    found = DIVERGENCES[name](*rows)
    assert bool((found >= 0).all())
    assert float(((found - exact) / exact).abs().max()) < 5e-3
    assert bool((DIVERGENCES[name](rows[0], rows[0]) == 0).all())


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_no_number_stays_none(name: str, side: int) -> None:
    """A broken model must not read as a small KL: NaN in, NaN out, from either side, in one entry or in all."""
    for broken in ([math.nan] * 3, [math.nan, -1.0, -1.0]):
        rows = [torch.tensor([0.2, 0.3, 0.5]).log(), torch.tensor([0.2, 0.3, 0.5]).log()]
        rows[side] = torch.tensor(broken)
        assert math.isnan(float(DIVERGENCES[name](*rows)))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_far_apart_and_at_the_edges(name: str) -> None:
    """Pitfall 7: −inf is a probability of 0 and adds its limit; −inf − (−inf) is never formed."""
    sure, even = torch.tensor([1.0, 0.0, 0.0]).log(), torch.tensor([0.5, 0.5, 0.0]).log()
    inf = math.inf
    expected = {
        "reverse": (math.log(2), inf),
        "forward": (inf, math.log(2)),
        "jensen_shannon": (0.215762, 0.215762),
        "renyi": (math.log(2), inf),
        "chi_squared": (1.0, inf),
    }[name]
    found = [float(DIVERGENCES[name](*pair)) for pair in ((sure, even), (even, sure))]
    assert found == pytest.approx(expected, abs=1e-6)
    logits = torch.tensor([[60.0, 0.0, -60.0]], requires_grad=True)
    far = DIVERGENCES[name](
        torch.log_softmax(logits, -1), torch.log_softmax(torch.tensor([[-10.0, 0.0, 10.0]]), -1)
    )
    (gradient,) = torch.autograd.grad(far, logits)
    assert bool(far.isfinite().all())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0, 5.0, 50.0])
@pytest.mark.parametrize("gap", [0.0, 1e-3, 1.0, 20.0, 200.0, 5000.0])
def test_renyi_is_finite_wherever_its_value_is(
    gap: float, alpha: float, dtype: torch.dtype
) -> None:
    """Two arms, gap apart one way and back the other: Σ q^α p^{1−α} leaves every float's range, its logarithm none."""
    logits = torch.tensor([gap, 0.0], dtype=dtype, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.0, gap], dtype=dtype), -1)
    found = renyi(torch.log_softmax(logits, -1), ref, alpha)
    # By hand: q = (a, b), p = (b, a) with log b = −gap + log a.
    log_a = -math.log1p(math.exp(-gap))
    log_b = log_a - gap
    powers = [alpha * log_a + (1 - alpha) * log_b, alpha * log_b + (1 - alpha) * log_a]
    high = max(powers)
    expected = (high + math.log1p(math.exp(min(powers) - high))) / (alpha - 1)
    digits = 1e-5 if dtype is torch.float32 else 1e-10
    assert float(found.detach()) == pytest.approx(expected, rel=digits, abs=digits)
    (gradient,) = torch.autograd.grad(found, logits)
    assert bool(gradient.isfinite().all())
    if gap == 5000.0 and alpha > 1:  # D grows by α/(α − 1) · ∂ log q
        assert float(found.detach()) == pytest.approx(5000.0, rel=1e-3)


def test_renyi_of_what_has_nothing_in_common() -> None:
    one, other = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    assert float(renyi(one, other, 0.5)) == math.inf
    assert float(renyi(one, other, 2.0)) == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_high_order_of_a_rare_token(dtype: torch.dtype) -> None:
    """A probability of e^−1400, 29 nats above the reference's: its power overflows, its product with it is e^21."""
    logprobs = torch.tensor([0.0, -1400.0], dtype=dtype, requires_grad=True)
    found = renyi(logprobs, torch.tensor([0.0, -1429.0], dtype=dtype), 50.0)
    assert float(found.detach()) == pytest.approx(math.log1p(math.exp(21)) / 49, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, logprobs)
    assert gradient.tolist() == pytest.approx([0.0, 50 / 49], abs=1e-5)
