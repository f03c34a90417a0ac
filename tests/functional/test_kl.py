"""The KL and its estimators against enumeration and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kleash.functional.kl import (
    ESTIMATORS,
    TAIL,
    Direction,
    exact_kl,
    importance_weights,
    in_tail,
    k1,
    k2,
    k3,
    topk_kl,
)

distributions = st.lists(st.floats(-4, 4), min_size=5, max_size=5).map(
    lambda logits: torch.log_softmax(torch.tensor(logits, dtype=torch.double), -1)
)


@given(distributions, distributions)
def test_the_temperature_divides_logits_on_both_sides(q: torch.Tensor, p: torch.Tensor) -> None:
    """Pitfall 15: at T = 0.7 the divergence is that of the two sharpened distributions, renormalised."""
    sharp = [torch.softmax(x / 0.7, -1) for x in (q, p)]
    enumerated = float((sharp[0] * (sharp[0] / sharp[1]).log()).sum())
    assert float(exact_kl(q, p, temperature=0.7)) == pytest.approx(enumerated, abs=1e-12)


def test_exact_kl_is_one_number_per_row() -> None:
    """Pitfall 25: a "full" KL taken of gathered log-probabilities has lost the token axis."""
    logits, ref = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    found = exact_kl(logits, ref)
    assert found.shape == (2, 3)
    for b in range(2):
        for t in range(3):
            q, p = torch.softmax(logits[b, t], -1).tolist(), torch.softmax(ref[b, t], -1).tolist()
            slow = sum(x * math.log(x / y) for x, y in zip(q, p, strict=True))
            assert float(found[b, t]) == pytest.approx(slow, abs=1e-5)


@given(distributions, distributions, st.integers(1, 5))
def test_a_truncated_kl_never_says_too_much(q: torch.Tensor, p: torch.Tensor, k: int) -> None:
    bound, exact = float(topk_kl(q, p, k)), float(exact_kl(q, p))
    assert 0 <= bound <= exact + 1e-12
    if k >= 4:  # a bucket of one token, or of none, hides nothing
        assert bound == pytest.approx(exact, abs=1e-12)


def test_a_tail_sampled_without_the_one_has_the_wrong_gradient() -> None:
    """P = (.8, .2), Q = (.5, .5), head {A}: 1.386294 with q/sg(q)·sg(u + 1), 2.386 with u alone."""
    p = torch.tensor(0.8, dtype=torch.double, requires_grad=True)
    logprobs, ref = _binary(p)
    rows, refs = logprobs.expand(2, 2), ref.expand(2, 2)
    value = topk_kl(rows, refs, 1, tokens=torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad((logprobs.exp().detach() * value).sum(), p)
    assert float(gradient) == pytest.approx(1.386294, abs=1e-6)


def test_importance_weights_by_level() -> None:
    """Pitfall 50: a weight of a whole response is still one weight per token, [B, T]."""
    log_ratio = torch.tensor([[2.0, 3.0, 5.0], [0.5, 4.0, 7.0]]).log()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = {
        level: importance_weights(log_ratio, torch.zeros(2, 3), mask, level)
        for level in ("token", "prefix", "sequence")
    }
    expected = {
        "token": [[2, 3, 0], [0.5, 4, 7]],
        "prefix": [[2, 6, 0], [0.5, 2, 14]],
        "sequence": [[6, 6, 0], [14, 14, 14]],
    }
    for level, rows in expected.items():
        torch.testing.assert_close(found[level], torch.tensor(rows, dtype=torch.float32))


@given(distributions, distributions)
def test_stale_data_pathwise(q: torch.Tensor, p: torch.Tensor) -> None:
    """T5: ∇(ρ k3) = ∇(sg(ρ) k2) = ρ k1 ∇log q, sample by sample, if the gradient flows through ρ."""
    logits = (q + 0.3 * torch.randn(5, dtype=torch.double)).requires_grad_()
    for token in range(5):
        logprob, old, ref = torch.log_softmax(logits, -1)[token], q[token], p[token]
        rho = importance_weights(
            logprob.view(1, 1), old.view(1, 1), torch.ones(1, 1, dtype=torch.bool), "token"
        )[0, 0]
        both = [rho * k3(logprob, ref), rho.detach() * k2(logprob, ref)]
        one, other = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in both)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        detached = rho.detach() * k3(logprob, ref)
        (wrong,) = torch.autograd.grad(detached, logits, retain_graph=True)
        (score,) = torch.autograd.grad(logprob, logits)
        u = float((logprob - ref).detach())
        torch.testing.assert_close(wrong, rho.detach() * -math.expm1(-u) * score)


@given(distributions, distributions)
def test_exact_kl_is_the_enumerated_sum(logprobs: torch.Tensor, ref: torch.Tensor) -> None:
    enumerated = sum(float(q.exp() * (q - p)) for q, p in zip(logprobs, ref, strict=True))
    assert float(exact_kl(logprobs, ref)) == pytest.approx(enumerated, abs=1e-12)


@given(distributions, distributions)
def test_k1_and_k3_are_unbiased_and_k2_is_half_the_second_moment(
    logprobs: torch.Tensor, ref: torch.Tensor
) -> None:
    truth, weights = float(exact_kl(logprobs, ref)), logprobs.exp()
    assert float((weights * k1(logprobs, ref)).sum()) == pytest.approx(truth, abs=1e-12)
    assert float((weights * k3(logprobs, ref)).sum()) == pytest.approx(truth, abs=1e-12)
    second = float((weights * (logprobs - ref) ** 2).sum()) / 2
    assert float((weights * k2(logprobs, ref)).sum()) == pytest.approx(second, abs=1e-12)


def _binary(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    half = torch.tensor([0.5, 0.5], dtype=torch.double).log()
    return torch.stack([p, 1 - p]).log(), half


def test_binary_golden_values_and_gradients() -> None:
    """T1, pitfalls 21 and 22: P = (0.8, 0.2), Q = (0.5, 0.5): each as a loss has the gradient of something else."""
    golden = {"exact": 1.386294, "k1": 0.0, "k2": 1.386294, "k3": 1.875}
    for name, expected in golden.items():
        p = torch.tensor(0.8, dtype=torch.double, requires_grad=True)
        logprobs, ref = _binary(p)
        if name == "exact":
            loss = exact_kl(logprobs, ref)
            assert float(loss.detach()) == pytest.approx(0.192745, abs=1e-6)
        else:
            loss = (logprobs.exp().detach() * ESTIMATORS[name](logprobs, ref)).sum()
        (gradient,) = torch.autograd.grad(loss, p)
        assert float(gradient) == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize("nats", [1e-8, 1e-6, 1e-4, 1e-2])
def test_small_kl_keeps_its_digits_in_float32_and_is_never_negative(nats: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 4096, generator=generator) * 2
    other = logits + torch.randn(64, 4096, generator=generator) * (2 * nats) ** 0.5
    read = exact_kl(torch.log_softmax(logits, -1), torch.log_softmax(other, -1))
    truth = exact_kl(torch.log_softmax(logits.double(), -1), torch.log_softmax(other.double(), -1))
    assert bool((read >= 0).all())
    assert float(((read - truth).abs() / truth).mean()) < 1e-3


def test_a_model_is_exactly_at_no_distance_from_itself() -> None:
    logprobs = torch.log_softmax(torch.randn(8, 100), -1)
    assert bool((exact_kl(logprobs, logprobs) == 0).all())


def test_zero_probabilities() -> None:
    certain, half = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log()
    assert float(exact_kl(certain, half)) == pytest.approx(0.693147, abs=1e-6)
    assert float(exact_kl(half, certain)) == float("inf")
    assert float(exact_kl(certain, certain)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drop", [3.0, 10.0, 30.0])
def test_k3_far_out_is_what_it_is_and_pushes_back(drop: float, dtype: torch.dtype) -> None:
    """Pitfall 3: a clamp kills the gradient exactly where the drift is greatest."""
    logprob = torch.tensor(-drop, dtype=dtype, requires_grad=True)
    value = k3(logprob, torch.tensor(0.0, dtype=dtype))
    assert float(value.detach()) == pytest.approx(math.expm1(drop) - drop, rel=1e-5)
    assert not bool(in_tail(logprob, torch.tensor(0.0)))
    if dtype is torch.float32:
        (gradient,) = torch.autograd.grad(value, logprob)
        assert float(gradient) == pytest.approx(1 - math.exp(drop), rel=1e-5)


@pytest.mark.parametrize("drop", [41.0, 100.0, 1e4])
def test_k3_in_its_tail_is_a_flagged_finite_line(drop: float) -> None:
    """Pitfalls 1 and 2: exp of 100 overflows float32, and a clamp after it comes too late."""
    logprob = torch.tensor(-drop, requires_grad=True)
    value = k3(logprob, torch.tensor(0.0))
    (gradient,) = torch.autograd.grad(value, logprob)
    slope = math.exp(TAIL)
    assert float(value.detach()) == pytest.approx(slope * (1 + drop - TAIL) - 1 - drop, rel=1e-5)
    assert float(gradient) == pytest.approx(1 - slope, rel=1e-5)
    assert bool(in_tail(logprob, torch.tensor(0.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tail_is_counted_and_nothing_is_clamped_in_silence(dtype: torch.dtype) -> None:
    """T8, pitfalls 1 to 3: log-ratios of −30, −50 and −1000. Two are counted; all are finite, in order, and pull."""
    logprobs = torch.tensor([-30.0, -50.0, -1000.0], dtype=dtype, requires_grad=True)
    ref = torch.zeros(3, dtype=dtype)
    assert in_tail(logprobs, ref).tolist() == [False, True, True]
    value = k3(logprobs, ref)
    (gradient,) = torch.autograd.grad(value.sum(), logprobs)
    assert bool(value.isfinite().all())
    assert value.dtype is torch.float32
    assert float(value[0].detach()) == pytest.approx(math.expm1(30) - 30, rel=1e-5)
    assert value.tolist() == sorted(value.tolist())
    assert bool(gradient.isfinite().all())
    assert bool((gradient < -1e12).all())  # a step down the penalty raises all three again


def test_the_count_is_of_what_k3_does_and_not_of_what_half_precision_makes_of_it() -> None:
    """−40.25 − (−0.2) is −40.05, in the tail; in bfloat16 the difference would be −40, and out of it."""
    pair = torch.tensor(-40.25, dtype=torch.bfloat16), torch.tensor(-0.2, dtype=torch.bfloat16)
    assert bool(in_tail(*pair))
    straight = math.exp(TAIL) * (1 + 40.25 - float(pair[1].abs()) - TAIL)
    assert float(k3(*pair)) == pytest.approx(straight, rel=1e-4)


# Policy, then reference: near, far on either side (ratios of e^±80 and more), and with suppressed tokens.
ROWS = {
    "near": ([0.3, -0.2, 0.1, 1.0], [0.2, -0.1, 0.15, 1.1]),
    "apart": ([3.0, -2.0, 0.5, 1.0], [-1.0, 2.0, 0.0, 0.5]),
    "far": ([60.0, 0.0, -20.0, 5.0], [-20.0, 0.0, 30.0, 5.0]),
    "suppressed in both": ([1.0, -math.inf, 0.5, -0.3], [0.2, -math.inf, -0.5, 0.9]),
    "suppressed in the policy": ([1.0, -math.inf, 0.5, -0.3], [0.2, 0.4, -0.5, 0.9]),
    "far and suppressed": ([45.0, -math.inf, 0.0, 1.0], [0.0, -math.inf, 40.0, -45.0]),
}


def _textbook(name: Direction, logits: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """The usual sums, in float64, over the tokens where they are not 0."""
    q, p = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)

    def kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        there = one != -torch.inf
        return (one[there].exp() * (one[there] - other[there])).sum()

    if name == "reverse":
        return kl(q, p)
    if name == "forward":
        return kl(p, q)
    if name == "jensen_shannon":
        there = (q != -torch.inf) | (p != -torch.inf)
        q, p = q[there], p[there]
        mixed = torch.logaddexp(q, p) - math.log(2)
        return (kl(q, mixed) + kl(p, mixed)) / 2
    there = q != -torch.inf
    log_sum = (2 * q[there] - p[there]).logsumexp(-1)
    return log_sum if name == "renyi" else log_sum.exp() - 1


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("direction", ["reverse", "forward", "jensen_shannon", "renyi", "chi_squared"])  # fmt: skip
def test_every_direction_against_the_textbook(direction: Direction, rows: str) -> None:
    """Value and gradient, in float64 and in float32, of a policy whose suppressed tokens stay suppressed."""
    policy, ref = (torch.tensor(x, dtype=torch.double) for x in ROWS[rows])
    policy.requires_grad_()
    wanted = _textbook(direction, policy, ref)
    (slope,) = torch.autograd.grad(wanted, policy)
    if direction == "forward" and rows == "suppressed in the policy":
        assert float(exact_kl(policy, ref, direction=direction).detach()) == math.inf
        return
    for dtype, digits in ((torch.double, 1e-9), (torch.float32, 2e-5)):
        logits = policy.detach().to(dtype).requires_grad_()
        found = exact_kl(logits, ref.to(dtype), direction=direction)
        if float(wanted.detach()) > torch.finfo(dtype).max:
            assert float(found.detach()) == math.inf
            continue
        assert float(found.detach()) == pytest.approx(
            float(wanted.detach()), rel=digits, abs=digits
        )
        (gradient,) = torch.autograd.grad(found, logits)
        torch.testing.assert_close(gradient.double(), slope, rtol=20 * digits, atol=digits)
