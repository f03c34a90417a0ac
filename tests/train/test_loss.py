"""The loss that is descended: what each token of a minibatch counts in it, and how it is normalised."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kleash.functional.importance import importance_weights
from kleash.functional.logprobs import log_softmax
from kleash.lab.closed_form import Budget, configure, set_up
from kleash.lab.mdp import MDP
from kleash.train.algorithms import ALGORITHMS, AlgorithmConfig, Targets
from kleash.train.algorithms.functions import sequence_anchors, token_weights
from kleash.train.config import RunConfig
from kleash.train.evaluate import collect
from kleash.train.experience import Experience
from kleash.train.loss import Loss, accumulated, loss_pieces, minibatch_loss

LENGTHS = torch.tensor([[True, False, False], [True, True, True]])
PROBLEM = MDP(
    3,
    3,
    torch.randn(13, 3, generator=torch.Generator().manual_seed(5), dtype=torch.double),
    torch.randn(27, generator=torch.Generator().manual_seed(6), dtype=torch.double),
)


class Case:
    """A rollout of a table, half of whose responses end early."""

    def __init__(self, name: str, settings: dict[str, Any] | None = None, **sections: Any) -> None:
        budget = Budget(32, 10, 0.1, settings or {})
        self.name = name
        self.config: RunConfig = configure(PROBLEM, name, 0.2, 0, budget, sections)
        setup = set_up(PROBLEM, self.config)
        self.learner = setup.learner
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():  # away from the reference, where KL has no slope
            self.learner.trained[0][:, :-1] += 0.5 * torch.randn(13, 3, generator=draw)
        found = collect(self.learner, setup.prompts, self.config.rollout, (setup.reward, []), draw)
        mask = found.rollout.mask.clone()
        mask[::2, 1:] = False
        metered = replace(
            found.metered,
            **{name: getattr(found.metered, name) * mask for name in ("kl", "logprobs")},
        )
        self.experience: Experience = replace(
            found, rollout=replace(found.rollout, mask=mask), metered=metered
        )
        self.mask = mask

    def targets(self) -> Targets:
        return ALGORITHMS[self.name].targets(
            self.experience, 0.2, self.config.algorithm, self.config.penalty.resolved
        )

    def slope(self, targets: Targets) -> Tensor:
        """∇ of the loss of all responses, by the table's logits."""
        every = torch.arange(len(self.mask))
        given = (self.learner, ALGORITHMS[self.name], self.experience, targets, every, self.config)
        loss = minibatch_loss(*given).total
        return torch.autograd.grad(loss, self.learner.trained)[0][:, :-1]

    def surrogate(self, weights: Tensor) -> Tensor:
        """∇ of Σ w log π of the tokens drawn, [B, T] weights."""
        rows = self.learner.trained[0]
        rollout = self.experience.rollout
        hidden = self.learner.policy.hidden(
            rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids
        )
        logprobs = log_softmax(self.learner.policy.head(hidden), 1.0)
        drawn = logprobs.gather(-1, rollout.response_ids[..., None])[..., 0]
        return torch.autograd.grad((weights * drawn).sum(), rows)[0][:, :-1]


@pytest.mark.parametrize(
    ("aggregate", "weights"),
    [
        ("token", [1.0, 1.0, 1.0, 1.0]),
        ("response", [2.0, 2 / 3, 2 / 3, 2 / 3]),
        ("length", [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_what_a_token_counts(aggregate: str, weights: list[float]) -> None:
    """A response of one token and one of three, of at most four: 1; mean length over length; over the longest."""
    config = AlgorithmConfig.model_validate({"aggregate": aggregate})

    assert token_weights(LENGTHS, 4, config).tolist() == pytest.approx(weights)


@pytest.mark.parametrize("name", ["rloo", "reinforce", "dr_grpo"])
def test_a_sum_over_a_constant_is_what_is_descended(name: str) -> None:
    """−Σ A log π over responses times the longest: whatever lengths were drawn, as ∇J without bias wants it."""
    case = Case(name, penalty={"placement": "reward", "estimator": "k1"})
    targets = case.targets()
    expected = -case.surrogate(targets.advantages * case.mask) / (32 * PROBLEM.length)

    torch.testing.assert_close(case.slope(targets), expected, rtol=1e-4, atol=1e-7)


def test_a_mean_over_tokens_is_one() -> None:
    case = Case("dapo", penalty={"placement": "reward", "estimator": "k1"})
    targets = case.targets()
    expected = -case.surrogate(targets.advantages * case.mask) / case.mask.sum()

    torch.testing.assert_close(case.slope(targets), expected, rtol=1e-4, atol=1e-7)


def test_importance_weights_are_on_both_parts_of_the_loss() -> None:
    """Responses that another policy drew: policy loss and KL of a token count ρ alike."""
    settings = {"correction": "token", "correction_cap": 1.5, "control_variate": False}
    case = Case("rloo", settings)
    shift = torch.linspace(-1.0, 1.0, case.mask.numel()).view(case.mask.shape)
    plain = Case("rloo", {"control_variate": False})
    targets = case.targets()
    rollout = replace(
        case.experience.rollout, sampled_logprobs=case.experience.metered.logprobs - shift
    )
    case.experience = replace(case.experience, rollout=rollout)
    weights = importance_weights(shift, case.mask, level="token", cap=1.5, drop=False)

    # The policy's part, by the drawn tokens' log π; the rest is the KL's, of each token's whole row.
    without = targets._replace(kl_coefs=torch.zeros_like(targets.kl_coefs))
    scale = 32 * PROBLEM.length
    expected = -case.surrogate(weights * targets.advantages * case.mask) / scale
    torch.testing.assert_close(case.slope(without), expected, rtol=1e-4, atol=1e-7)
    only = targets._replace(advantages=torch.zeros_like(targets.advantages))
    by_token = sum(weights[i, t] * plain_kl(plain, i, t) for i, t in case.mask.nonzero().tolist())
    assert isinstance(by_token, Tensor)
    assert float(by_token.abs().max()) > 1e-4
    torch.testing.assert_close(case.slope(only), by_token, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "rloo", "dapo"])
@pytest.mark.parametrize("size", [1, 5, 31])
def test_in_pieces_it_is_the_same_loss(name: str, size: int) -> None:
    """Pitfalls 20 and 42: responses of two lengths, so that a mean of means would be another; β in it or not."""
    case = Case(name)
    case.config = case.config.model_copy(
        update={"algorithm": case.config.algorithm.model_copy(update={"value_clip_eps": 0.01})}
    )
    rows = torch.randperm(len(case.mask), generator=torch.Generator().manual_seed(3))[:29]
    given = (
        case.learner,
        ALGORITHMS[name],
        case.experience,
        case.targets(),
        rows,
        case.config,
    )
    found: list[tuple[list[Tensor], Loss]] = []
    for pieces in (loss_pieces(*given, size=size), [minibatch_loss(*given)]):
        loss = accumulated(pieces)
        loss.total.backward()
        weights = case.learner.trained
        found.append(([w.grad.clone() for w in weights if w.grad is not None], loss))
        case.learner.optimizer.zero_grad(set_to_none=True)
    (in_pieces, one), (whole, other) = found
    assert len(whole) > 0
    for mine, theirs in zip(in_pieces, whole, strict=True):
        assert float(theirs.abs().max()) > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert one.parts == pytest.approx(other.parts, rel=1e-5, abs=1e-7)
    assert one.moved == pytest.approx(other.moved, rel=1e-5, abs=1e-7)


def plain_kl(case: Case, row: int, position: int) -> Tensor:
    """∇ of β KL_t of one token in a loss without weights."""
    mask = torch.zeros_like(case.mask)
    mask[row, position] = True
    rollout = case.experience.rollout
    hidden = case.learner.policy.hidden(
        rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids
    )
    own = log_softmax(case.learner.policy.head(hidden), 1.0)
    theirs = log_softmax(case.learner.reference.head(case.experience.metered.ref_hidden), 1.0)
    kl = (own.exp() * (own - theirs)).sum(-1)
    slope = torch.autograd.grad((kl * mask).sum(), case.learner.trained)[0][:, :-1]
    return 0.2 * slope / (32 * PROBLEM.length)


def test_the_ratio_of_gspo_is_the_geometric_mean_over_the_response() -> None:
    """Changes of log π of 0.3 in a response of one token, of 0.1, 0.2 and 0.6 in one of three: mean 0.3 in both."""
    old = torch.tensor([-1.0, -1.0, -2.0, -3.0])
    now = old + torch.tensor([0.3, 0.1, 0.2, 0.6])
    anchors = sequence_anchors(now, old, LENGTHS)

    torch.testing.assert_close(now - anchors, torch.full((4,), 0.3))
