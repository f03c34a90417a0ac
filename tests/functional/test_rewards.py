"""Rewards per token."""

import torch

from kleash.functional.rewards import shaped_rewards

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
