"""GAE against its definition, and what padding may not do."""

import pytest
import torch

from kleash.functional.advantages import deviation_of_others, gae, whiten
from kleash.functional.losses import clipped_policy_loss, clipped_value_loss, explained_variance
from kleash.functional.masking import masked_mean, masked_sum


def _slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_l (γλ)^l δ_{t+l}, term by term."""
    following = [*values[1:], 0.0]
    deltas = [
        r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=True)
    ]
    return [
        sum((gamma * lam) ** k * deltas[t + k] for k in range(len(deltas) - t))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_its_definition_for_every_length(gamma: float, lam: float) -> None:
    rewards, values = torch.randn(4, 6), torch.randn(4, 6)
    lengths = [6, 3, 1, 5]
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for row, length in enumerate(lengths):
        slow = _slow_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(slow, abs=1e-5)
        assert (returns - advantages)[row, :length].tolist() == pytest.approx(
            values[row, :length].tolist(), abs=1e-5
        )
    assert bool((advantages[~mask] == 0).all())


def test_nan_at_masked_positions_changes_nothing_bit_for_bit() -> None:
    """Pitfalls 8-10: padding is selected away, never multiplied by zero."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    dirty = torch.where(mask, clean, torch.tensor(float("nan")))
    values = torch.full_like(clean, 0.5)
    for function in (masked_sum, masked_mean, whiten):
        assert torch.equal(function(clean, mask), function(dirty, mask))
    for ours, theirs in zip(gae(clean, values, mask), gae(dirty, values, mask), strict=True):
        assert torch.equal(ours, theirs)


def test_whitening_centres_scales_and_can_keep_the_mean() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])
    white = whiten(values, mask)
    assert float(white.mean()) == pytest.approx(0, abs=1e-6)
    assert float(white.std()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(whiten(values, mask, shift_mean=False), values / values.std())
    assert torch.equal(whiten(torch.ones(1, 2), mask[:1, :2]), torch.zeros(1, 2))


def test_at_the_sampling_policy_the_clipped_loss_has_the_policy_gradient() -> None:
    logprobs = torch.randn(5, requires_grad=True)
    advantages = torch.randn(5)
    loss, clipped = clipped_policy_loss(logprobs, logprobs.detach(), advantages)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.allclose(gradient, -advantages)
    assert not bool(clipped.any())


def test_beyond_the_clip_there_is_no_incentive_left_but_a_way_back() -> None:
    old = torch.zeros(2)
    logprobs = torch.tensor([0.5, 0.5], requires_grad=True)
    loss, _ = clipped_policy_loss(logprobs, old, torch.tensor([1.0, -1.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert float(gradient[0]) == 0
    assert float(gradient[1]) > 0


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    loss = clipped_value_loss(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([2.0]))
    assert float(loss) == pytest.approx(0.5 * 1.8**2)


def test_a_constant_return_has_no_variance_to_explain() -> None:
    assert explained_variance(torch.zeros(3), torch.ones(3)) is None


@pytest.mark.parametrize("same", [0.1, -0.9039, 1.3e6, 0.0])
@pytest.mark.parametrize("count", [3, 5, 8])
def test_of_scores_that_are_all_the_same_rounding_leaves_no_deviation(
    same: float, count: int
) -> None:
    """Their group counts as any of which the others say nothing: not with ten times its β."""
    scores = torch.tensor([same] * count + [0.0, 1.0, 5.0], dtype=torch.double)
    index = torch.tensor([0] * count + [1] * 3)
    typical = 7**0.5  # Σ (x − 2)² of 0, 1 and 5 is 14, of two degrees of freedom

    assert deviation_of_others(scores, index)[:count].tolist() == pytest.approx([typical] * count)
