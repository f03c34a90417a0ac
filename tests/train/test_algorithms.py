"""What an update descends, against the objective itself, enumerated.

The problem has three tokens and at most three of them a response; token 2 ends it, so that lengths differ. In each
state the policy's probabilities are 1/2, 1/4, 1/4 in some order: 64 rows hold every sequence as often as its
probability says, and a mean over them is an expectation, exactly.
"""

import itertools

import pytest
import torch
from torch import Tensor

from kleash.functional.kl import exact_kl
from kleash.lab.mdp import MDP
from kleash.models.policy import Head
from kleash.rollout.rollout import Rollout
from kleash.train.algorithms import ALGORITHMS, Loss, Minibatch, Targets, mean_losses, ppo_loss
from kleash.train.config import PPOConfig
from kleash.train.experience import Experience, Metered

KL_COEF = 0.7
EOS = 2
PLAIN = PPOConfig(gamma=1.0, gae_lambda=1.0, whiten_advantages=False, whiten_rewards=False)
"""No discount and no bootstrapping: the advantage is the whole return, less a baseline."""


class Problem:
    """A reward, a reference, and a policy whose law is a count of rows."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(7)
        orders = list(itertools.permutations([0.5, 0.25, 0.25]))
        picks = torch.randint(len(orders), (13,), generator=draw).tolist()
        self.logits = torch.tensor([orders[i] for i in picks], dtype=torch.double).log()
        self.ref_logits = torch.randn(13, 3, generator=draw, dtype=torch.double)
        self.mdp = MDP(3, 3, self.ref_logits, torch.empty(0))
        tokens = self.mdp.tokens()
        ended = (tokens == EOS).cumsum(-1) - (tokens == EOS).long() > 0
        self.mask = ~ended
        worth = torch.randn(3, 3, generator=draw, dtype=torch.double)
        self.rewards = torch.where(self.mask, worth[torch.arange(3), tokens], 0.0).sum(-1)
        self.values = torch.randn(13, generator=draw, dtype=torch.double)[self.mdp.states()]
        counts = (self.mdp.logprobs(self.logits).sum(-1).exp() * 64).round().long()
        self.rows = torch.arange(27).repeat_interleave(counts)

    def objective(self, logits: Tensor) -> Tensor:
        """J = E[R] − β·KL(π‖π_ref), summed over all sequences."""
        logprobs, ref_logprobs = self.mdp.logprobs(logits), self.mdp.logprobs(self.ref_logits)
        log_ratio = torch.where(self.mask, logprobs - ref_logprobs, 0.0).sum(-1)
        return (logprobs.sum(-1).exp() * (self.rewards - KL_COEF * log_ratio)).sum()

    def experience(self) -> Experience:
        """Every sequence as often as its probability says, as a rollout metered at the policy."""
        states, tokens, mask = self.mdp.states(), self.mdp.tokens(), self.mask
        logprobs, ref_logprobs = self.mdp.logprobs(self.logits), self.mdp.logprobs(self.ref_logits)
        kl = exact_kl(self.logits, self.ref_logits)[states]
        rows, count = self.rows, len(self.rows)
        nothing = torch.zeros(count, 3, 1)
        return Experience(
            rollout=Rollout(
                prompts=("",) * count,
                responses=("",) * count,
                prompt_index=torch.arange(count),
                prompt_ids=torch.zeros(count, 1, dtype=torch.long),
                prompt_mask=torch.ones(count, 1, dtype=torch.bool),
                response_ids=tokens[rows],
                mask=mask[rows],
                sampled_logprobs=logprobs[rows],
                finished=(tokens == EOS).any(-1)[rows],
            ),
            # What is optimised is the penalised score; the raw one is only for show.
            scores=torch.full((count,), 99.0, dtype=torch.double),
            penalised=self.rewards[rows],
            monitor={},
            metered=Metered(
                logprobs=logprobs[rows],
                ref_logprobs=ref_logprobs[rows],
                kl=torch.where(mask, kl, 0.0)[rows],
                entropy=torch.zeros(count, 3),
                values=torch.where(mask, self.values, 0.0)[rows],
                hidden=nothing,
                ref_hidden=nothing,
                head=Head(torch.zeros(3, 1)),
            ),
        )

    def ascent(self, config: PPOConfig) -> tuple[Tensor, Targets]:
        """−∇ of the loss of the whole rollout in one minibatch, per response, and what it aimed at."""
        algorithm, experience = ALGORITHMS["ppo"], self.experience()
        targets = algorithm.targets(experience, KL_COEF, config)
        logits = self.logits.clone().requires_grad_()
        keep = self.mask[self.rows]
        values = experience.metered.values[keep]
        batch = Minibatch(
            logprobs=self.mdp.logprobs(logits)[self.rows][keep],
            values=values,
            kl=exact_kl(logits, self.ref_logits)[self.mdp.states()][self.rows][keep],
            old_logprobs=experience.metered.logprobs[keep],
            old_values=values,
            advantages=targets.advantages[keep],
            returns=targets.returns[keep],
        )
        loss = algorithm.loss(batch, targets.kl_loss_coef, config)
        (gradient,) = torch.autograd.grad(loss.total, logits)
        # The loss is a mean per token, the objective one per response.
        return -gradient * keep.sum() / len(self.rows), targets


@pytest.fixture
def problem() -> Problem:
    return Problem()


def _gradient_of_the_objective(problem: Problem) -> Tensor:
    logits = problem.logits.clone().requires_grad_()
    return torch.autograd.grad(problem.objective(logits), logits)[0]


def test_the_rows_are_the_law(problem: Problem) -> None:
    assert len(problem.rows) == 64
    law = problem.mdp.logprobs(problem.logits).sum(-1).exp()
    counted = problem.rows.bincount(minlength=27) / 64
    torch.testing.assert_close(counted.double(), law, rtol=0, atol=1e-12)
    lengths = problem.mask[problem.rows].sum(-1)
    assert set(lengths.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("baseline", [False, True], ids=["no critic", "any critic"])
def test_the_loss_descends_the_objective_exactly(problem: Problem, baseline: bool) -> None:
    """−∇ loss = ∇ ( E[R] − β KL(π‖π_ref) ): both halves of the penalty, their signs and their weights."""
    if not baseline:
        problem.values.zero_()
    ascent, targets = problem.ascent(PLAIN)
    truth = _gradient_of_the_objective(problem)
    assert float(truth.abs().max()) > 0.1
    torch.testing.assert_close(ascent, truth, rtol=0, atol=1e-12)
    assert targets.kl_loss_coef == KL_COEF


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("whiten_advantages", [False, True])
def test_whitening_changes_the_length_of_the_step_and_not_its_direction(
    problem: Problem, whiten_advantages: bool, whiten_rewards: bool
) -> None:
    whitened = {"whiten_advantages": whiten_advantages, "whiten_rewards": whiten_rewards}
    ascent, targets = problem.ascent(PLAIN.model_copy(update=whitened))
    truth = _gradient_of_the_objective(problem)
    cosine = (ascent * truth).sum() / (ascent.norm() * truth.norm())
    assert float(cosine) > 1 - 1e-9
    # The one factor by which everything was divided is the one that β was divided by.
    torch.testing.assert_close(ascent * (KL_COEF / targets.kl_loss_coef), truth, rtol=0, atol=1e-6)
    assert (targets.kl_loss_coef == KL_COEF) == (not whiten_advantages and not whiten_rewards)


def _minibatch(**changed: Tensor) -> Minibatch:
    """Two tokens at which the policy has not moved: A of 1 and −3, G − V of 2 and 4, KL_t of 0.1 and 0.3."""
    still = torch.tensor([-1.0, -2.0])
    batch = Minibatch(
        logprobs=still,
        values=torch.zeros(2),
        kl=torch.tensor([0.1, 0.3]),
        old_logprobs=still,
        old_values=torch.zeros(2),
        advantages=torch.tensor([1.0, -3.0]),
        returns=torch.tensor([2.0, 4.0]),
    )
    return batch._replace(**changed)


def test_the_loss_is_the_sum_of_its_three_parts() -> None:
    loss = ppo_loss(_minibatch(), 0.5, PPOConfig(value_coef=0.25))
    assert float(loss.policy) == pytest.approx(1.0)
    assert float(loss.value) == pytest.approx(0.5 * (4 + 16) / 2)
    assert float(loss.total) == pytest.approx(1.0 + 0.25 * 5.0 + 0.5 * 0.2)


def test_each_part_is_clipped_by_its_own_setting() -> None:
    moved = _minibatch(
        logprobs=torch.tensor([-1.0, -2.0]) + torch.tensor([1.5, 0.5]).log(),
        values=torch.tensor([3.0, 5.0]),
    )
    loss = ppo_loss(moved, 0.0, PPOConfig(clip_eps=0.4, value_clip_eps=0.3))
    # ρA: min(1.5, 1.4) and min(−1.5, −1.8). Values: max(1², 1.7²) and max(1², 3.7²).
    assert float(loss.policy) == pytest.approx(-(1.4 - 1.8) / 2)
    assert float(loss.value) == pytest.approx(0.5 * (1.7**2 + 3.7**2) / 2)
    assert float(loss.clip_fraction) == 1.0


def test_without_a_penalty_an_infinite_kl_is_not_in_the_loss() -> None:
    """0 · inf is NaN."""
    batch = _minibatch(kl=torch.tensor([torch.inf, 0.1]))
    assert bool(ppo_loss(batch, 0.0, PPOConfig()).total.isfinite())
    assert bool(ppo_loss(batch, 0.1, PPOConfig()).total.isinf())


def test_the_reported_losses_are_means_over_minibatches() -> None:
    parts = [torch.tensor(float(x)) for x in range(8)]
    losses = [Loss(*parts[:4]), Loss(*parts[4:])]
    assert mean_losses(losses) == {"policy_loss": 3.0, "value_loss": 4.0, "clip_fraction": 5.0}
    assert set(mean_losses([]).values()) == {None}
