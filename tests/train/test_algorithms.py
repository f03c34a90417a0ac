"""What an update descends, against the objective itself, enumerated.

The problem has three tokens and at most three of them a response; token 2 ends it, so that lengths differ. In each
state the policy's probabilities are 1/2, 1/4, 1/4 in some order: 64 rows hold every sequence as often as its
probability says, and a mean over them is an expectation, exactly.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kleash.functional.chunks import TokenKL
from kleash.functional.kl import exact_kl
from kleash.functional.penalties import GRADIENTS, Penalty
from kleash.lab.chi_squared import chi_squared_optimum
from kleash.lab.mdp import MDP
from kleash.models.policy import Head
from kleash.rollout.rollout import Rollout
from kleash.train.algorithms import ALGORITHMS, AlgorithmConfig, Minibatch, Targets
from kleash.train.experience import Experience, Metered

KL_COEF = 0.7
CHI_SQUARED = 0.05
"""So little that no charge is over what rewards differ by: then the gradient is exact."""
EOS = 2
PPO = ALGORITHMS["ppo"]
EXACT = Penalty("exact", "exact")
WHOLE = [
    penalty._replace(chi_squared=chi_squared)
    for penalty, gradient in GRADIENTS.items()
    if gradient == ("reverse", "sequence")
    for chi_squared in (0.0, CHI_SQUARED)
]
PLAIN = AlgorithmConfig(gamma=1.0, gae_lambda=1.0, scale="none")
"""No discount and no bootstrapping: the advantage is the whole return, less a baseline."""


def named(penalty: Penalty) -> str:
    """For a test's name."""
    beside = "-chi-squared" if penalty.chi_squared else ""
    return f"{penalty.placement}-{penalty.estimator}{beside}"


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
        self.groups = torch.arange(len(self.rows))

    def objective(self, logits: Tensor, chi_squared: float = 0.0) -> Tensor:
        """J = E[R] − β (KL(π‖π_ref) + (c/2) χ²(π‖π_ref)), summed over all sequences."""
        logprobs, ref_logprobs = self.mdp.logprobs(logits), self.mdp.logprobs(self.ref_logits)
        log_ratio = torch.where(self.mask, logprobs - ref_logprobs, 0.0).sum(-1)
        cost = log_ratio + 0.5 * chi_squared * log_ratio.expm1()
        return (logprobs.sum(-1).exp() * (self.rewards - KL_COEF * cost)).sum()

    def pairs(self) -> None:
        """Every two responses to one prompt as often as their probability says: an expectation over groups of two."""
        count = len(self.rows)
        self.rows = torch.cartesian_prod(self.rows, self.rows).flatten()
        self.groups = torch.arange(count * count).repeat_interleave(2)

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
                prompt_index=self.groups,
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
                origin_kl=torch.where(mask, kl, 0.0)[rows],
                entropy=torch.zeros(count, 3),
                values=torch.where(mask, self.values, 0.0)[rows],
                hidden=nothing,
                ref_hidden=nothing,
                head=Head(torch.zeros(3, 1)),
            ),
        )

    def responses(self) -> tuple[Tensor, list[int]]:
        """The probability [27] of each response, at the first of its sequences; what differs after its end has 0."""
        written = torch.where(self.mask, self.mdp.tokens(), EOS)
        _, same = written.unique(dim=0, return_inverse=True)
        first = [same.tolist().index(i) for i in range(int(same.max()) + 1)]
        law = self.rows.bincount(minlength=27) / 64
        chances = torch.zeros(27).index_add_(0, torch.tensor(first)[same], law)
        return chances, first

    def slopes(self) -> tuple[Tensor, Tensor]:
        """∇ log π(y_t|h_t) and ∇ KL_t of every token of every sequence, [27, 3] of 13 × 3; 0 beyond the end."""
        states, tokens = self.mdp.states(), self.mdp.tokens()
        by_token = torch.func.jacrev(lambda logits: logits.log_softmax(-1))(self.logits)
        by_state = torch.func.jacrev(lambda logits: exact_kl(logits, self.ref_logits))(self.logits)
        keep = self.mask[..., None, None]
        return keep * by_token[states, tokens], keep * by_state[states]

    def ascent(self, config: AlgorithmConfig, penalty: Penalty = EXACT) -> tuple[Tensor, Targets]:
        """−∇ of the loss of the whole rollout in one minibatch, per response, and what it aimed at."""
        experience = self.experience()
        targets = PPO.targets(experience, KL_COEF, config, penalty)
        logits = self.logits.clone().requires_grad_()
        keep = self.mask[self.rows]
        recorded = experience.metered
        read = TokenKL(
            logprobs=self.mdp.logprobs(logits)[self.rows][keep],
            ref_logprobs=recorded.ref_logprobs[keep],
            kl=exact_kl(logits, self.ref_logits)[self.mdp.states()][self.rows][keep],
            entropy=recorded.entropy[keep],
        )
        batch = Minibatch(
            old_logprobs=recorded.logprobs[keep],
            anchor_logprobs=recorded.logprobs[keep],
            ref_logprobs=recorded.ref_logprobs[keep],
            old_values=None if recorded.values is None else recorded.values[keep],
            advantages=targets.advantages[keep],
            returns=None if targets.returns is None else targets.returns[keep],
            kl_coefs=targets.loss_coefs[:, None].expand(keep.shape)[keep],
            weights=torch.ones(int(keep.sum())),
        )
        total = PPO.token_terms(read, batch, targets, config).total.sum()
        (gradient,) = torch.autograd.grad(total, logits)
        return -gradient / len(self.rows), targets


@pytest.fixture
def problem() -> Problem:
    return Problem()


def _gradient_of_the_objective(problem: Problem, penalty: Penalty) -> Tensor:
    logits = problem.logits.clone().requires_grad_()
    return torch.autograd.grad(problem.objective(logits, penalty.chi_squared), logits)[0]


def test_the_rows_are_the_law(problem: Problem) -> None:
    assert len(problem.rows) == 64
    law = problem.mdp.logprobs(problem.logits).sum(-1).exp()
    counted = problem.rows.bincount(minlength=27) / 64
    torch.testing.assert_close(counted.double(), law, rtol=0, atol=1e-12)
    lengths = problem.mask[problem.rows].sum(-1)
    assert set(lengths.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("penalty", WHOLE, ids=named)
@pytest.mark.parametrize("baseline", [False, True], ids=["no critic", "any critic"])
def test_the_loss_descends_the_objective_exactly(
    problem: Problem, baseline: bool, penalty: Penalty
) -> None:
    """−∇ loss = ∇ ( E[R] − β KL(π‖π_ref) ), pitfall 43: wherever the penalty stands, all of it, sign and weight."""
    if not baseline:
        problem.values.zero_()
    problem.pairs()
    ascent, targets = problem.ascent(PLAIN, penalty)
    truth = _gradient_of_the_objective(problem, penalty)
    assert float(truth.abs().max()) > 0.1
    torch.testing.assert_close(ascent, truth, rtol=0, atol=1e-12)
    assert targets.kl_coef_effective == pytest.approx(KL_COEF, rel=1e-12)


@pytest.mark.parametrize("penalty", WHOLE, ids=named)
@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("scale", ["none", "batch"])
def test_whitening_changes_the_length_of_the_step_and_not_its_direction(
    problem: Problem, scale: str, whiten_rewards: bool, penalty: Penalty
) -> None:
    """Pitfall 41."""
    problem.pairs()
    whitened = {"scale": scale, "whiten_rewards": whiten_rewards}
    ascent, targets = problem.ascent(PLAIN.model_copy(update=whitened), penalty)
    truth = _gradient_of_the_objective(problem, penalty)
    effective = targets.kl_coef_effective
    # Centring the advantages adds a baseline that depends on no token: no direction of its own, on average.
    cosine = (ascent * truth).sum() / (ascent.norm() * truth.norm())
    assert float(cosine) > 1 - 1e-9
    # The one factor by which everything was divided is the one that β was divided by.
    torch.testing.assert_close(ascent * (KL_COEF / effective), truth, rtol=0, atol=1e-6)
    is_whole = effective == pytest.approx(KL_COEF, rel=1e-12)
    assert is_whole == (scale == "none" and not whiten_rewards)


@pytest.mark.parametrize("penalty", WHOLE, ids=named)
@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("group", 0.5)])
def test_a_baseline_of_the_group_leaves_the_direction_exact(
    problem: Problem, baseline: str, share: float, penalty: Penalty
) -> None:
    """A response that is in its own baseline takes 1 − 1/G of the step with it, and as much of β."""
    problem.pairs()
    ascent, targets = problem.ascent(PLAIN.model_copy(update={"baseline": baseline}), penalty)

    torch.testing.assert_close(
        ascent, share * _gradient_of_the_objective(problem, penalty), rtol=0, atol=1e-12
    )
    assert targets.kl_coef_effective == pytest.approx(share * KL_COEF, rel=1e-12)


@pytest.mark.parametrize("penalty", WHOLE, ids=named)
@pytest.mark.parametrize("baseline", ["value", "none", "batch"])
def test_without_a_baseline_of_the_group_two_responses_to_a_prompt_leave_it_exact(
    problem: Problem, baseline: str, penalty: Penalty
) -> None:
    """What is charged for χ² is less what the *other* response is, which is no bias; or that of all."""
    problem.pairs()
    ascent, targets = problem.ascent(PLAIN.model_copy(update={"baseline": baseline}), penalty)
    # The mean of all others, which is as much larger as all are more than all but one.
    tolerance = 1 / len(problem.rows) if baseline == "batch" else 1e-12
    truth = _gradient_of_the_objective(problem, penalty)
    torch.testing.assert_close(ascent, truth, rtol=0, atol=tolerance)
    if penalty.chi_squared:
        assert targets.bound is not None
        assert not bool(targets.bound.any())


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [p for p in WHOLE if not p.chi_squared], ids=named)
def test_the_log_ratio_drawn_in_place_of_the_exact_kl_is_no_bias(
    problem: Problem, penalty: Penalty
) -> None:
    """Over every batch of three, each as often as its probability says; c is of the two others, and differs."""
    config = PLAIN.model_copy(update={"baseline": "batch", "control_variate": True})
    chances, responses = problem.responses()
    of_logprobs, of_kl = problem.slopes()
    mean, shares = torch.zeros(13, 3, dtype=torch.double), set[float]()
    for batch in itertools.combinations_with_replacement(responses, 3):
        problem.rows, problem.groups = torch.tensor(batch), torch.arange(3)
        targets = PPO.targets(problem.experience(), KL_COEF, config, penalty)
        assert targets.drawn is not None
        shares |= set(targets.drawn.tolist())
        orders = len(set(itertools.permutations(batch)))
        chance = orders * float(chances[problem.rows].prod())
        mean += chance * torch.einsum("bt,btsv->sv", targets.advantages, of_logprobs[problem.rows])
        if penalty.is_in_loss:
            mean -= chance * torch.einsum("b,btsv->sv", targets.loss_coefs, of_kl[problem.rows])

    assert len(shares) > 50
    # What rounding makes of c where two responses are charged almost the same is of all three.
    torch.testing.assert_close(
        mean / 3, _gradient_of_the_objective(problem, penalty), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("penalty", WHOLE, ids=named)
@pytest.mark.parametrize("baseline", ["leave_one_out", "group", "batch"])
def test_at_the_optimum_nothing_is_left_to_follow(
    problem: Problem, baseline: str, penalty: Penalty
) -> None:
    """There R − β (Σ u + c e^{Σ u}) is the same for every response: whatever is sampled, the update is none."""
    mdp = MDP(3, 3, problem.ref_logits, problem.rewards)
    problem.logits = chi_squared_optimum(mdp, KL_COEF, penalty.chi_squared).logits
    problem.groups = torch.arange(len(problem.rows)) % 16
    plain = PLAIN.model_copy(update={"baseline": baseline})
    mixed = plain.model_copy(update={"control_variate": True})
    noise = problem.ascent(plain, penalty)[0]
    nothing, targets = problem.ascent(mixed, penalty)

    assert targets.drawn is not None
    torch.testing.assert_close(targets.drawn, torch.ones_like(targets.drawn), rtol=0, atol=1e-9)
    assert float(nothing.abs().max()) < 1e-9
    assert float(noise.abs().max()) > 0.01


def test_a_group_whose_rewards_vary_more_weighs_less_with_its_whole_objective(
    problem: Problem,
) -> None:
    """A8: to divide the reward by its group's σ and not β is to hold another β in each group."""
    problem.groups = torch.arange(len(problem.rows)) // 4
    experience = problem.experience()
    config = PLAIN.model_copy(update={"baseline": "leave_one_out"})
    plain = PPO.targets(experience, KL_COEF, config, EXACT)
    config = config.model_copy(update={"scale": "group"})
    scaled = PPO.targets(experience, KL_COEF, config, EXACT)
    ratio = (scaled.kl_coefs / plain.kl_coefs)[:, None]

    assert float(ratio.max() / ratio.min()) > 2
    torch.testing.assert_close(scaled.advantages, plain.advantages * ratio, rtol=1e-9, atol=1e-12)


def test_the_effective_coefficient_follows_the_scale_of_the_rewards(problem: Problem) -> None:
    """Pitfall 41: ten times the reward and ten times β are the same update, and beside unit advantages the same β."""
    config = PLAIN.model_copy(update={"scale": "batch"})
    problem.values.zero_()
    once = problem.ascent(config)[1].kl_coef_effective
    experience = problem.experience()
    scaled = replace(experience, penalised=10 * experience.penalised)
    ten = PPO.targets(scaled, 10 * KL_COEF, config, EXACT).kl_coef_effective
    assert ten == pytest.approx(once, rel=1e-12)
    assert PPO.targets(scaled, KL_COEF, config, EXACT).kl_coef_effective < 0.5 * once


def _read(**changed: Tensor) -> TokenKL:
    """Two tokens at which the policy has not moved; KL_t of 0.1 and 0.3."""
    still = torch.tensor([-1.0, -2.0])
    read = TokenKL(still, still - 0.5, torch.tensor([0.1, 0.3]), torch.ones(2))
    return read._replace(**changed)


def _minibatch(kl_coef: float = 0.0) -> Minibatch:
    """A of 1 and −3, G − V of 2 and 4."""
    still = torch.tensor([-1.0, -2.0])
    return Minibatch(
        old_logprobs=still,
        anchor_logprobs=still,
        ref_logprobs=still - 0.5,
        old_values=torch.zeros(2),
        advantages=torch.tensor([1.0, -3.0]),
        returns=torch.tensor([2.0, 4.0]),
        kl_coefs=torch.full((2,), kl_coef),
        weights=torch.ones(2),
    )


def _targets(kl_coef: float, penalty: Penalty = EXACT) -> Targets:
    return Targets(torch.zeros(1, 1), torch.zeros(1, 1), penalty, torch.tensor([kl_coef]))


@pytest.mark.parametrize(
    ("penalty", "terms"),
    [
        (EXACT, [0.1, 0.3]),
        (Penalty("loss", "exact"), [0.1, 0.3]),
        (Penalty("loss", "k2"), [0.125, 0.125]),
        (Penalty("forward", "k3"), [0.10653066, 0.10653066]),
    ],
)
def test_the_penalty_in_the_loss_is_beta_times_its_term(
    penalty: Penalty, terms: list[float]
) -> None:
    found = PPO.token_terms(_read(), _minibatch(0.5), _targets(0.5, penalty), AlgorithmConfig())
    assert found.policy.tolist() == [-1.0, 3.0]
    assert found.penalty is not None
    torch.testing.assert_close(found.penalty, 0.5 * torch.tensor(terms))
    torch.testing.assert_close(found.total, found.policy + found.penalty)


def test_each_part_is_clipped_by_its_own_setting() -> None:
    moved = _read(logprobs=torch.tensor([-1.0, -2.0]) + torch.tensor([1.5, 0.5]).log())
    config = AlgorithmConfig(clip_eps=0.4, value_clip_eps=0.3)
    terms = PPO.token_terms(moved, _minibatch(), _targets(0.0), config)
    # ρA: min(1.5, 1.4) and min(−1.5, −1.8). Values: max(1², 1.7²) and max(1², 3.7²).
    torch.testing.assert_close(terms.policy, torch.tensor([-1.4, 1.8]))
    assert terms.clipped.tolist() == [True, True]
    assert PPO.value_loss is not None
    value = PPO.value_loss(torch.tensor([3.0, 5.0]), _minibatch(), config)
    assert float(value) == pytest.approx(0.5 * (1.7**2 + 3.7**2) / 2)


@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_without_a_penalty_a_broken_kl_is_not_in_the_loss(broken: float) -> None:
    """Pitfall 4: 0 · inf is NaN."""
    read = _read(kl=torch.tensor([broken, 0.1]))
    assert bool(
        PPO.token_terms(read, _minibatch(), _targets(0.0), AlgorithmConfig()).total.isfinite().all()
    )
    total = PPO.token_terms(read, _minibatch(0.1), _targets(0.1), AlgorithmConfig()).total
    assert total.isfinite().tolist() == [False, True]
    in_reward = _targets(0.1, Penalty("reward", "k1"))
    assert PPO.token_terms(read, _minibatch(), in_reward, AlgorithmConfig()).penalty is None
