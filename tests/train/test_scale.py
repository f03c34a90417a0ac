"""What a reward divided by its standard deviation is pulled to: the tilt at β·σ as published, at β as here (A8)."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kleash.functional.advantages import deviation
from kleash.functional.chunks import TokenKL
from kleash.functional.kl import exact_kl
from kleash.functional.penalties import Penalty
from kleash.lab.closed_form import Budget, configure, set_up
from kleash.lab.estimators import descended, enumerate_terms
from kleash.lab.mdp import MDP, optimum, tilt
from kleash.lab.plant import plant
from kleash.models.policy import Head
from kleash.rollout.rollout import Rollout
from kleash.train.algorithms import ALGORITHMS, AlgorithmConfig, Minibatch, Targets
from kleash.train.evaluate import collect
from kleash.train.experience import Experience, Metered
from kleash.train.loss import minibatch_loss

GRPO = ALGORITHMS["grpo"]
EXACT = Penalty("exact", "exact")
ARMS = torch.arange(1, 9, dtype=torch.double)
BANDIT = MDP(8, 1, torch.sin(2.3 * ARMS)[None], torch.cos(1.7 * ARMS))
"""That of A7."""
COIN = MDP(2, 1, torch.tensor([[0.3, 0.7]]).double().log(), torch.tensor([1.0, 0.0]).double())
MILD = MDP(
    3,
    2,
    torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.double),
    torch.randn(9, generator=torch.Generator().manual_seed(4), dtype=torch.double),
)


def spread(mdp: MDP, law: Tensor) -> float:
    """σ of the reward under a law of sequences."""
    return float((law @ (mdp.rewards - law @ mdp.rewards).square()).sqrt())


class Rest(NamedTuple):
    """Where mirror descent on E[R]/σ − β·KL ends, σ that of the policy it has come to."""

    weight: float
    """λ."""
    law: Tensor
    sigma: float


def rest(mdp: MDP, beta: float) -> Rest | None:
    """That; None: on one sequence."""
    moving, weight = plant(mdp), 0.0
    for _ in range(1000):
        law = moving.law(weight).probs
        sigma = spread(mdp, law)
        if float(law.max()) > 0.999:
            return None
        step = 0.2 * (1 / sigma - beta * weight)
        if abs(step) < 1e-13:
            return Rest(weight, law, sigma)
        weight += step
    raise AssertionError("it has not come to rest")


@pytest.mark.parametrize(("beta", "sigma"), [(3.0, 0.5860), (2.0, 0.5531), (1.5, 0.4974)])
def test_the_published_scale_is_another_beta(beta: float, sigma: float) -> None:
    """A8: eight arms; the end is the tilt at β·σ, σ of the end itself."""
    end = rest(BANDIT, beta)

    assert end is not None
    assert end.sigma == pytest.approx(sigma, abs=5e-5)
    tilted = BANDIT.logprobs(optimum(BANDIT, beta * end.sigma))[:, 0].exp()
    torch.testing.assert_close(end.law, tilted, rtol=0, atol=1e-12)


def test_the_published_scale_leaves_small_betas_without_a_penalty() -> None:
    """A8: at β = 1 nothing holds eight arms, nor a coin: with σ the reward grows as fast as the penalty."""
    assert rest(BANDIT, 1.0) is None
    assert rest(COIN, 1.0) is None


@pytest.mark.parametrize(("beta", "published", "plain"), [(5, 0.3923, 0.3436), (2, 0.5389, 0.4140)])
def test_a_coin_goes_further_than_its_beta_says(
    beta: float, published: float, plain: float
) -> None:
    """A8: heads, of which the reference has 30 %."""
    end = rest(COIN, beta)

    assert end is not None
    assert float(end.law[0]) == pytest.approx(published, abs=5e-5)
    assert float(optimum(COIN, beta)[0, 0].exp()) == pytest.approx(plain, abs=5e-5)


def slope(mdp: MDP, logits: Tensor, beta: float, sigma: float) -> float:
    """The largest entry of ∇ of what E[R]/σ and β times a penalty in the loss make of a policy."""
    logits = logits.clone().requires_grad_()
    terms = enumerate_terms(mdp, logits)
    gain = (mdp.rewards / sigma) * terms.logprobs.sum(-1)
    pull = (terms.probs * (beta * descended(EXACT, terms) - gain)).sum()
    return float(torch.autograd.grad(pull, logits)[0].abs().max())


def test_on_any_problem_it_rests_at_the_tilt_at_beta_times_sigma(mdp: MDP) -> None:
    beta = 3.0
    end, best = rest(mdp, beta), optimum(mdp, beta)
    assert end is not None
    own = spread(mdp, mdp.logprobs(best).sum(-1).exp())

    assert slope(mdp, optimum(mdp, beta * end.sigma), beta, end.sigma) < 1e-12
    assert slope(mdp, best, beta, own) > 1e-4
    assert slope(mdp, best, beta, 1.0) < 1e-12


class Enumerated:
    """Responses of a policy as a rollout, each row with its share of the whole; what a loss descends is then exact."""

    def __init__(self, mdp: MDP, logits: Tensor, rows: Tensor, groups: Tensor) -> None:
        self.mdp, self.logits, self.rows = mdp, logits, rows
        states, count = mdp.states(), len(rows)
        self.mask = torch.ones(count, mdp.length, dtype=torch.bool)
        logprobs, ref_logprobs = (mdp.logprobs(x)[rows] for x in (logits, mdp.ref_logits))
        kl = exact_kl(logits, mdp.ref_logits)[states][rows]
        nothing = torch.zeros(count, mdp.length, 1)
        self.experience = Experience(
            rollout=Rollout(
                prompts=("",) * count,
                responses=("",) * count,
                prompt_index=groups,
                prompt_ids=torch.zeros(count, 1, dtype=torch.long),
                prompt_mask=torch.ones(count, 1, dtype=torch.bool),
                response_ids=mdp.tokens()[rows],
                mask=self.mask,
                sampled_logprobs=logprobs,
                finished=torch.ones(count, dtype=torch.bool),
            ),
            scores=mdp.rewards[rows],
            penalised=mdp.rewards[rows],
            monitor={},
            metered=Metered(
                logprobs=logprobs,
                ref_logprobs=ref_logprobs,
                kl=kl,
                origin_kl=kl,
                entropy=torch.zeros_like(kl),
                values=None,
                hidden=nothing,
                ref_hidden=nothing,
                head=Head(torch.zeros(mdp.length, 1)),
            ),
        )

    def gradient(self, targets: Targets, config: AlgorithmConfig, shares: Tensor) -> float:
        """The largest entry of ∇ loss."""
        logits, keep = self.logits.clone().requires_grad_(), self.mask
        old = self.experience.metered
        read = TokenKL(
            logprobs=self.mdp.logprobs(logits)[self.rows][keep],
            ref_logprobs=old.ref_logprobs[keep],
            kl=exact_kl(logits, self.mdp.ref_logits)[self.mdp.states()][self.rows][keep],
            entropy=old.entropy[keep],
        )
        batch = Minibatch(
            old_logprobs=old.logprobs[keep],
            anchor_logprobs=old.logprobs[keep],
            ref_logprobs=old.ref_logprobs[keep],
            old_values=None,
            advantages=targets.advantages[keep],
            returns=None,
            kl_coefs=targets.loss_coefs[:, None].expand(keep.shape)[keep],
            weights=shares[:, None].expand(keep.shape)[keep],
        )
        total = GRPO.token_terms(read, batch, targets, config).total.sum()
        return float(torch.autograd.grad(total, logits)[0].abs().max())


def unscaled(targets: Targets, beta: float) -> Targets:
    """With β as it was given beside advantages that were divided: as published."""
    return targets._replace(kl_coefs=torch.full_like(targets.kl_coefs, beta))


@pytest.mark.parametrize(
    ("baseline", "control_variate"), [("group", False), ("leave_one_out", False), ("group", True)]
)
@pytest.mark.parametrize(
    ("problem", "beta"),
    [
        pytest.param(BANDIT, 0.5, marks=pytest.mark.slow),
        (COIN, 1.0),
        pytest.param(MILD, 0.5, marks=pytest.mark.slow),
    ],
    ids=["arms, 0.5", "coin, 1", "3^2, 0.5"],
)
def test_divided_with_its_beta_a_group_rests_at_the_tilt_at_beta(
    problem: MDP, beta: float, baseline: str, control_variate: bool
) -> None:
    """A8: over every group of three, each as often as the optimum draws it; where as published nothing holds.

    Beside a group that is always the same: what is typical of a rollout is taken from its other groups.
    """
    best = optimum(problem, beta)
    every = torch.arange(problem.num_sequences)
    triples = torch.cartesian_prod(every, every, every)
    law = problem.logprobs(best).sum(-1).exp()
    chances = law[triples].prod(-1).repeat_interleave(3)
    groups, beside = torch.arange(2).repeat_interleave(3), torch.tensor([0, 1, 1])
    config = AlgorithmConfig.model_validate(
        {"name": "grpo", "scale": "group", "baseline": baseline, "clip_eps": None}
        | {"control_variate": control_variate}
    )
    rollouts = [Enumerated(problem, best, torch.cat([own, beside]), groups) for own in triples]
    found = [GRPO.targets(each.experience, beta, config, EXACT) for each in rollouts]
    targets = Targets(
        advantages=torch.cat([each.advantages[:3] for each in found]),
        returns=None,
        penalty=EXACT,
        kl_coefs=torch.cat([each.kl_coefs[:3] for each in found]),
        drawn=torch.cat([each.drawn[:3] for each in found if each.drawn is not None])
        if control_variate
        else None,
    )
    case = Enumerated(
        problem, best, triples.flatten(), torch.arange(len(triples)).repeat_interleave(3)
    )

    assert float(targets.kl_coefs.max() / targets.kl_coefs.min()) > 1.2
    assert case.gradient(targets, config, chances) < 1e-12
    if not control_variate:
        assert case.gradient(unscaled(targets, beta), config, chances) > 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_divided_by_the_rollouts_deviation_too(seed: int) -> None:
    """A8: arms whose law is a count of rows, and the reference from which they are the tilt at β, or at β·σ."""
    draw, beta = torch.Generator().manual_seed(seed), 1.5
    vocab = 4 + 2 * seed
    counts = torch.randint(1, 30, (vocab,), generator=draw)
    rows = torch.arange(vocab).repeat_interleave(counts)
    logits = (counts.double() / counts.sum()).log()[None]
    rewards = torch.randn(vocab, generator=draw, dtype=torch.double)
    sigma = float(deviation(rewards[rows, None], torch.ones(len(rows), 1, dtype=torch.bool)))
    config = AlgorithmConfig.model_validate(
        {"name": "grpo", "scale": "batch", "baseline": "none", "clip_eps": None}
    )
    shares = torch.full((len(rows),), 1 / len(rows), dtype=torch.double)

    def pull(at: float, given: Callable[[Targets], Targets]) -> float:
        reference = tilt(MDP(vocab, 1, logits, rewards), -1 / at)
        mdp = MDP(vocab, 1, reference, rewards)
        case = Enumerated(mdp, logits, rows, torch.zeros(len(rows), dtype=torch.long))
        targets = GRPO.targets(case.experience, beta, config, EXACT)
        return case.gradient(given(targets), config, shares)

    assert pull(beta, lambda targets: targets) < 1e-12
    assert pull(beta * sigma, lambda targets: unscaled(targets, beta)) < 1e-12
    assert pull(beta, lambda targets: unscaled(targets, beta)) > 1e-3
    assert pull(beta * sigma, lambda targets: targets) > 1e-3


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_a_sampled_rollout_of_the_optimum_leaves_nothing_to_follow(mdp: MDP, name: str) -> None:
    """A8 through the loop's own sampler, meter and loss: whatever the optimum draws, the update is none."""
    beta, draw = 0.5, torch.Generator().manual_seed(0)
    config = configure(mdp, name, beta, 0, Budget(256, 1, 0.05), {})
    setup = set_up(MDP(mdp.vocab, mdp.length, optimum(mdp, beta), mdp.rewards), config)
    reference = set_up(mdp, config).learner.policy.model
    setup.learner.reference.model.load_state_dict(reference.state_dict())
    rollout = collect(setup.learner, setup.prompts, config.rollout, (setup.reward, []), draw)
    every = torch.arange(len(rollout.scores))

    def pull(**settings: bool) -> float:
        algorithm = config.algorithm.model_copy(update=settings)
        targets = ALGORITHMS[name].targets(rollout, beta, algorithm, config.penalty.resolved)
        given = (setup.learner, ALGORITHMS[name], rollout, targets, every, config)
        loss = minibatch_loss(*given).total
        return float(torch.autograd.grad(loss, setup.learner.trained)[0].abs().max())

    assert pull() < 1e-6
    assert pull(control_variate=False) > 1e-3
