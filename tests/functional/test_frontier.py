"""The sampled frontier against the one that is known by enumeration."""

import pytest
import torch

from kleash.functional.frontier import sampled_frontier
from kleash.lab.closed_form import standing
from kleash.lab.mdp import golden, tilt

LAMBDAS = [0.5, 1.0, 2.0, 1 / 0.3]


def test_samples_of_the_reference_tell_the_frontier() -> None:
    """Golden problem, 200,000 samples: KL and reward of the tilts at β 2, 1, 0.5 and 0.3."""
    mdp = golden()
    law = mdp.logprobs(mdp.ref_logits).sum(-1).exp()
    draw = torch.Generator().manual_seed(0)
    rows = torch.multinomial(law, 200_000, replacement=True, generator=draw)
    found = sampled_frontier(mdp.rewards[rows][None], torch.tensor(LAMBDAS))

    for k, weight in enumerate(LAMBDAS):
        known = standing(mdp, tilt(mdp, weight), 1.0)
        assert float(found.kl[k]) == pytest.approx(known.kl, rel=0.02)
        assert float(found.reward[k]) == pytest.approx(known.reward, abs=0.01)


def test_prompts_are_tilted_alike_and_averaged() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    both = sampled_frontier(rewards, torch.tensor([2.0]))
    first = sampled_frontier(rewards[:1], torch.tensor([2.0]))

    assert float(both.kl) == pytest.approx(float(first.kl) / 2)
    assert float(both.reward) == pytest.approx((float(first.reward) + 5.0) / 2)
    assert float(both.effective) == float(first.effective)


def test_no_tilt_goes_further_than_the_samples_reach() -> None:
    """At λ = 1000 the best sample is left: KL log N, of one effective sample, and finite."""
    found = sampled_frontier(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([1000.0]))

    assert float(found.kl) == pytest.approx(1.386294, abs=1e-6)
    assert (float(found.reward), float(found.effective)) == (3.0, 1.0)


def test_a_penalty_finds_its_own_optimum_on_it() -> None:
    """J = R − KL/λ is highest at λ, of all points of the curve."""
    rewards = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    tilts = torch.linspace(0.0, 4.0, 81)
    found = sampled_frontier(rewards, tilts)

    for k in (20, 40, 60):
        assert int((found.reward - found.kl / tilts[k]).argmax()) == k
