"""χ² of whole responses: its charge and its reading against enumeration, its tilt against what defines it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kleash.functional.advantages import mean_of_others
from kleash.functional.chi_squared import (
    LARGEST_LOG_RATIO,
    chi_squared_charge,
    chi_squared_reading,
    chi_squared_tilt,
    chi_squared_tilt_at,
    response_log_ratio,
)
from kleash.functional.divergences import chi_squared
from kleash.functional.kl import exact_kl
from kleash.lab.mdp import MDP, golden, tilt

GOLDEN = golden()
POOL = 2**12


def _reference() -> Tensor:
    return GOLDEN.logprobs(GOLDEN.ref_logits).sum(-1)


def _gradient(own: Tensor, ref: Tensor, logits: Tensor, num: int, *, is_compared: bool) -> Tensor:
    """E[(1/n) Σ_i A_i ∇ log π(y_i)] over every group of so many responses, each as often as π says.

    A is the charge, less the mean of the others' where responses are compared.
    """
    drawn = torch.cartesian_prod(*[torch.arange(len(own))] * num)
    chance = own.detach()[drawn].sum(-1).exp()
    prompts = torch.arange(len(drawn)).repeat_interleave(num)
    log_ratios = (own - ref).detach()[drawn].flatten()
    charge = chi_squared_charge(log_ratios, torch.zeros(len(prompts)), prompts, 1.0)
    assert not charge.amounts.requires_grad
    assert not bool(charge.is_bound.any())
    amounts = charge.amounts
    if is_compared:
        amounts = amounts - mean_of_others(amounts[:, None], prompts)[:, 0]
    total = (chance[:, None] * amounts.view(-1, num) * own[drawn]).sum() / num
    return torch.autograd.grad(total, logits, retain_graph=True)[0]


@pytest.mark.parametrize(
    ("p", "num", "alone"), [(0.6, 2, 0.4), (0.9, 2, 0.1), (0.99, 2, 0.01), (0.9, 4, 0.271)]
)
def test_charges_that_are_compared_have_the_gradient_of_half_chi_squared(
    p: float, num: int, alone: float
) -> None:
    """All of it, in expectation over groups drawn from π; by themselves 1 − p^{n−1}, as their least may be their own.

    Of a policy of p and 1 − p over a reference of a half each.
    """
    logits = torch.tensor([math.log(p / (1 - p)), 0.0], dtype=torch.double, requires_grad=True)
    own, ref = logits.log_softmax(-1), torch.full((2,), 0.5, dtype=torch.double).log()
    (truth,) = torch.autograd.grad(0.5 * chi_squared(own, ref), logits, retain_graph=True)

    assert float(truth[0]) == pytest.approx(2 * p * (1 - p) * (2 * p - 1))
    for share, is_compared in ((1.0, True), (alone, False)):
        found = _gradient(own, ref, logits, num, is_compared=is_compared)
        torch.testing.assert_close(found, share * truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num", [2, 3])
def test_of_sequences_they_have_it_too(num: int) -> None:
    """Of two tokens in a row, over all 81 and 729 groups."""
    draw = torch.Generator().manual_seed(3)
    mdp = MDP(3, 2, torch.randn(4, 3, generator=draw, dtype=torch.double), torch.zeros(9))
    logits = torch.randn(4, 3, generator=draw, dtype=torch.double).requires_grad_()
    own, ref = mdp.logprobs(logits).sum(-1), mdp.logprobs(mdp.ref_logits).sum(-1)
    (truth,) = torch.autograd.grad(0.5 * chi_squared(own, ref), logits, retain_graph=True)

    assert float(truth.abs().max()) > 0.05
    found = _gradient(own, ref, logits, num, is_compared=True)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


def test_only_a_responses_own_tokens_count() -> None:
    log_ratio = torch.tensor([[0.5, 0.25, torch.nan], [1.0, torch.inf, -torch.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])

    assert response_log_ratio(log_ratio, mask).tolist() == [0.75, 1.0]


def test_the_charge_is_finite_in_the_numbers_of_a_loss_and_no_number_stays_none() -> None:
    far = torch.tensor([-torch.inf, 0.0, LARGEST_LOG_RATIO - 1, 60.0, 1e4, torch.inf]).double()
    same, prompt = torch.ones(6), torch.zeros(6, dtype=torch.long)
    charge = chi_squared_charge(far, same, prompt, 0.5)

    expected = [0.0, 1.0, *map(math.exp, (39, 40, 40, 40))]
    assert (2 * charge.amounts).tolist() == pytest.approx(expected)
    assert not bool(charge.is_bound.any())
    assert bool(charge.amounts.float().square().isfinite().all())
    broken = chi_squared_charge(torch.tensor([torch.nan]), same[:1], prompt[:1], 1.0)
    assert bool(broken.amounts.isnan())


def test_no_charge_is_over_what_rewards_differ_by() -> None:
    """From the least of its own prompt on; by the prompt whose rewards differ most."""
    log_ratios = torch.tensor([3.0, 5.0, 11.0, 20.0, 26.0]).log().double()
    rewards, prompts = torch.tensor([7.0, 7.0, 0.0, 1.0, 4.0]), torch.tensor([5, 5, 2, 2, 2])
    for coef in (1.0, 0.25):
        charge = chi_squared_charge(log_ratios, rewards, prompts, coef)
        free = coef * torch.tensor([0.0, 2.0, 0.0, 9.0, 15.0])
        assert charge.amounts.tolist() == pytest.approx(free.clamp(max=4).tolist())
        assert charge.is_bound.tolist() == (free > 4).tolist()


@given(st.lists(st.integers(0, POOL - 1), min_size=2, max_size=12), st.floats(-3, 1))
def test_at_the_optimum_no_charge_is_bound(drawn: list[int], log_beta: float) -> None:
    """Whatever is drawn there: two charges never differ by more than their rewards."""
    beta = 10**log_beta
    log_weights, _ = chi_squared_tilt(GOLDEN.rewards, _reference(), beta, 2.0)
    prompt = torch.zeros(len(drawn), dtype=torch.long)
    bound, free = (
        chi_squared_charge(log_weights[drawn], rewards, prompt, 2 * beta).amounts
        for rewards in (GOLDEN.rewards[drawn], torch.zeros(len(drawn)))
    )
    torch.testing.assert_close(bound, free, rtol=0, atol=1e-9)


def _exact_along(logits: Tensor) -> Tensor:
    """Σ_t KL_t of the states along every sequence."""
    return exact_kl(logits, GOLDEN.ref_logits)[GOLDEN.states()].sum(-1)


@pytest.mark.parametrize(
    ("weight", "most"), [(0.05, 0.9), (0.5, 0.9), (2.0, 1.05), (5.0, 1.0), (10.0, 0.9)]
)
def test_the_reading_is_chi_squared_and_as_quiet_as_it_is_said_to_be(
    weight: float, most: float
) -> None:
    """Of single responses, in units of χ²: near the reference the plain e^U − 1 varies as 1/√χ²."""
    logits, ref = tilt(GOLDEN, weight), _reference()
    own = GOLDEN.logprobs(logits).sum(-1)
    law, log_ratios = own.exp(), own - ref
    truth = float(chi_squared(own, ref))
    along = _exact_along(logits)
    each = torch.stack(
        [chi_squared_reading(u[None], k[None]) for u, k in zip(log_ratios, along, strict=True)]
    )

    def deviation(of: Tensor) -> float:
        return float((law @ (of - law @ of).square()).sqrt()) / truth

    assert float(law @ each) == pytest.approx(truth, rel=1e-9)
    assert float(each.min()) >= 0
    assert deviation(each) < most
    assert deviation(each) < 1.001 * deviation(log_ratios.expm1())


def test_the_reading_is_not_bounded() -> None:
    kl = torch.zeros(1)
    assert float(chi_squared_reading(torch.tensor([60.0]).double(), kl)) == pytest.approx(
        math.exp(60), rel=1e-9
    )
    assert float(chi_squared_reading(torch.tensor([1e3]).double(), kl)) == math.inf


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=8),
    st.floats(-4, 3),
    st.floats(-6, 4),
)
def test_the_tilt_meets_what_defines_it(
    rewards: list[float], log_beta: float, log_coef: float
) -> None:
    """log z + c·z = (R − ν)/β everywhere, E_ref z = 1, and 1 + (max R − min R)/(βc) bounds every z."""
    beta, coef = 10**log_beta, 10**log_coef
    values = torch.tensor(rewards, dtype=torch.double)
    reference = torch.linspace(0, 1, len(rewards), dtype=torch.double).log_softmax(-1)
    log_weights, nu = chi_squared_tilt(values, reference, beta, coef)
    weights = log_weights.exp()
    scale = 1 + (abs(nu) + float(values.abs().max())) / beta
    left = log_weights + coef * weights - (values - nu) / beta

    assert float(left.abs().max()) < 1e-13 * scale
    assert float((reference + log_weights).logsumexp(-1)) == pytest.approx(0, abs=1e-12 * scale)
    spread = float(values.max() - values.min())
    assert float(weights.max()) <= (1 + spread / (beta * coef)) * (1 + 1e-9)


@pytest.mark.parametrize("beta", [1e-300, 1e-6, 1e3])
def test_no_beta_overflows(beta: float) -> None:
    log_weights, nu = chi_squared_tilt(GOLDEN.rewards, _reference(), beta, 1.0)

    assert bool(log_weights.isfinite().all())
    assert math.isfinite(nu)
    assert float((_reference() + log_weights).logsumexp(-1)) == pytest.approx(0, abs=1e-9)


def _pools(num: int, degrees: int | None) -> list[tuple[Tensor, Tensor]]:
    """True values and proxies, which err normally or as Student's t."""
    pools: list[tuple[Tensor, Tensor]] = []
    for seed in range(num):
        draw = torch.Generator().manual_seed(seed)
        value, error = torch.randn(2, POOL, generator=draw, dtype=torch.double)
        if degrees is not None:
            squares = torch.randn(degrees, POOL, generator=draw, dtype=torch.double).square()
            error = error / squares.mean(0).sqrt()
        pools.append((value, value + error))
    return pools


@pytest.mark.parametrize("kl", [0.1, 1.0, 3.0])
def test_a_tilt_to_a_kl_has_it_and_is_one(kl: float) -> None:
    """Whatever β it took, log z + c·z is a straight line in R."""
    _, proxy = _pools(1, 5)[0]
    probs = chi_squared_tilt_at(proxy, kl, chi_squared=0.5)
    log_weights = (POOL * probs).log()
    link = log_weights + 0.5 * log_weights.exp()
    slope = (link[1] - link[0]) / (proxy[1] - proxy[0])

    assert float(probs.sum()) == pytest.approx(1, abs=1e-12)
    assert float(probs @ log_weights) == pytest.approx(kl, abs=1e-9)
    torch.testing.assert_close(link - link[0], slope * (proxy - proxy[0]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kl", [0.0, -1.0, 1.3863, math.nan])
def test_a_kl_that_no_tilt_has_is_refused(kl: float) -> None:
    with pytest.raises(ValueError, match=r"under 1\.38629 nats"):
        chi_squared_tilt_at(torch.arange(4.0), kl)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("degrees", "known"),
    [(None, (0.311, 0.936, 1.597)), (5, (0.272, 0.804, 1.114))],
)
def test_true_value_under_a_proxy_that_errs(degrees: int | None, known: tuple[float, ...]) -> None:
    """A13's third column within 5 %, at KL of 0.1, 1 and 3: with errors of finite variance there is some left."""
    pools = _pools(6, degrees)
    for kl, expected in zip((0.1, 1.0, 3.0), known, strict=True):
        found = [float(chi_squared_tilt_at(proxy, kl) @ value) for value, proxy in pools]
        assert sum(found) / len(found) == pytest.approx(expected, rel=0.05)
