"""The KL and its estimators against enumeration and closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kleash.functional.kl import ESTIMATORS, exact_kl, k1, k2, k3

distributions = st.lists(st.floats(-4, 4), min_size=5, max_size=5).map(
    lambda logits: torch.log_softmax(torch.tensor(logits, dtype=torch.double), -1)
)


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
    """P = (0.8, 0.2), Q = (0.5, 0.5): each estimator as a loss has the gradient of something else."""
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


@pytest.mark.parametrize("drop", [30.0, 60.0])
def test_k3_far_out_is_not_clamped(drop: float) -> None:
    """Pitfalls 1-3 of the field: a clamp hides the drift exactly where it is greatest."""
    logprob = torch.tensor(-drop, requires_grad=True)
    value = k3(logprob, torch.tensor(0.0))
    (gradient,) = torch.autograd.grad(value, logprob)
    assert float(value.detach()) == pytest.approx(
        float(torch.tensor(drop).exp()) - drop - 1, rel=1e-5
    )
    assert float(gradient) < -1e12
