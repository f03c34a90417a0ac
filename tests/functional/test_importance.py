"""Importance weights against enumeration: what another policy sampled, weighed, is what the policy would see (A25)."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.functional.importance import importance_weights
from kleash.functional.kl import k1, k3
from kleash.lab.closed_form import standing
from kleash.lab.mdp import MDP, golden, optimum

STATES, VOCAB, LENGTH = 13, 3, 3


class Pair:
    """A policy π, the policy μ that sampled, and every sequence of three tokens."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        own = torch.randn(STATES, VOCAB, generator=draw, dtype=torch.double)
        other = own + 0.5 * torch.randn(STATES, VOCAB, generator=draw, dtype=torch.double)
        tokens = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
        state = torch.zeros_like(tokens)
        for t in range(1, LENGTH):
            state[:, t] = VOCAB * state[:, t - 1] + 1 + tokens[:, t - 1]
        self.policy, self.sampler = (
            torch.log_softmax(table, -1)[state, tokens] for table in (own, other)
        )
        self.mask = torch.ones_like(tokens, dtype=torch.bool)
        self.score = torch.randn(len(tokens), generator=draw, dtype=torch.double)

    def weigh(self, **settings: Any) -> Tensor:
        return importance_weights(self.policy - self.sampler, self.mask, **settings)

    def under(self, logprobs: Tensor, values: Tensor) -> float:
        return float(logprobs.sum(-1).exp() @ values)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_whole_responses_without_a_cap_are_unbiased(pair: Pair) -> None:
    weights = pair.weigh(level="sequence", cap=1e9)[:, 0]

    assert pair.under(pair.sampler, weights * pair.score) == pytest.approx(
        pair.under(pair.policy, pair.score), abs=1e-12
    )


def test_single_tokens_are_not_but_nearer_than_nothing(pair: Pair) -> None:
    """Each is right in the state that μ reached; that μ reaches others is left out."""
    truth = pair.under(pair.policy, pair.score)
    off = {
        "token": pair.under(pair.sampler, pair.weigh(cap=1e9).mean(-1) * pair.score) - truth,
        "none": pair.under(pair.sampler, pair.score) - truth,
    }

    assert abs(off["token"]) > 1e-3
    assert abs(off["token"]) < abs(off["none"])


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_higher_cap_never_weighs_less(pair: Pair, level: str, drop: bool) -> None:
    """What is lost of the total weight falls with the cap, for TIS and for MIS."""
    masses = [
        pair.under(pair.sampler, pair.weigh(level=level, cap=cap, drop=drop).mean(-1))
        for cap in (1.0, 1.2, 1.5, 2.0, 4.0, 1e6)
    ]

    assert masses == sorted(masses)
    assert masses[-1] == pytest.approx(1.0, abs=1e-12)
    assert masses[0] < 0.95


def test_the_length_trap() -> None:
    """Ten per cent a token are 13,780 over a hundred: by whole responses nothing of them is left."""
    log_ratio = torch.full((1, 100), 1.1).log()
    mask = torch.ones(1, 100, dtype=torch.bool)

    assert float(log_ratio.sum().exp()) == pytest.approx(13_780, rel=1e-3)
    assert not importance_weights(log_ratio, mask, level="sequence", drop=True).any()
    assert importance_weights(log_ratio, mask).unique().tolist() == [pytest.approx(1.1)]


class Stale:
    """The tilt at β = 0.2 asked about with sequences drawn from that at 0.3, and its KL."""

    def __init__(self, mdp: MDP) -> None:
        policy, sampler = (optimum(mdp, beta) for beta in (0.2, 0.3))
        own, old, ref = (mdp.logprobs(x) for x in (policy, sampler, mdp.ref_logits))
        self.log_ratio, self.probs = own - old, old.sum(-1).exp()
        self.mask = torch.ones_like(own, dtype=torch.bool)
        self.estimates = {
            "k1": k1(own, ref),
            "k3": k3(own, ref),
            "exact": reverse_kl(policy, mdp.ref_logits.log_softmax(-1))[mdp.states()],
        }
        self.kl = standing(mdp, policy, 0.2).kl

    def bias(self, name: str, **settings: Any) -> float:
        """E of the estimate, weighed, over the KL, less 1."""
        weights = importance_weights(self.log_ratio, self.mask, **settings)
        return float(self.probs @ (weights * self.estimates[name]).sum(-1)) / self.kl - 1


@pytest.mark.parametrize("name", ["k1", "k3", "exact"])
def test_stale_readings_are_right_by_whole_responses_alone(mdp: MDP, name: str) -> None:
    """A25, on any problem."""
    stale = Stale(mdp)

    assert stale.bias(name, level="sequence", cap=1e9) == pytest.approx(0, abs=1e-10)
    assert abs(stale.bias(name, level="token", cap=1e9)) > 1e-3


@pytest.mark.parametrize("name", ["k1", "k3", "exact"])
def test_a_tokens_own_ratio_reads_three_per_cent_low(name: str) -> None:
    """A25: −3.16 %, whichever the estimate: it is what μ's prefixes say of the exact one."""
    assert 100 * Stale(golden()).bias(name, cap=1e9) == pytest.approx(-3.16, abs=0.005)


@pytest.mark.parametrize("drop", [False, True], ids=["TIS", "MIS"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", ["k3", "exact"])
def test_the_bias_of_a_cap_falls_as_it_rises(mdp: MDP, name: str, level: str, drop: bool) -> None:
    """A25: what is cut off is missing, the more of it the lower C; without a cap the level's own bias is left."""
    stale = Stale(mdp)
    found = [
        stale.bias(name, level=level, cap=cap, drop=drop)
        for cap in (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 1e9)
    ]

    assert found == sorted(found)
    assert found[0] < found[-1] - 0.01
    assert found[-1] == stale.bias(name, level=level, cap=1e12)


@pytest.mark.parametrize(
    ("level", "drop", "low", "middle"),
    [
        ("token", False, -21.01, -4.66),
        ("token", True, -112.89, -21.16),
        ("sequence", False, -27.12, -6.81),
        ("sequence", True, -93.85, -42.21),
    ],
)
def test_the_bias_of_k1_falls_too(level: str, drop: bool, low: float, middle: float) -> None:
    """On the golden problem, where its terms may be negative, at C = 1 and 1.5, by enumeration, per cent."""
    stale = Stale(golden())
    found = [
        100 * stale.bias("k1", level=level, cap=cap, drop=drop) for cap in (1.0, 1.2, 1.5, 2.0, 5.0)
    ]

    assert found == sorted(found)
    assert (found[0], found[2]) == pytest.approx((low, middle), abs=0.01)


def test_the_longer_the_more_of_what_matters_is_masked() -> None:
    """A25, 1.1^T: tokens 10 % likelier or less likely, C = 2, every number of either: by enumeration."""
    dropped = {length: masked(length) for length in (1, 4, 16, 64, 100, 400)}
    shares = [of_policy for of_policy, _ in dropped.values()]

    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.7
    assert dropped[100] == pytest.approx((0.4613, 0.1356), abs=1e-4)


def masked(length: int, cap: float = 2.0) -> tuple[float, float]:
    """The share of responses that sequence masking drops, of the policy's own and of the sampler's.

    The policy gives each of two tokens 0.55 and 0.45, the sampler both a half.
    """
    ups = torch.arange(length + 1, dtype=torch.double)
    is_up = torch.arange(length) < ups[:, None]
    log_ratio = torch.where(is_up, math.log(1.1), math.log(0.9)).double()
    assert float(log_ratio[-1].sum().exp()) == pytest.approx(1.1**length, rel=1e-5)
    weights = importance_weights(
        log_ratio, torch.ones_like(is_up), level="sequence", cap=cap, drop=True
    )
    ways = math.lgamma(length + 1) - (ups + 1).lgamma() - (length - ups + 1).lgamma()
    sampled = (ways - length * math.log(2)).exp()
    gone = (weights[:, 0] == 0).double()
    own = (ways + ups * math.log(0.55) + (length - ups) * math.log(0.45)).exp()
    return float(own @ gone), float(sampled @ gone)


def test_masked_tokens_count_nothing_and_have_no_say() -> None:
    ratio = torch.tensor([[0.1, torch.nan, torch.inf]])
    mask = torch.tensor([[True, False, False]])

    for level in ("token", "sequence"):
        found = importance_weights(ratio, mask, level=level)
        assert found.tolist() == [[pytest.approx(1.1051709), 0.0, 0.0]]


@pytest.mark.parametrize("far", [100.0, 1e4, torch.inf])
def test_what_is_far_over_the_cap_is_the_cap(far: float) -> None:
    found = importance_weights(torch.tensor([[far]]), torch.tensor([[True]]), cap=3.0)

    assert found.tolist() == [[3.0]]


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        importance_weights(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), cap=0.5)
