"""Best-of-n against every draw and every subset there is, its laws, and the golden problem's numbers (A11)."""

import itertools
import math
from decimal import MIN_EMIN, Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kleash.functional.best_of_n import (
    best_of_n_kl_bound,
    best_of_n_kl_estimate,
    best_of_n_law,
    best_of_n_reward,
)
from kleash.functional.divergences import reverse_kl
from kleash.lab.mdp import MDP, golden

INF, NAN = math.inf, math.nan
# n, exact KL, bound: A11
GOLDEN = [
    (2, 0.19314, 0.19315),
    (4, 0.63628, 0.63629),
    (16, 1.83495, 1.83509),
    (64, 3.17368, 3.17451),
    (256, 4.53425, 4.54908),
    (1024, 5.83044, 5.93245),
    (10**4, 7.89012, 8.21044),
    (10**5, 8.0845, 10.5129),
]
SPACES = st.lists(
    st.tuples(st.floats(-30, 30), st.integers(-3, 3)),  # few levels: rewards tie
    min_size=1,
    max_size=12,
)


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def space(outcomes: list[tuple[float, int]]) -> tuple[Tensor, Tensor]:
    logits, rewards = zip(*outcomes, strict=True)
    return double(list(logits)).log_softmax(-1), double(list(rewards))


def reference(mdp: MDP) -> Tensor:
    return mdp.logprobs(mdp.ref_logits).sum(-1)


def tilted(mdp: MDP, weight: float) -> Tensor:
    """π_λ ∝ π_ref exp(λR)."""
    return (reference(mdp) + weight * mdp.rewards).log_softmax(-1)


def win_rate(law: Tensor, ref: Tensor, rewards: Tensor) -> float:
    """P(R > R_ref) + ½ P(R = R_ref)."""
    levels, level = rewards.unique(return_inverse=True)
    own, theirs = (
        torch.zeros_like(levels, dtype=torch.double).index_add(0, level, x.exp())
        for x in (law, ref)
    )
    return float(own @ (theirs.cumsum(0) - theirs / 2))


@pytest.mark.parametrize(("n", "exact", "bound"), GOLDEN)
def test_the_kl_of_the_golden_problem(n: int, exact: float, bound: float) -> None:
    mdp, digits = golden(), 5e-6 if n < 10**5 else 5e-5
    kl = float(reverse_kl(best_of_n_law(reference(mdp), mdp.rewards, n), reference(mdp)))
    assert kl == pytest.approx(exact, abs=digits)
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=digits)


def test_where_rewards_tie_the_bound_and_the_estimate_are_far_off() -> None:
    mdp = golden()
    ref, rounded = reference(mdp), (2 * mdp.rewards).round() / 2
    law = best_of_n_law(ref, rounded, 256)
    assert len(rounded.unique()) == 7
    assert float(reverse_kl(law, ref)) == pytest.approx(2.73817, abs=5e-6)
    assert float(law.exp() @ best_of_n_kl_estimate(ref, 256)) > 4.5


@pytest.mark.parametrize(
    ("n", "estimate"), [(1024, 5.8355), (10**4, 7.9047), (10**5, 8.0845), (16, None), (256, None)]
)
def test_where_they_do_not_the_estimate_is_tight(n: int, estimate: float | None) -> None:
    mdp = golden()
    ref = reference(mdp)
    law = best_of_n_law(ref, mdp.rewards, n)
    found = float(law.exp() @ best_of_n_kl_estimate(ref, n))
    assert found == pytest.approx(float(reverse_kl(law, ref)), rel=3e-3)
    assert estimate is None or found == pytest.approx(estimate, abs=5e-5)


def test_the_win_rate_of_the_golden_problem() -> None:
    mdp = golden()
    law = best_of_n_law(reference(mdp), mdp.rewards, 16)
    assert win_rate(law, reference(mdp), mdp.rewards) == pytest.approx(0.94116, abs=5e-6)


@pytest.mark.parametrize("n", [2, 4, 16, 64, 256, 1024, 10**4])
def test_best_of_n_lies_just_under_the_frontier(n: int) -> None:
    """No policy has more reward at a KL than the tilt; best-of-n falls short by 0.0302 at most, at n = 2."""
    mdp = golden()
    ref = reference(mdp)
    law = best_of_n_law(ref, mdp.rewards, n)
    kl, low, high = float(reverse_kl(law, ref)), 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        drift = float(reverse_kl(tilted(mdp, middle), ref))
        low, high = (middle, high) if drift < kl else (low, middle)
    reward, most = (float(x.exp() @ mdp.rewards) for x in (law, tilted(mdp, low)))
    assert 0 < most - reward < 0.0302
    if n == 4:
        assert (reward, most) == pytest.approx((0.84919, 0.87117), abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("rewards", [[1.0, 2.0, 0.0, 3.0], [2.0, 0.0, 2.0, 1.0], [1.0] * 4])
def test_the_law_is_that_of_every_draw(rewards: list[float], n: int) -> None:
    probs = [0.4, 0.3, 0.0, 0.3]
    expected = [0.0] * 4
    for draws in itertools.product(range(4), repeat=n):
        best = max(rewards[y] for y in draws)
        tied = [y for y in draws if rewards[y] == best]
        for y in tied:
            expected[y] += math.prod(probs[x] for x in draws) / len(tied)
    law = best_of_n_law(double(probs).log(), double(rewards), n)
    torch.testing.assert_close(law.exp(), double(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [2, 1000, 10**5, 10**9])
def test_the_law_keeps_its_digits(n: int) -> None:
    """Against 400 decimal digits: probabilities down to 2^−400, below one that is almost all, and above it."""
    weights = [2.0**-400, 2.0**-60, 1.0, 2.0**-30, 2.0**-60, 2.0**-400]
    law = best_of_n_law(double(weights).log(), torch.arange(6.0), n)
    with localcontext(prec=400, Emin=MIN_EMIN):
        total, below, expected = sum(map(Decimal, weights)), Decimal(0), list[float]()
        for weight in map(Decimal, weights):
            share = ((below + weight) / total) ** n - (below / total) ** n
            below += weight
            expected.append(float(share.ln()))
    torch.testing.assert_close(law, double(expected), rtol=1e-13, atol=1e-13)


def test_the_best_of_one_is_the_reference() -> None:
    """Also where no float holds a probability, at the bottom and at the top."""
    logprobs = double([-800.0, math.log(0.3), -INF, math.log(0.7), -800.0])
    for rewards in (torch.arange(5.0), torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])):
        torch.testing.assert_close(best_of_n_law(logprobs, rewards, 1), logprobs)
    assert best_of_n_law(logprobs, torch.arange(5.0), 1000)[-1] == pytest.approx(
        math.log(1000) - 800
    )
    assert best_of_n_kl_bound(1) == 0
    torch.testing.assert_close(
        best_of_n_kl_estimate(logprobs[[0, 1, 3]], 1), torch.zeros(3).double()
    )


@given(SPACES, st.floats(1, 1e12))
def test_no_law_exceeds_the_bound_on_kl_or_the_bound_on_wins(
    outcomes: list[tuple[float, int]], n: float
) -> None:
    ref, rewards = space(outcomes)
    law = best_of_n_law(ref, rewards, n)
    assert float(law.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert 0 <= float(reverse_kl(law, ref)) <= best_of_n_kl_bound(n) + 1e-12
    assert win_rate(law, ref, rewards) <= n / (n + 1) + 1e-12


@given(SPACES, st.floats(1, 1e9), st.floats(1, 10))
def test_more_draws_win_more_and_drift_further(
    outcomes: list[tuple[float, int]], n: float, factor: float
) -> None:
    ref, rewards = space(outcomes)
    few, many = best_of_n_law(ref, rewards, n), best_of_n_law(ref, rewards, factor * n)
    assert float(many.exp() @ rewards) >= float(few.exp() @ rewards) - 1e-12
    assert float(reverse_kl(many, ref)) >= float(reverse_kl(few, ref)) - 1e-12
    assert best_of_n_kl_bound(factor * n) >= best_of_n_kl_bound(n)


@given(st.floats(-750, 0), st.floats(1, 1e12))
def test_the_estimate_lies_between_nothing_and_the_bound(logprob: float, n: float) -> None:
    bound = best_of_n_kl_bound(n)
    assert -1e-12 <= float(best_of_n_kl_estimate(double([logprob]), n)) <= bound + 1e-12


@pytest.mark.parametrize("n", [1e5, 10**9, 1e300])
def test_a_large_n_has_its_limits(n: float) -> None:
    """The best outcome is certain, its KL −log p; a response that is never seen twice costs the bound."""
    mdp = golden()
    ref = reference(mdp)
    best = float(ref[mdp.rewards.argmax()])
    law = best_of_n_law(ref, mdp.rewards, n)
    assert float(reverse_kl(law, ref)) == pytest.approx(-best, abs=1e-6)
    estimates = best_of_n_kl_estimate(double([best, -2000.0, 0.0]), n)
    assert estimates.tolist() == pytest.approx([-best, best_of_n_kl_bound(n), 0], abs=1e-6)
    assert best_of_n_kl_bound(10**400) == pytest.approx(400 * math.log(10) - 1)


@pytest.mark.parametrize(
    "rewards", [[0.3, -1.0, 2.0, 0.1, 5.0, 4.0, -2.0], [1.0, 0.0, 1.0, 2.0, 0.0, 2.0, 2.0]]
)
def test_the_estimate_of_reward_is_the_mean_over_every_subset(rewards: list[float]) -> None:
    proxy, gold = double(rewards), torch.randn(7, dtype=torch.float64)

    def slow(values: Tensor, n: int) -> float:
        subsets = [torch.tensor(each) for each in itertools.combinations(range(7), n)]
        chosen = [each[proxy[each] == proxy[each].max()] for each in subsets]
        return sum(float(values[each].mean()) for each in chosen) / len(chosen)

    for found, values in ((best_of_n_reward(proxy), proxy), (best_of_n_reward(proxy, gold), gold)):
        expected = [slow(values, n) for n in range(1, 8)]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert best_of_n_reward(proxy)[[0, -1]].tolist() == pytest.approx(
        [float(proxy.mean()), float(proxy.max())]
    )


def test_each_prompt_and_each_n_is_by_itself() -> None:
    proxy, gold = torch.randint(5, (2, 3, 9)).double(), torch.randn(2, 3, 9)
    whole = best_of_n_reward(proxy, gold)
    assert whole.shape == (2, 3, 9)
    torch.testing.assert_close(best_of_n_reward(proxy[1, 2], gold[1, 2]), whole[1, 2])
    some = best_of_n_reward(proxy, gold, n=torch.tensor([8, 1]))
    torch.testing.assert_close(some, whole[..., [7, 0]])
    assert best_of_n_reward(torch.tensor([[4.0]])).tolist() == [[4.0]]
    assert bool((best_of_n_reward(proxy).diff(dim=-1) >= -1e-12).all())


def test_the_weights_of_many_samples_lose_nothing() -> None:
    """Of 20,000 ordered samples the best of n has rank n (N + 1)/(n + 1) on average."""
    n = torch.tensor([1, 10, 5000, 19_999, 20_000])
    found = best_of_n_reward(torch.arange(1.0, 20_001.0), n=n)
    torch.testing.assert_close(found, n.double() * 20_001 / (n + 1), rtol=1e-11, atol=0)


def test_sampled_best_of_n_has_the_reward_and_kl_estimate_of_the_law() -> None:
    """4,000 prompts of 16 samples each, within two standard errors at every n."""
    mdp = golden()
    ref, n = reference(mdp), torch.tensor([1, 2, 4, 8, 16])
    samples = ref.exp().multinomial(4000 * 16, replacement=True).view(4000, 16)
    rewards = best_of_n_reward(mdp.rewards[samples], n=n)
    for i, k in enumerate(n.tolist()):
        law, estimate = best_of_n_law(ref, mdp.rewards, k).exp(), best_of_n_kl_estimate(ref, k)
        kls = best_of_n_reward(mdp.rewards[samples], estimate[samples], n=n[i : i + 1])
        for found, per_outcome in ((rewards[:, i], mdp.rewards), (kls[:, 0], estimate)):
            error = float(found.std()) / math.sqrt(len(found))
            assert abs(float(found.mean() - law @ per_outcome)) <= 2 * error + 1e-12


@pytest.mark.parametrize("n", [0, 0.5, -1, INF, NAN])
def test_a_number_of_draws_that_is_none_is_refused(n: float) -> None:
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="n must be"):
        best_of_n_kl_bound(n)
    with pytest.raises(ValueError, match="n must be"):
        best_of_n_law(zero, zero, n)
    with pytest.raises(ValueError, match="n must be"):
        best_of_n_kl_estimate(zero, n)


@pytest.mark.parametrize("logprobs", [[0.0, 0.0], [-1.0, -2.0], [-INF, -INF], [NAN, 0.0]])
def test_probabilities_that_do_not_sum_to_one_are_refused(logprobs: list[float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        best_of_n_law(double(logprobs), torch.zeros(2), 2)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_no_number_is_refused(bad: float) -> None:
    broken, whole = torch.tensor([bad, 0.0]), torch.zeros(2)
    with pytest.raises(ValueError, match="rewards must be finite, and 1 are not"):
        best_of_n_law(torch.tensor([0.5, 0.5]).log(), broken, 2)
    with pytest.raises(ValueError, match="logprobs must be finite"):
        best_of_n_kl_estimate(broken, 2)
    with pytest.raises(ValueError, match="rewards must be finite"):
        best_of_n_reward(broken)
    with pytest.raises(ValueError, match="values must be finite"):
        best_of_n_reward(whole, broken)


def test_a_probability_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 0, not 0\.5"):
        best_of_n_kl_estimate(torch.tensor([-1.0, 0.5]), 2)


@pytest.mark.parametrize("n", [0, 4])
def test_more_draws_than_samples_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="n must lie in 1 … 3"):
        best_of_n_reward(torch.zeros(3), n=torch.tensor([1, n]))
