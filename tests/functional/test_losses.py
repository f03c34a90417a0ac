"""PPO's losses, branch by branch."""

import pytest
import torch

from kleash.functional.losses import clipped_policy_loss, clipped_value_loss, explained_variance


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
