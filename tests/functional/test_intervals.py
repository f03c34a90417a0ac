"""Intervals of clustered means."""

import math

import pytest
import torch

from kleash.functional.intervals import Interval, clustered_mean, clustered_quantile


def test_one_response_a_prompt_is_the_ordinary_t_interval() -> None:
    x = torch.tensor([1.0, 2.0, 4.0, 7.0])
    found = clustered_mean(x, torch.ones(4), torch.arange(4))
    half = 3.182446 * float(x.std()) / 2
    assert found.value == pytest.approx(3.5)
    assert found.low == pytest.approx(3.5 - half, abs=1e-5)
    assert found.high == pytest.approx(3.5 + half, abs=1e-5)


def test_copies_of_a_response_add_no_certainty() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    once = clustered_mean(x, torch.ones(3), torch.arange(3))
    thrice = clustered_mean(x.repeat(3), torch.ones(9), torch.arange(3).repeat(3))
    assert thrice.low == pytest.approx(once.low)
    assert thrice.high == pytest.approx(once.high)


def test_weights_give_the_mean_per_token() -> None:
    found = clustered_mean(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 3.0]), torch.arange(2))
    assert found.value == pytest.approx(11 / 4)


def test_the_interval_per_token_is_that_of_a_ratio() -> None:
    """By hand: m = 15/6, residuals x − m w = −½, 3/2, −1; Var(m) = 3/2 · 3.5 / 6², and t has 2 degrees of freedom."""
    totals, weights = torch.tensor([2.0, 9.0, 4.0]), torch.tensor([1.0, 3.0, 2.0])
    found = clustered_mean(totals, weights, torch.tensor([4, 0, 9]))
    half = 4.302653 * math.sqrt(1.5 * 3.5 / 36)
    assert found.value == pytest.approx(2.5)
    assert found.low == pytest.approx(2.5 - half, abs=1e-6)
    assert found.high == pytest.approx(2.5 + half, abs=1e-6)


def test_residuals_of_a_cluster_are_summed_before_they_are_squared() -> None:
    """m = 24/8; the clusters' residuals are (2 − 3) + (4 − 3) = 0, and 7 − 6 = 1, and 11 − 12 = −1."""
    totals, weights = torch.tensor([2.0, 7.0, 4.0, 11.0]), torch.tensor([1.0, 2.0, 1.0, 4.0])
    found = clustered_mean(totals, weights, torch.tensor([0, 1, 0, 2]))
    assert found.high == pytest.approx(3 + 4.302653 * math.sqrt(1.5 * 2 / 64), abs=1e-6)


def test_totals_in_proportion_to_their_weights_leave_no_doubt() -> None:
    """However much the lengths differ, the same figure at every token is one figure per token."""
    weights = torch.tensor([1.0, 20.0, 3.0, 7.0])
    found = clustered_mean(0.3 * weights.double(), weights, torch.arange(4))
    assert found.low == pytest.approx(0.3, abs=1e-12)
    assert found.high == pytest.approx(0.3, abs=1e-12)


def test_the_interval_per_token_covers_as_often_as_it_says() -> None:
    """Lengths vary between prompts, tokens of a prompt share an error: 2,000 samples of 32 prompts × 2 responses."""
    generator = torch.Generator().manual_seed(0)
    clusters = torch.arange(32).repeat_interleave(2)
    covered = 0
    for _ in range(2000):
        lengths = torch.randint(5, 16, (32,), generator=generator).repeat_interleave(2).double()
        prompt = torch.randn(32, generator=generator).repeat_interleave(2)
        noise = torch.randn(64, generator=generator) / lengths.sqrt()
        found = clustered_mean(lengths * (2.0 + 0.3 * prompt + noise), lengths, clusters)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 2.0 <= found.high
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_prompt_has_no_interval() -> None:
    assert clustered_mean(torch.ones(4), torch.ones(4), torch.zeros(4, dtype=torch.long))[1:] == (
        None,
        None,
    )


def test_the_interval_covers_as_often_as_it_says() -> None:
    """2,000 clustered samples: a 95 % interval covers the truth in 95 % ± 4 standard errors of the count."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    clusters = torch.arange(8).repeat_interleave(4)
    for _ in range(2000):
        prompt = torch.randn(8, generator=generator).repeat_interleave(4)
        x = prompt + torch.randn(32, generator=generator)
        found = clustered_mean(x, torch.ones(32), clusters)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_quantile_is_the_value_with_so_many_at_or_below_it() -> None:
    values = torch.randperm(1000).double()
    for share in (0.01, 0.5, 0.99):
        found = clustered_quantile(values, torch.arange(1000), share)
        assert found.value == 1000 * share - 1
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high


def test_the_interval_of_a_quantile_covers_it_and_knows_clusters() -> None:
    """Values that are the same within a cluster say no more than one of them."""
    held, wide = 0, 0
    for _ in range(200):
        means = torch.randn(60, dtype=torch.double)
        alone = clustered_quantile(means, torch.arange(60), 0.5)
        repeated = clustered_quantile(
            means.repeat_interleave(4), torch.arange(60).repeat_interleave(4), 0.5
        )
        assert alone.low is not None
        assert alone.high is not None
        assert repeated.low is not None
        assert repeated.high is not None
        held += repeated.low <= 0.0 <= repeated.high
        wide += repeated.high - repeated.low >= 0.95 * (alone.high - alone.low)
    assert 180 <= held <= 200
    assert wide > 150


def test_a_quantile_beyond_which_hardly_anything_was_seen_has_no_interval() -> None:
    found = clustered_quantile(torch.arange(100.0), torch.arange(100), 0.99)
    assert found == Interval(98.0, None, None)
    assert clustered_quantile(torch.arange(9.0), torch.zeros(9).long(), 0.5).low is None
