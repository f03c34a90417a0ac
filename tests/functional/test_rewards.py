"""Rewards per token."""

import pytest
import torch

from kleash.functional.rewards import length_penalty, shaped_rewards

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_score_stands_on_the_last_real_token_and_padding_never_matters() -> None:
    """Pitfalls 8, 9 and 13: what stands in the padding, a sentinel or NaN, is not looked at."""
    charged = torch.tensor([[0.1, 0.2, float("nan")], [0.1, 0.2, 0.4]])
    rewards = shaped_rewards(torch.tensor([1.0, 2.0]), charged, MASK, 0.5)
    expected = torch.tensor([[-0.05, 0.9, 0.0], [-0.05, -0.1, 1.8]])
    assert torch.allclose(rewards, expected)


def test_at_beta_0_a_broken_reference_reaches_nothing() -> None:
    """Pitfall 4: 0 · inf is NaN, so it is not formed."""
    charged = torch.tensor([[torch.inf, torch.nan, 0.0], [-torch.inf, 0.0, torch.nan]])
    rewards = shaped_rewards(torch.tensor([1.0, 2.0]), charged, MASK, 0.0)
    assert torch.equal(rewards, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))


@pytest.mark.parametrize(("longest", "cache"), [(20480, 4096), (16, 4), (7, 7)])
def test_dapos_soft_overlong_punishment_is_a_case_of_the_length_penalty(
    longest: int, cache: int
) -> None:
    """Yu et al. 2025, arXiv 2503.14476, in its three pieces."""

    def punished(length: int) -> float:
        if length <= longest - cache:
            return 0.0
        return (longest - cache - length) / cache if length <= longest else -1.0

    lengths = torch.arange(0, longest + 3)
    found = length_penalty(lengths, 1 / cache, longest - cache, 1.0)
    expected = torch.tensor([-punished(int(length)) for length in lengths])
    torch.testing.assert_close(found, expected)


def test_a_length_penalty_is_linear_beyond_what_is_free() -> None:
    lengths = torch.tensor([0, 5, 6, 10, 10**6])
    assert length_penalty(lengths, 0.5, 5).tolist() == [0.0, 0.0, 0.5, 2.5, 0.5 * (10**6 - 5)]
    assert length_penalty(lengths, 0.5, 0, 2.0).tolist() == [0.0, 2.0, 2.0, 2.0, 2.0]
    assert length_penalty(lengths, 0.0, 0).tolist() == [0.0] * 5
