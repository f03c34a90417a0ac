"""Importance weights against enumeration: what another policy sampled, weighed, is what the policy would see (A25)."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from kleash.functional.importance import importance_weights

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
