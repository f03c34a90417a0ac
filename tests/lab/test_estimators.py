"""Every estimator's value and gradient by enumeration: the tables of the golden problem, and the labels' truth."""

import pytest
import torch

from kleash.functional.kl import LABELS, regressed_kl
from kleash.lab.estimators import (
    PLACEMENTS,
    Figures,
    Terms,
    enumerate_terms,
    local,
    measure,
    sequence_kl,
)
from kleash.lab.mdp import MDP, golden, optimum

# bias in % and std/KL at KL 0.2752 (beta 1) and 2.0405 (beta 0.2)
VALUES = {
    "k1": (0, 2.523, 0, 0.619),
    "k2": (-1.77, 0.930, -7.36, 0.619),
    "k2_sequence": (1.35, 0.995, 41.1, 1.033),
    "k3": (0, 1.337, 0, 48.4),
    "k3_sequence": (0, 1.371, 0, 45.9),
    "exact": (0, 0.332, 0, 0.198),
    "exact_regressed": (0, 0.332, 0, 0.198),
    "topk_merged": (-9.35, 0.341, -1.82, 0.202),
    "topk_sampled": (0, 1.154, 0, 0.296),
}
# cosine and norm ratio to the gradient of the sequence KL, beta 0.2
GRADIENTS = {
    "k1": (None, 0),
    "k2": (0.9126, 0.8060),
    "exact": (0.9126, 0.8060),
    "topk_sampled": (0.9126, 0.8060),
    "k3": (0.7242, 1.0324),
    "k3_sequence": (0.7833, 0.8280),
    "k2_sequence": (1, 1),
    "k1_in_reward": (1, 1),
    "exact_rao_blackwell": (1, 1),
}


@pytest.fixture(scope="module")
def tables() -> dict[float, tuple[float, dict[str, Figures]]]:
    mdp = golden()
    return {beta: measure(mdp, optimum(mdp, beta)) for beta in (1.0, 0.2)}


@pytest.mark.parametrize("name", VALUES)
def test_values(tables: dict[float, tuple[float, dict[str, Figures]]], name: str) -> None:
    for beta, (bias, std) in ((1.0, VALUES[name][:2]), (0.2, VALUES[name][2:])):
        kl, figures = tables[beta]
        found = figures[name]
        tolerance = 1e-10 if bias == 0 else 6e-3 if abs(bias) < 10 else 6e-2
        assert 100 * (found.mean / kl - 1) == pytest.approx(bias, abs=tolerance)
        assert found.std / kl == pytest.approx(std, rel=2e-3)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(tables: dict[float, tuple[float, dict[str, Figures]]], name: str) -> None:
    cosine, ratio = GRADIENTS[name]
    found = tables[0.2][1][name]
    tolerance = 1e-10 if ratio in (0, 1) else 1e-4
    assert found.gradient_norm_ratio == pytest.approx(ratio, abs=tolerance)
    if cosine is None:
        assert found.gradient_cosine is None
    else:
        assert found.gradient_cosine == pytest.approx(cosine, abs=tolerance)


def test_the_true_gradient_is_that_of_central_differences() -> None:
    mdp = golden()
    torch.manual_seed(3)
    logits = (mdp.ref_logits + torch.randn_like(mdp.ref_logits)).requires_grad_()
    (gradient,) = torch.autograd.grad(sequence_kl(enumerate_terms(mdp, logits)), logits)
    for state, symbol in ((0, 0), (3, 5), (70, 2), (584, 7)):
        step = torch.zeros_like(logits)
        step[state, symbol] = 1e-5
        ends = [
            float(sequence_kl(enumerate_terms(mdp, logits.detach() + sign * step)))
            for sign in (1, -1)
        ]
        assert float(gradient[state, symbol]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-9)


@pytest.mark.parametrize("name", LABELS)
def test_labels_tell_the_truth(name: str) -> None:
    """On one-token answers, where the local KL is the whole: value and gradient of each, for 20 random policies."""
    torch.manual_seed(7)
    label = LABELS[name]
    for _ in range(20):
        logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
        ref = 0.5 * torch.randn(6, dtype=torch.float64)
        terms = _one_step(logits, ref)
        estimate, probs = local(terms)[name][:, 0], terms.probs
        true = (terms.full[0, 0].exp() * (terms.full[0, 0] - terms.ref_full[0, 0])).sum()
        other = (terms.ref_full[0, 0].exp() * (terms.ref_full[0, 0] - terms.full[0, 0])).sum()
        mean = float((probs * estimate.detach()).sum())
        if label.value == "unbiased":
            assert mean == pytest.approx(float(true.detach()), abs=1e-12)
        elif label.value == "lower bound":
            assert mean < float(true.detach())
        else:
            assert abs(mean - float(true.detach())) > 1e-6
        gradients = {
            side: torch.autograd.grad(kl, logits, retain_graph=True)[0]
            for side, kl in (("reverse", true), ("forward", other))
        } | {"zero": torch.zeros(6, dtype=torch.float64)}
        (found,) = torch.autograd.grad((probs * estimate).sum(), logits, retain_graph=True)
        if label.loss != "its own":
            torch.testing.assert_close(found, gradients[label.loss], rtol=0, atol=1e-12)
        reward = (probs * estimate.detach() * terms.logprobs[:, 0]).sum()
        (score,) = torch.autograd.grad(reward, logits, retain_graph=True)
        if label.reward == "reverse":
            torch.testing.assert_close(score, gradients["reverse"], rtol=0, atol=1e-12)
        elif label.reward == "future only":  # one step has no future
            torch.testing.assert_close(score, gradients["zero"], rtol=0, atol=1e-12)
        else:
            assert float((score - gradients["reverse"]).abs().max()) > 1e-6


def _one_step(logits: torch.Tensor, ref: torch.Tensor) -> Terms:
    return enumerate_terms(MDP(6, 1, ref[None], torch.zeros(6)), logits[None])


def test_stepwise_exactness_is_not_always_less_noisy() -> None:
    """The two-step counterexample (T6): Var of the sampled sum 3.32, of the exact sum 5.07, of the best mix 2.94."""
    p, q = [[0.5, 0.5], [0.5, 0.5], [0.01, 0.99]], [[0.25, 0.75], [0.5, 0.5], [0.99, 0.01]]
    ref, policy = (torch.tensor(x, dtype=torch.float64).log() for x in (q, p))
    kl, figures = measure(MDP(2, 2, ref, torch.zeros(4)), policy)
    assert kl == pytest.approx(2.395450, abs=1e-6)
    for name, variance in (("k1", 3.315914), ("exact", 5.069742), ("exact_regressed", 2.944576)):
        assert figures[name].mean == pytest.approx(kl, abs=1e-10)
        assert figures[name].std ** 2 == pytest.approx(variance, abs=1e-5)
    assert figures["k3"].std ** 2 == pytest.approx(44.77, abs=0.01)


def test_the_regression_is_the_best_mix_on_its_own_sample() -> None:
    torch.manual_seed(1)
    exact = torch.rand(200, dtype=torch.float64)
    sampled = exact + torch.randn(200, dtype=torch.float64)
    estimate, c = regressed_kl(sampled, exact)
    assert float(estimate.var()) <= min(float(sampled.var()), float(exact.var())) + 1e-12
    for other in (c - 0.1, c + 0.1):
        assert float(regressed_kl(sampled, exact, other)[0].var()) > float(estimate.var())


def test_every_placement_has_an_estimate() -> None:
    assert {estimate for estimate, _ in PLACEMENTS.values()} <= LABELS.keys()
