"""PPO's losses, branch by branch."""

import pytest
import torch

from kleash.functional.losses import (
    adapted_penalty,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    step_penalty,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.1, 2.0, 2.2, 2.0),
        (0.9, -2.0, -1.8, -2.0),
        (1.5, 2.0, 2.4, 0.0),  # good and already likelier: the upper clip
        (1.5, -2.0, -3.0, -2.0),  # bad and likelier: the way back is open
        (0.5, 2.0, 1.0, 2.0),  # good and unlikelier: the way back is open
        (0.5, -2.0, -1.6, 0.0),  # bad and already unlikelier: the lower clip
    ],
)
def test_the_clipped_objective_in_every_case(
    ratio: float, advantage: float, objective: float, slope: float
) -> None:
    """min(ρA, clip(ρ, 0.8, 1.2) A) and its derivative by ρ."""
    logprobs = torch.tensor([ratio], dtype=torch.double).log().requires_grad_()
    old, advantages = torch.zeros(1).double(), torch.tensor([advantage], dtype=torch.double)
    loss, clipped = clipped_policy_loss(logprobs, old, advantages, clip_eps=0.2)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert float(loss.detach()) == pytest.approx(-objective)
    assert float(gradient) == pytest.approx(-slope * ratio)
    assert bool(clipped) == (slope == 0)


@pytest.mark.parametrize(
    ("value", "returns", "loss", "slope"),
    [
        (0.1, 1.0, 0.5 * 0.9**2, -0.9),  # within reach of the old value, 0
        (2.0, 2.0, 0.5 * 1.8**2, 0.0),  # right, but by more than is taken on trust
        (2.0, 0.2, 0.5 * 1.8**2, 1.8),  # too far, where the clipped value would be just right
        (-2.0, -0.2, 0.5 * 1.8**2, -1.8),
    ],
)
def test_the_value_loss_is_the_worse_of_its_two_branches(
    value: float, returns: float, loss: float, slope: float
) -> None:
    values = torch.tensor([value], dtype=torch.double, requires_grad=True)
    target = torch.tensor([returns], dtype=torch.double)
    found = clipped_value_loss(values, torch.zeros(1).double(), target, clip_eps=0.2)
    (gradient,) = torch.autograd.grad(found, values)
    assert float(found.detach()) == pytest.approx(loss)
    assert float(gradient) == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "explained"),
    [
        ([0.0, 2.0, 4.0], 1.0),
        ([5.0, 7.0, 9.0], 1.0),  # a constant error has no variance
        ([3.0, 3.0, 3.0], 0.0),
        ([0.0, 1.0, 2.0], 0.75),
        ([0.0, 6.0, 12.0], -3.0),  # worse than a constant
    ],
)
def test_explained_variance_is_a_share_of_the_variance_of_the_returns(
    values: list[float], explained: float
) -> None:
    found = explained_variance(torch.tensor(values), torch.tensor([0.0, 2.0, 4.0]))
    assert found is not None
    assert float(found) == pytest.approx(explained)


def test_the_step_penalty_is_the_kl_of_the_old_from_the_new_and_so_is_its_gradient() -> None:
    """By enumeration of eight tokens, each weighing what the old policy gives it."""
    draw = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 8, generator=draw, dtype=torch.double).log_softmax(-1)
    logits = new.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    found = (old.exp() * step_penalty(logprobs, old)).sum()
    truth = (old.exp() * (old - logprobs)).sum()
    slopes = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, truth)]

    assert float(found.detach()) == pytest.approx(float(truth.detach()), abs=1e-12)
    assert float(truth.detach()) > 0.1
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kl", "after"), [(0.016, 6.0), (0.014, 3.0), (0.0068, 3.0), (0.006, 1.5), (None, 3.0)]
)
def test_the_step_penaltys_weight_follows_its_target(kl: float | None, after: float) -> None:
    assert adapted_penalty(3.0, kl, 0.01) == after
