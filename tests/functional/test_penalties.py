"""Every penalty that is offered, and every one that is refused, against enumeration.

What is differentiated here is what training differentiates: the returns of `shaped_rewards` over `charges`, times
log π, and `loss_terms`. The problem has three tokens and at most three of them a response; token 2 ends it.
"""

import itertools
import math
import re
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.functional.penalties import (
    DEFAULT_ESTIMATORS,
    GRADIENTS,
    REFUSALS,
    EstimatorName,
    Penalty,
    Placement,
    Weight,
    charges,
    check_penalty,
    loss_terms,
)
from kleash.functional.rewards import shaped_rewards
from kleash.lab.mdp import MDP, golden, optimum

EOS = 2
COMBINATIONS = [
    Penalty(*names)
    for names in itertools.product(get_args(Placement), get_args(EstimatorName), get_args(Weight))
]
REVERSE = [penalty for penalty, gradient in GRADIENTS.items() if gradient.divergence == "reverse"]
IN_LOSS = [penalty for penalty in GRADIENTS if penalty.placement in {"loss", "forward"}]


def named(penalty: Penalty) -> str:
    return "-".join(penalty[:3])


class Problem(NamedTuple):
    """All responses of a policy, a reference, and an older policy."""

    mdp: MDP
    logits: Tensor
    old_logits: Tensor
    mask: Tensor

    @property
    def ref_logits(self) -> Tensor:
        return self.mdp.ref_logits

    def true_gradient(self, divergence: str, scope: str) -> Tensor:
        """Of the textbook sums: over whole responses, or over the vocabulary in the states that π visits."""
        logits = self.logits.clone().requires_grad_()
        rows, ref_rows = (torch.log_softmax(x, -1) for x in (logits, self.ref_logits))
        own, ref = (
            torch.where(self.mask, self.mdp.logprobs(x), 0.0).sum(-1)
            for x in (logits, self.ref_logits)
        )
        law = self.law(logits)
        if scope == "sequence":
            # What follows the end is summed over: its probabilities add up to 1.
            weights = law if divergence == "reverse" else self.law(self.ref_logits)
            total = (weights * (own - ref if divergence == "reverse" else ref - own)).sum()
        else:
            q, p = (rows, ref_rows) if divergence == "reverse" else (ref_rows, rows)
            per_state = (q.exp() * (q - p)).sum(-1)[self.mdp.states()]
            total = (law.detach() * torch.where(self.mask, per_state, 0.0).sum(-1)).sum()
        return torch.autograd.grad(total, logits)[0]

    def kl(self, logits: Tensor) -> float:
        u = self.mdp.logprobs(logits) - self.mdp.logprobs(self.ref_logits)
        return float((self.law(logits) * torch.where(self.mask, u, 0.0).sum(-1)).sum())

    def law(self, logits: Tensor) -> Tensor:
        return self.mdp.logprobs(logits).sum(-1).exp()

    def gradient(self, penalty: Penalty) -> Tensor:
        """What training descends, in expectation over its own samples, at β = 1 and without a reward."""
        logits = self.logits.clone().requires_grad_()
        per_token = self._loss(penalty, logits, self.logits)
        return torch.autograd.grad((self.law(self.logits)[:, None] * per_token).sum(), logits)[0]

    def stale_gradient(self, penalty: Penalty) -> Tensor:
        """The same of the term in the loss where π wrote the prefix and an older policy drew the token."""
        logits = self.logits.clone().requires_grad_()
        now, old = self.mdp.logprobs(self.logits), self.mdp.logprobs(self.old_logits)
        # The token's own factor of the law is the old policy's, all others are π's.
        weights = (now.sum(-1, keepdim=True) - now + old).exp()
        per_token = self._loss(penalty, logits, self.old_logits)
        return torch.autograd.grad((weights * per_token).sum(), logits)[0]

    def _loss(self, penalty: Penalty, logits: Tensor, old_logits: Tensor) -> Tensor:
        """[N, T], NaN in the padding of everything that goes in."""
        keep, padding = self.mask, torch.where(self.mask, 0.0, torch.nan)
        logprobs, ref, old = (self.mdp.logprobs(x) for x in (logits, self.ref_logits, old_logits))
        rows, ref_rows = (torch.log_softmax(x, -1) for x in (logits, self.ref_logits))
        kl = reverse_kl(rows, ref_rows)[self.mdp.states()]
        charged = charges(
            penalty, kl.detach() + padding, (logprobs - ref).detach() + padding, self.mask
        )
        scores = torch.zeros(len(keep), dtype=torch.double)
        returns = shaped_rewards(scores, charged, keep, 1.0).flip(-1).cumsum(-1).flip(-1)
        loss = -returns * logprobs
        if penalty.is_in_loss:
            flat = (kl[keep], logprobs[keep], ref[keep], old[keep])
            loss = loss.index_put((keep,), loss[keep] + loss_terms(penalty, *flat))
        return torch.where(keep, loss, 0.0)


def small() -> Problem:
    """A policy one unit of logits away from its reference, and an older one."""
    draw = torch.Generator().manual_seed(11)
    ref, far, old = (torch.randn(13, 3, generator=draw, dtype=torch.double) for _ in range(3))
    mdp = MDP(3, 3, ref, torch.empty(0))
    tokens = mdp.tokens()
    mask = (tokens == EOS).cumsum(-1) - (tokens == EOS).long() == 0
    return Problem(mdp, ref + far, ref + far + 0.7 * old, mask)


PROBLEM = small()


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("penalty", GRADIENTS, ids=named)
def test_what_is_offered_has_the_gradient_it_says(penalty: Penalty) -> None:
    """T4, pitfall 43: each is its divergence's, and one that says `sequence` credits a token with all it leads to."""
    truth = PROBLEM.true_gradient(*GRADIENTS[penalty])
    torch.testing.assert_close(PROBLEM.gradient(penalty), truth, rtol=0, atol=1e-10)
    other = "sequence" if GRADIENTS[penalty].scope == "token" else "token"
    unlike = PROBLEM.true_gradient(GRADIENTS[penalty].divergence, other)
    assert error(PROBLEM.gradient(penalty), unlike) > 0.05


@pytest.mark.parametrize("penalty", IN_LOSS, ids=named)
def test_a_ratio_carries_it_over_to_stale_tokens(penalty: Penalty) -> None:
    """Pitfall 24: without ρ, or with its slope alone, the gradient on an older policy's tokens is another."""
    truth = PROBLEM.true_gradient(*GRADIENTS[penalty])
    found = PROBLEM.stale_gradient(penalty)
    if penalty.weight in {"ratio", "detached"} or penalty.estimator == "exact":
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
    else:
        assert error(found, truth) > 0.05


@pytest.mark.parametrize("penalty", REFUSALS, ids=named)
def test_what_is_refused_is_wrong_and_what_is_named_instead_is_right(penalty: Penalty) -> None:
    found = PROBLEM.gradient(penalty)
    for scope in ("sequence", "token"):
        assert error(found, PROBLEM.true_gradient("reverse", scope)) > 0.05
    assert REFUSALS[penalty].instead in GRADIENTS


@pytest.mark.parametrize("weight", ["none", "detached"])
def test_k1_in_the_loss_is_no_penalty(weight: Weight) -> None:
    """Pitfall 21: 0, on stale tokens too, once they are weighed."""
    penalty = Penalty("loss", "k1", weight)
    assert float(PROBLEM.gradient(penalty).abs().max()) < 1e-15
    if weight == "detached":
        assert float(PROBLEM.stale_gradient(penalty).abs().max()) < 1e-15


@pytest.mark.parametrize("weight", ["none", "detached"])
def test_k3_in_the_loss_is_the_forward_kl(weight: Weight) -> None:
    """Pitfall 22: and so is offered by that name, where it is the same number."""
    refused, offered = Penalty("loss", "k3", weight), Penalty("forward", "k3", weight)
    truth = PROBLEM.true_gradient("forward", "token")
    for penalty in (refused, offered):
        torch.testing.assert_close(PROBLEM.gradient(penalty), truth, rtol=0, atol=1e-10)
    assert error(truth, PROBLEM.true_gradient("reverse", "token")) > 0.3


@pytest.mark.parametrize("weight", ["ratio", "score"])
def test_k2_with_a_sloped_weight_descends_half_the_second_moment(weight: Weight) -> None:
    """Pitfall 23: ∇ E[½u²] in the states that π visits, which is no KL's gradient."""
    logits = PROBLEM.logits.clone().requires_grad_()
    rows, ref_rows = (torch.log_softmax(x, -1) for x in (logits, PROBLEM.ref_logits))
    moment = (rows.exp() * (rows - ref_rows).square() / 2).sum(-1)[PROBLEM.mdp.states()]
    total = (PROBLEM.law(PROBLEM.logits) * torch.where(PROBLEM.mask, moment, 0.0).sum(-1)).sum()
    (truth,) = torch.autograd.grad(total, logits)
    found = PROBLEM.gradient(Penalty("loss", "k2", weight))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


def test_k3_in_the_reward_descends_reverse_less_forward() -> None:
    """Per token: the reverse KL of whole responses, less the forward KL of each token's state.

    Σ_t k3_t has the mean KL(π‖π_ref). What the reward lacks of that mean's gradient is E Σ_t ∇k3_t, which is forward.
    """
    reverse = PROBLEM.true_gradient("reverse", "sequence")
    forward = PROBLEM.true_gradient("forward", "token")
    found = PROBLEM.gradient(Penalty("reward", "k3"))
    torch.testing.assert_close(found, reverse - forward, rtol=0, atol=1e-10)


def test_k2_in_the_reward_descends_half_the_second_moment_less_the_local_part() -> None:
    """By the same rule: ∇ E Σ_t ½u_t² less E Σ_t u_t ∇log π, the reverse KL of each token's state."""
    logits = PROBLEM.logits.clone().requires_grad_()
    u = torch.where(
        PROBLEM.mask, PROBLEM.mdp.logprobs(logits) - PROBLEM.mdp.logprobs(PROBLEM.ref_logits), 0.0
    )
    total = (PROBLEM.law(logits) * (u.square() / 2).sum(-1)).sum()
    (moment,) = torch.autograd.grad(total, logits)
    expected = moment - PROBLEM.true_gradient("reverse", "token")
    found = PROBLEM.gradient(Penalty("reward", "k2"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_the_exact_kl_in_the_reward_alone_vanishes_at_the_last_step() -> None:
    """An exact KL depends on the state, not on the token drawn there: as a reward it cannot pull at its own state."""
    both, local = (PROBLEM.gradient(Penalty(where, "exact")) for where in ("exact", "loss"))
    alone = both - local
    assert error(alone, PROBLEM.true_gradient("reverse", "sequence")) > 0.05
    assert float(alone[4:].abs().max()) < 1e-15  # the states after two tokens
    assert float(alone[:4].abs().max()) > 1e-3


@pytest.mark.parametrize("penalty", REVERSE, ids=named)
def test_a_penalty_lowers_the_kl_and_the_reward(penalty: Penalty) -> None:
    """Pitfall 29: no sign is turned. A step down lowers KL(π‖π_ref), and what is charged sums to no less than 0."""
    policy, step = PROBLEM.logits, PROBLEM.gradient(penalty)
    assert PROBLEM.kl(policy - 0.05 * step) < PROBLEM.kl(policy)
    logprobs, ref = (PROBLEM.mdp.logprobs(x) for x in (policy, PROBLEM.ref_logits))
    rows, ref_rows = (torch.log_softmax(x, -1) for x in (policy, PROBLEM.ref_logits))
    kl = reverse_kl(rows, ref_rows)[PROBLEM.mdp.states()]
    charged = charges(penalty, kl, logprobs - ref, PROBLEM.mask)
    mean = float((PROBLEM.law(policy) * charged.sum(-1)).sum())
    assert mean >= 0
    if penalty.placement == "reward":  # all of the KL of the responses
        assert mean == pytest.approx(PROBLEM.kl(policy), abs=1e-12)


# P = (.8, .2) against (.5, .5), one token: d/dp of what each combination descends.
BINARY = dict.fromkeys(GRADIENTS, 1.386294) | {
    Penalty("forward", "k3"): 1.875,
    Penalty("forward", "k3", "detached"): 1.875,
    Penalty("loss", "k1"): 0.0,
    Penalty("loss", "k1", "detached"): 0.0,
    Penalty("loss", "k2", "ratio"): 1.076952,
    Penalty("loss", "k2", "score"): 1.076952,
    Penalty("loss", "k3"): 1.875,
    Penalty("loss", "k3", "detached"): 1.875,
    Penalty("reward", "k2"): -0.309343,
    Penalty("reward", "k3"): 1.386294 - 1.875,
}


@pytest.mark.parametrize("penalty", BINARY, ids=named)
def test_golden_slopes(penalty: Penalty) -> None:
    """T1: the two arms. In the logit of the first, d/dp is d/dz over p(1 − p)."""
    policy = torch.tensor([[math.log(4.0), 0.0]], dtype=torch.double)
    mdp = MDP(2, 1, torch.zeros(1, 2, dtype=torch.double), torch.empty(0))
    found = Problem(mdp, policy, policy, torch.ones(2, 1, dtype=torch.bool)).gradient(penalty)
    assert float(found[0, 0]) / 0.16 == pytest.approx(BINARY[penalty], abs=1e-6)


def test_every_combination_is_offered_or_refused_with_a_right_name() -> None:
    assert len(COMBINATIONS) == 64
    assert not GRADIENTS.keys() & REFUSALS.keys()
    assert GRADIENTS.keys() | REFUSALS.keys() == BINARY.keys() <= set(COMBINATIONS)
    for penalty in COMBINATIONS:
        if penalty in GRADIENTS:
            assert check_penalty(penalty) == GRADIENTS[penalty]
            continue
        with pytest.raises(ValueError, match='placement = "') as caught:
            check_penalty(penalty)
        said = str(caught.value)
        if penalty in REFUSALS:
            assert REFUSALS[penalty].why in said
        # Whatever it names can be copied, and is right.
        copied = [dict(re.findall(r'(\w+) = "(\w+)"', part)) for part in re.split(" or |;", said)]
        offered = [Penalty(**settings) for settings in copied if settings]
        assert offered
        assert set(offered) <= GRADIENTS.keys()


@pytest.mark.parametrize(
    ("penalty", "said"),
    [
        (Penalty("loss", "k1"), ['estimator = "exact"', "0 in expectation"]),
        (Penalty("loss", "k2", "ratio"), ['weight = "detached"', "E[½u²]"]),
        (Penalty("loss", "k3"), ['placement = "forward"', "forward KL(π_ref‖π)"]),
        (Penalty("reward", "k3"), ['estimator = "k1"', "no minimum"]),
        (Penalty("exact", "k1"), ['placement = "exact", estimator = "exact"']),
    ],
    ids=lambda x: named(x) if isinstance(x, Penalty) else "",
)
def test_a_refusal_says_why_and_what_to_write(penalty: Penalty, said: list[str]) -> None:
    with pytest.raises(ValueError, match="placement") as caught:
        check_penalty(penalty)
    assert all(words in str(caught.value) for words in said)


def test_every_placement_has_a_default_that_is_offered() -> None:
    assert DEFAULT_ESTIMATORS.keys() == set(get_args(Placement))
    for placement, estimator in DEFAULT_ESTIMATORS.items():
        check_penalty(Penalty(placement, estimator))


@pytest.mark.parametrize("penalty", [*GRADIENTS, *REFUSALS], ids=named)
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1.0])
def test_what_stands_in_the_padding_changes_no_bit(penalty: Penalty, junk: float) -> None:
    """T9, pitfalls 8 and 9."""
    generator = torch.Generator().manual_seed(1)
    kl, u = torch.rand(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
    clean = charges(penalty, torch.where(mask, kl, 0.0), torch.where(mask, u, 0.0), mask)
    dirty = charges(penalty, torch.where(mask, kl, junk), torch.where(mask, u, junk), mask)
    assert torch.equal(clean, dirty)
    assert bool((clean[~mask] == 0).all())
    wider_kl, wider_u = (torch.nn.functional.pad(x, (0, 3), value=junk) for x in (kl, u))
    padded = charges(penalty, wider_kl, wider_u, torch.nn.functional.pad(mask, (0, 3)))
    assert torch.equal(padded[:, :5], clean)
    assert bool((padded[:, 5:] == 0).all())


@pytest.mark.parametrize("beta", [1.0, 0.2])
def test_at_the_optimum_k1_in_the_reward_leaves_a_critic_nothing(beta: float) -> None:
    """T7: R − β Σ_t u_t is one number, and what is left of it after t tokens is decided by them, in every batch.

    The exact KL has less spread as a penalty everywhere; here alone, where the reward's spread cancels, k1 has none.
    """
    mdp = golden()
    states, mask = mdp.states(), torch.ones(4096, 4, dtype=torch.bool)
    logits = optimum(mdp, beta)
    u = mdp.logprobs(logits) - mdp.logprobs(mdp.ref_logits)
    kl = reverse_kl(torch.log_softmax(logits, -1), torch.log_softmax(mdp.ref_logits, -1))[states]

    def spread(estimator: EstimatorName) -> float:
        charged = charges(Penalty("reward", estimator), kl, u, mask)
        returns = shaped_rewards(mdp.rewards, charged, mask, beta).flip(-1).cumsum(-1).flip(-1)
        assert float(returns[:, 0].std()) > 1e-6 or estimator == "k1"
        low, high = (
            torch.zeros(585, dtype=torch.double).scatter_reduce(
                0, states.flatten(), returns.flatten(), how, include_self=False
            )
            for how in ("amin", "amax")
        )
        return float((high - low).max())

    assert spread("k1") < 1e-12
    assert spread("exact") > 0.1


@pytest.mark.parametrize("penalty", GRADIENTS, ids=named)
def test_chi_squared_stands_beside_what_is_of_the_sequence(penalty: Penalty) -> None:
    beside = penalty._replace(chi_squared=0.5)
    assert (
        beside.is_of_sequence == penalty.is_of_sequence == (GRADIENTS[penalty][1:] == ("sequence",))
    )
    if penalty.is_of_sequence:
        assert check_penalty(beside) == GRADIENTS[penalty]
    else:
        with pytest.raises(ValueError, match="of whole responses"):
            check_penalty(beside)


def test_what_is_refused_stays_so_with_chi_squared() -> None:
    with pytest.raises(ValueError, match="no penalty at all"):
        check_penalty(Penalty("loss", "k1", chi_squared=0.5))
