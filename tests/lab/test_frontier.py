"""The frontier of reward and KL: who comes to it, what moves along it, and what it leaves as it was (A5, A6, A20)."""

import math

import pytest
import torch
from torch import Tensor

from kleash.control import ControlConfig
from kleash.lab.closed_form import Budget, solve, standing
from kleash.lab.control import Conditions, simulate
from kleash.lab.mdp import MDP, golden, optimum, tilt
from kleash.lab.plant import plant, weight_for
from kleash.lab.tabular import tabular
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample


def most_reward(mdp: MDP, kl: float) -> float:
    """R*(KL): of the tilt with that KL."""
    return standing(mdp, tilt(mdp, weight_for(plant(mdp), kl)), 1.0).reward


def small(seed: int, vocab: int, length: int) -> MDP:
    """A problem for which a few updates are enough."""
    draw = torch.Generator().manual_seed(seed)
    shell = MDP(vocab, length, torch.empty(0), torch.empty(0))
    logits = 0.5 * torch.randn(shell.num_prefixes, vocab, generator=draw, dtype=torch.double)
    return MDP(vocab, length, logits, torch.randn(vocab**length, generator=draw).double())


@pytest.mark.parametrize("beta", [2.0, 0.2])
def test_no_policy_is_above_the_frontier(mdp: MDP, beta: float) -> None:
    """A5: however near to an optimum it is; and an optimum is on it."""
    best = optimum(mdp, beta)
    on = standing(mdp, best, beta)
    near, far = (
        standing(mdp, best + noise * torch.randn_like(best), beta) for noise in (1e-3, 0.3)
    )

    assert on.reward == pytest.approx(most_reward(mdp, on.kl), abs=1e-9)
    assert near.reward <= most_reward(mdp, near.kl) + 1e-9
    assert far.reward < most_reward(mdp, far.kl) - 1e-4


@pytest.mark.slow
def test_training_ends_on_the_frontier_of_a_small_problem() -> None:
    """A5: at what β can buy, and R within 0.01 of what its KL can."""
    mdp = small(1, 4, 2)
    for beta in (1.0, 0.4):
        end = solve(mdp, "rloo", beta, 0, budget=Budget(256, 80, 0.15)).standing

        assert end.kl == pytest.approx(standing(mdp, optimum(mdp, beta), beta).kl, rel=0.1)
        assert -0.01 <= end.reward - most_reward(mdp, end.kl) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta", "steps", "learning_rate"),
    [
        (1.0, 400, 0.1),
        pytest.param(0.3, 600, 0.1, marks=pytest.mark.long),
        pytest.param(0.2, 1500, 0.05, marks=pytest.mark.long),
    ],
)
def test_the_golden_sweep_is_the_frontier(beta: float, steps: int, learning_rate: float) -> None:
    """A5, Ziegler's figure 3: KL within 1 % of the optimum's, R within 0.01 of what it can buy, and never over."""
    mdp = golden()
    end = solve(mdp, "rloo", beta, 0, budget=Budget(512, steps, learning_rate)).standing

    assert end.kl == pytest.approx(standing(mdp, optimum(mdp, beta), beta).kl, rel=0.01)
    assert -0.01 <= end.reward - most_reward(mdp, end.kl) <= 1e-9


def descended(mdp: MDP, beta: float, eta: float, steps: int) -> list[tuple[float, float]]:
    """KL and reward of the policies of mirror descent on J, over the law of whole sequences, from the reference."""
    reference = mdp.logprobs(mdp.ref_logits).sum(-1)
    law, path = reference, list[tuple[float, float]]()
    for _ in range(steps):
        law = law.detach().requires_grad_()
        own = law.log_softmax(-1)
        (slope,) = torch.autograd.grad(own.exp() @ (mdp.rewards - beta * (own - reference)), law)
        law = (law.detach() + eta * slope / own.detach().exp()).log_softmax(-1)
        path.append((float(law.exp() @ (law - reference)), float(law.exp() @ mdp.rewards)))
    return path


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_to_stop_early_is_to_penalise(mdp: MDP, beta: float) -> None:
    """A6: with a penalty or without one, mirror descent moves along the frontier; the plant's law is its path."""
    path = descended(mdp, beta, 0.5, 8)
    fixed = ControlConfig(controller="fixed", kl_coef=beta)
    trace = simulate(plant(mdp), fixed, Conditions(eta=0.5, steps=9, batch=2))

    for step, (kl, reward) in enumerate(path, 1):
        assert reward == pytest.approx(most_reward(mdp, kl), abs=1e-12)
        assert kl == pytest.approx(trace.kl[step], abs=1e-12)


def test_without_a_penalty_the_steps_are_the_optima() -> None:
    """A6: after 1, 2, 4 and 8 steps of 0.5 λ is 0.5, 1, 2 and 4: A1's KL at β = 2, 1, 0.5, and 1.69836."""
    kl = [kl for kl, _ in descended(golden(), 0.0, 0.5, 8)]

    assert [kl[step - 1] for step in (1, 2, 4, 8)] == pytest.approx(
        [0.07575, 0.27516, 0.80756, 1.69836], abs=5e-6
    )


class Flagged:
    """A problem with one token more, of which neither the reward nor any other token knows.

    Args:
        inner: the problem without it.
        place: where it stands.
        share: what the reference gives B, the lower half of the vocabulary there.
        charge: D, what the reward is less by on B.
    """

    def __init__(self, inner: MDP, place: int, share: float = 0.3, charge: float = 0.0) -> None:
        self.place, self.low = place, inner.vocab // 2
        draw = torch.Generator().manual_seed(place)
        flag = torch.rand(inner.vocab, generator=draw, dtype=torch.double) + 0.1
        flag[: self.low] *= share / flag[: self.low].sum()
        flag[self.low :] *= (1 - share) / flag[self.low :].sum()
        shell = MDP(inner.vocab, inner.length + 1, torch.empty(0), torch.empty(0))
        rows = torch.empty(shell.num_prefixes, inner.vocab, dtype=torch.double)
        without = [t for t in range(shell.length) if t != place]
        # Of every sequence: the number of the one without the flag, and the prefixes of both.
        tokens, states = shell.tokens(), shell.states()
        powers = inner.vocab ** torch.arange(inner.length - 1, -1, -1)
        number = tokens[:, without] @ powers
        rows[states[:, place]] = flag.log()
        rows[states[:, without]] = inner.ref_logits[inner.states()[number]]
        rewards = inner.rewards[number] - charge * (tokens[:, place] < self.low)
        self.mdp = MDP(inner.vocab, inner.length + 1, rows, rewards)

    def share(self, logits: Tensor) -> float:
        """π(B)."""
        is_low = self.mdp.tokens()[:, self.place] < self.low
        return float(self.mdp.logprobs(logits).sum(-1).exp() @ is_low.double())


@pytest.mark.parametrize("weight", [0.2, 2.0, 10.0])
def test_what_the_reward_does_not_see_keeps_the_odds_of_the_reference(
    mdp: MDP, weight: float
) -> None:
    """A20: at every β, small KL or large, a base that misbehaves is held to its misbehaviour."""
    for place in (0, mdp.length // 2, mdp.length):
        flagged = Flagged(mdp, place)
        assert flagged.share(flagged.mdp.ref_logits) == pytest.approx(0.3, abs=1e-12)
        assert flagged.share(tilt(flagged.mdp, weight)) == pytest.approx(0.3, abs=1e-10)
        assert flagged.share(optimum(flagged.mdp, 1 / weight)) == pytest.approx(0.3, abs=1e-10)


def test_samples_of_the_optimum_misbehave_as_often() -> None:
    """A20: within four standard errors."""
    flagged = Flagged(small(4, 6, 2), 1)
    best = MDP(6, 3, optimum(flagged.mdp, 0.1), flagged.mdp.rewards)
    config = RolloutConfig(num_prompts=1, group_size=20_000, max_new_tokens=3)
    rollout = sample(tabular(best), [""], config, torch.Generator().manual_seed(0))
    found = float((rollout.response_ids[:, 1] < flagged.low).double().mean())

    assert abs(found - 0.3) <= 4 * math.sqrt(0.3 * 0.7 / 20_000)


@pytest.mark.parametrize(("charge", "beta"), [(0.5, 0.2), (0.5, 2.0), (-1.0, 0.5)])
def test_a_charge_moves_the_odds_by_itself_over_beta(mdp: MDP, charge: float, beta: float) -> None:
    """A20: logit π*(B) = logit π_ref(B) − D/β; 30 %, D = 0.5 and β = 0.2 make 3.40 %."""
    flagged = Flagged(mdp, 1, charge=charge)
    found = flagged.share(optimum(flagged.mdp, beta))

    assert math.log(found / (1 - found)) == pytest.approx(
        math.log(0.3 / 0.7) - charge / beta, abs=1e-10
    )
    if (charge, beta) == (0.5, 0.2):
        assert found == pytest.approx(0.0340, abs=5e-5)


@pytest.mark.slow
def test_training_for_the_reward_alone_leaves_a_misbehaving_base_as_it_was() -> None:
    """A20: most of what there is to gain is gained, and B is as likely as it was."""
    flagged = Flagged(small(5, 4, 1), 1)
    found = solve(flagged.mdp, "rloo", 0.3, 0, budget=Budget(256, 80, 0.15))

    assert found.standing.gain_lost is not None
    assert found.standing.gain_lost <= 0.03
    policy = torch.tensor(found.policy, dtype=torch.double)
    assert flagged.share(policy) == pytest.approx(0.3, abs=0.03)
