"""Every estimator's value and gradient by enumeration: the tables of the golden problem, and the labels' truth."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kleash.functional.divergences import DIVERGENCES
from kleash.functional.kl import ESTIMATORS, LABELS, exact_kl, regressed_kl
from kleash.functional.penalties import GRADIENTS, REFUSALS, Penalty
from kleash.lab.estimators import (
    LEVELS,
    PENALTIES,
    Measurement,
    Terms,
    descended,
    enumerate_terms,
    estimates,
    gradient_of,
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
AGAINST_THE_TRUTH = {
    "k1": (None, 0),
    "k2": (0.9126, 0.8060),
    "exact": (0.9126, 0.8060),
    "topk_sampled": (0.9126, 0.8060),
    "k3": (0.7242, 1.0324),
    "k3_sequence": (0.7833, 0.8280),
    "k2_sequence": (1, 1),
    "k1_in_reward": (1, 1),
    "k1_ratio": (0.9126, 0.8060),
    "k3_ratio": (0.9126, 0.8060),
    "k2_detached": (0.9126, 0.8060),
    "k3_detached": (0.7242, 1.0324),
    "k1_ratio_sequence": (1, 1),
    "k3_ratio_sequence": (1, 1),
    "k1_then_exact_in_reward": (1, 1),
    "exact_rao_blackwell": (1, 1),
    "k2_in_reward": (0.4339, 0.5468),
    "k3_in_reward": (0.3341, 0.7553),
    "exact_in_reward": (0.6259, 0.4224),
}


Tables = dict[float, Measurement]


@pytest.fixture(scope="module")
def tables() -> Tables:
    mdp = golden()
    return {beta: measure(mdp, optimum(mdp, beta)) for beta in (1.0, 0.2)}


@pytest.mark.parametrize("name", VALUES)
def test_values(tables: Tables, name: str) -> None:
    """T3, A9: the rows of the table of values."""
    for beta, (bias, std) in ((1.0, VALUES[name][:2]), (0.2, VALUES[name][2:])):
        kl, figures, _ = tables[beta]
        found = figures[name]
        tolerance = 1e-10 if bias == 0 else 6e-3 if abs(bias) < 10 else 6e-2
        assert 100 * (found.mean / kl - 1) == pytest.approx(bias, abs=tolerance)
        assert found.std / kl == pytest.approx(std, rel=2e-3)


@pytest.mark.parametrize("name", AGAINST_THE_TRUTH)
def test_gradients(tables: Tables, name: str) -> None:
    """T4, A10: the rows of the table of gradients."""
    cosine, ratio = AGAINST_THE_TRUTH[name]
    found = tables[0.2].estimators[name]
    tolerance = 1e-10 if ratio in (0, 1) else 1e-4
    assert found.gradient_norm_ratio == pytest.approx(ratio, abs=tolerance)
    if cosine is None:
        assert found.gradient_cosine is None
    else:
        assert found.gradient_cosine == pytest.approx(cosine, abs=tolerance)


def test_the_true_gradient_is_that_of_central_differences() -> None:
    """T4."""
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


class Problem(NamedTuple):
    """A problem, a policy and the older one whose data the weighted estimators are asked about."""

    mdp: MDP
    logits: Tensor
    old_logits: Tensor

    def terms(self, name: str) -> Terms:
        """On the policy's own data, and for a weighted estimator on the older one's."""
        return enumerate_terms(self.mdp, self.logits, self.old_logits if "_ratio" in name else None)

    def per_token(self, name: str) -> Tensor:
        """[N, L] of an estimate that is a sum over tokens."""
        if name.startswith("exact_"):
            direction = LABELS[name].of
            per_state = exact_kl(self.logits, self.mdp.ref_logits, direction=direction)
            return per_state[self.mdp.states()]
        return local(self.terms(name), top=2)[name]

    def estimate(self, name: str) -> Tensor:
        known = estimates(self.terms(name), top=2)
        return known[name] if name in known else self.per_token(name).sum(-1)

    def whole(self, direction: str) -> Tensor:
        """The textbook's divergence of whole responses."""
        own, ref = (self.mdp.logprobs(x).sum(-1) for x in (self.logits, self.mdp.ref_logits))
        return DIVERGENCES[direction](own, ref)

    def local(self, direction: str, name: str) -> Tensor:
        """That of each token's state, in the states that the data visit."""
        per_state = DIVERGENCES[direction](
            *(torch.log_softmax(x, -1) for x in (self.logits, self.mdp.ref_logits))
        )
        return self.expected(per_state[self.mdp.states()].sum(-1), name)

    def expected(self, loss: Tensor, name: str) -> Tensor:
        """[S, V]: the gradient of the mean over the data, whose law is held fixed."""
        mean = (self.terms(name).probs * loss).sum()
        return torch.autograd.grad(mean, self.logits, retain_graph=True)[0]

    def true_gradients(self, name: str) -> dict[str, Tensor]:
        found = {"zero": torch.zeros_like(self.logits)}
        for side in ("reverse", "forward"):
            (found[side],) = torch.autograd.grad(self.whole(side), self.logits)
            found[f"{side} per token"] = self.local(side, name)
        return found


def problems(length: int) -> list[Problem]:
    draw = torch.Generator().manual_seed(7)
    sizes = [(sum(6**depth for depth in range(length)), 6)] * 3
    found: list[Problem] = []
    for _ in range(3):
        ref, own, old = (torch.randn(size, generator=draw, dtype=torch.double) for size in sizes)
        policy = (ref + own).requires_grad_()
        found.append(Problem(MDP(6, length, ref, torch.zeros(6**length)), policy, ref + old))
    return found


def same(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) < 1e-10


SHORT, LONG = problems(1), problems(2)


def test_every_estimator_has_a_label() -> None:
    """What is in the library, at every level at which it can be taken, and nothing else."""
    suffixes = ("", "_sequence", *LEVELS)
    sampled = {name + suffix for name in ESTIMATORS for suffix in suffixes}
    directions = {"exact" if name == "reverse" else f"exact_{name}" for name in DIVERGENCES}
    others = {"exact_regressed", "topk_merged", "topk_sampled"}
    assert LABELS.keys() == sampled | directions | others
    assert {label.of for label in LABELS.values()} == DIVERGENCES.keys()


@pytest.mark.parametrize("name", LABELS)
def test_labels_tell_the_truth_about_the_value(name: str) -> None:
    """Pitfalls 26, 27 and 47: the mean of what is called a KL is that KL, no square, root or other direction of it."""
    label = LABELS[name]
    for problem in LONG:
        mean = float((problem.terms(name).probs * problem.estimate(name)).sum().detach())
        truth = float(problem.whole(label.of).detach())
        if label.value == "unbiased":
            assert mean == pytest.approx(truth, abs=1e-10)
        else:
            assert abs(mean - truth) > 1e-6
            assert mean < truth or label.value != "lower bound"
    for problem in SHORT:
        mean = float((problem.terms(name).probs * problem.estimate(name)).sum().detach())
        truth = float(problem.whole(label.of).detach())
        assert (abs(mean - truth) < 1e-10) == (label.value in {"unbiased", "per token"})


@pytest.mark.parametrize("name", [name for name, label in LABELS.items() if label.loss])
def test_labels_tell_the_truth_about_the_loss(name: str) -> None:
    label = LABELS[name].loss
    for problem in LONG:
        true = problem.true_gradients(name)
        found = problem.expected(problem.estimate(name), name)
        alike = {side for side, gradient in true.items() if same(found, gradient)}
        assert alike == ({label} if label in true else set())
        if name.startswith("exact_"):
            assert same(found, problem.local(LABELS[name].of, name))


@pytest.mark.parametrize("name", [name for name, label in LABELS.items() if label.reward])
def test_labels_tell_the_truth_about_the_reward(name: str) -> None:
    """What Σ_t sg(Σ_{j≥t} k_j) log π descends; of a whole response's estimate, every token is given all."""
    label = LABELS[name].reward
    for problem in LONG:
        logprobs = problem.terms(name).logprobs
        if "_sequence" in name:
            to_go = problem.estimate(name)[:, None].expand_as(logprobs)
            later = torch.zeros_like(to_go)
        else:
            per_token = problem.per_token(name)
            to_go = per_token.flip(-1).cumsum(-1).flip(-1)
            later = to_go - per_token
        found, future = (
            problem.expected((x.detach() * logprobs).sum(-1), name) for x in (to_go, later)
        )
        (true,) = torch.autograd.grad(problem.whole("reverse"), problem.logits)
        assert same(found, true) == (label == "reverse")
        assert same(found, future) == (label == "future only")


def test_the_penalties_and_the_labels_say_the_same() -> None:
    for penalty, (divergence, scope) in GRADIENTS.items():
        word = divergence if scope == "sequence" else f"{divergence} per token"
        sloped = "_ratio" if penalty.weight in {"ratio", "score"} else ""
        label = LABELS[penalty.estimator + sloped]
        if penalty.is_in_loss and penalty.placement != "exact":
            assert label.loss == word
        elif penalty == Penalty("reward", "k1"):
            assert label.reward == word
    for penalty in REFUSALS:
        sloped = "_ratio" if penalty.weight in {"ratio", "score"} else ""
        label = LABELS[penalty.estimator + sloped]
        word = label.loss if penalty.is_in_loss else label.reward
        assert word not in {"reverse", "reverse per token"}


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_what_the_lab_says_is_what_it_shows(tables: Tables, beta: float) -> None:
    """T4: the words beside a row come from the labels, its figures from enumeration."""
    figures = tables[beta].estimators
    renamed = {Penalty("loss", "k3"), Penalty("loss", "k3", "detached")}
    assert renamed | set(PENALTIES.values()) == GRADIENTS.keys() | REFUSALS.keys()
    local_ratio = figures["exact"].gradient_norm_ratio
    for name, found in figures.items():
        word = gradient_of(name)
        both = (found.gradient_cosine, found.gradient_norm_ratio)
        is_whole = None not in both and both == pytest.approx((1, 1), abs=1e-10)
        assert is_whole == (word == "reverse"), name
        assert (found.gradient_cosine is None) == (word == "zero"), name
        if word == "reverse per token":
            assert found.gradient_norm_ratio == pytest.approx(local_ratio, abs=1e-10), name


# Std of one response's gradient over the norm of the true one, at KL 0.2752 and at 2.0405.
NOISE = {
    "exact_rao_blackwell": (11.388, 12.213),
    "k1_then_exact_in_reward": (16.508, 13.321),
    "k1_in_reward": (27.801, 14.849),
}


def test_of_the_whole_gradients_the_exact_one_has_the_least_noise(tables: Tables) -> None:
    """As a penalty alone: the trace of the covariance of one response's gradient, with no baseline."""
    for at, beta in enumerate((1.0, 0.2)):
        noise = tables[beta].gradient_noise
        for name, expected in NOISE.items():
            assert noise[name] == pytest.approx(expected[at], abs=1e-3)
        rows = [noise[name] for name in NOISE]
        assert rows == sorted(rows)
        assert noise["k1_in_reward"] < noise["k1_ratio_prefix"] < noise["k1_ratio_sequence"]


def test_of_the_whole_update_the_order_depends_on_what_the_drift_was_for() -> None:
    """With the reward beside it: R − βU has less spread than R where the drift was bought by R, on the way to π*.

    There k1 in the reward has the least noise, and at π* none is left to a critic (T7); where the drift is chance, the
    exact KL has the least. Std of one response's gradient, β = 0.2, no baseline.
    """
    mdp, beta = golden(), 0.2
    draw = torch.Generator().manual_seed(0)
    chance = torch.randn(mdp.ref_logits.shape, generator=draw, dtype=torch.double)
    found: dict[str, list[float]] = {}
    for name, policy in (("bought", optimum(mdp, 0.5)), ("chance", mdp.ref_logits + chance)):
        terms = enumerate_terms(mdp, policy.requires_grad_())
        for row in NOISE:
            bought = mdp.rewards * terms.logprobs.sum(-1)
            loss = (beta * descended(PENALTIES[row], terms) - bought).sum()
            (each,) = torch.autograd.grad(loss, terms.rows, retain_graph=True)
            weighted = terms.probs[:, None, None] * each
            mean = torch.zeros_like(mdp.ref_logits)
            mean.index_add_(0, mdp.states().flatten(), weighted.flatten(0, 1))
            found.setdefault(name, []).append(
                float((weighted * each).sum() - mean.square().sum()) ** 0.5
            )
    assert found["bought"] == pytest.approx([1.5268, 1.4868, 1.3753], abs=1e-4)
    assert found["chance"] == pytest.approx([1.2895, 1.3125, 1.3219], abs=1e-4)


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_samples_agree_with_the_enumeration(beta: float) -> None:
    """T3: 100,000 responses drawn, every row's mean within 4 standard errors."""
    mdp = golden()
    terms = enumerate_terms(mdp, optimum(mdp, beta))
    generator = torch.Generator().manual_seed(3)
    drawn = torch.multinomial(terms.probs, 100_000, replacement=True, generator=generator)
    for values in estimates(terms).values():
        mean = float((terms.probs * values).sum())
        std = float((terms.probs * (values - mean).square()).sum().sqrt())
        assert float(values[drawn].mean()) == pytest.approx(mean, abs=4 * std / 100_000**0.5)


def test_a_head_of_two_and_its_bucket() -> None:
    """T3: the rows of a head of two."""
    mdp = golden()
    for beta, bias, std in ((1.0, -29.9, 0.347), (0.2, -8.58, 0.222)):
        terms = enumerate_terms(mdp, optimum(mdp, beta))
        values, kl = local(terms, top=2)["topk_merged"].sum(-1), float(sequence_kl(terms))
        mean = float((terms.probs * values).sum())
        assert 100 * (mean / kl - 1) == pytest.approx(bias, abs=0.06)
        spread = float((terms.probs * (values - mean).square()).sum().sqrt())
        assert spread / kl == pytest.approx(std, abs=6e-4)


def test_where_nothing_has_moved_there_is_nothing_to_divide_by() -> None:
    mdp = golden()
    for shift in (0.0, 0.1):  # the second leaves differences of rounding
        kl, figures, noise = measure(mdp, mdp.ref_logits + shift)
        assert kl < 1e-24
        assert {found.gradient_cosine for found in figures.values()} == {None}
        assert {*noise.values(), *(found.gradient_norm_ratio for found in figures.values())} == {0}
        assert all(abs(found.mean) < 1e-12 for found in figures.values())


def test_stepwise_exactness_is_not_always_less_noisy() -> None:
    """The two-step counterexample (T6): Var of the sampled sum 3.32, of the exact sum 5.07, of the best mix 2.94."""
    p, q = [[0.5, 0.5], [0.5, 0.5], [0.01, 0.99]], [[0.25, 0.75], [0.5, 0.5], [0.99, 0.01]]
    ref, policy = (torch.tensor(x, dtype=torch.float64).log() for x in (q, p))
    kl, figures, _ = measure(MDP(2, 2, ref, torch.zeros(4)), policy)
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
