"""TRPO's step against dense matrices and the exact KL (A3)."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.errors import ConfigError
from kleash.functional.conjugate_gradient import conjugate_gradient
from kleash.lab.closed_form import Budget, configure, set_up
from kleash.lab.mdp import MDP, golden
from kleash.lab.tabular import Table
from kleash.train.algorithms import ALGORITHMS, Algorithm, Targets
from kleash.train.config import RunConfig
from kleash.train.evaluate import collect
from kleash.train.experience import Experience, measure_step
from kleash.train.learner import Learner
from kleash.train.loss import minibatch_loss
from kleash.train.natural import Fisher, natural_step
from kleash.train.run import prepare

EMPTY = torch.empty(0)
TRPO = ALGORITHMS["trpo"]
SMALL = MDP(
    3,
    3,
    torch.randn(13, 3, generator=torch.Generator().manual_seed(5), dtype=torch.double),
    torch.randn(27, generator=torch.Generator().manual_seed(6), dtype=torch.double),
)


def drawn(vocab: int, length: int) -> MDP:
    """A problem at random."""
    draw, shell = torch.Generator().manual_seed(vocab), MDP(vocab, length, EMPTY, EMPTY)
    logits = torch.randn(shell.num_prefixes, vocab, generator=draw, dtype=torch.double)
    return MDP(vocab, length, logits, torch.randn(vocab**length, generator=draw).double())


class Case:
    """A table with one rollout of its own."""

    def __init__(self, mdp: MDP, responses: int = 256, **settings: float) -> None:
        self.mdp = mdp
        budget = Budget(responses, 10, 1.0, settings)
        self.config: RunConfig = configure(mdp, "trpo", 0.2, 0, budget, {})
        setup = set_up(mdp, self.config)
        self.learner: Learner = setup.learner
        draw = torch.Generator().manual_seed(1)
        self.experience: Experience = collect(
            self.learner, setup.prompts, self.config.rollout, (setup.reward, []), draw
        )
        self.targets: Targets = TRPO.targets(
            self.experience, 0.2, self.config.algorithm, self.config.penalty.resolved
        )

    def loss(self) -> float:
        every = torch.arange(len(self.experience.scores))
        given = (self.learner, TRPO, self.experience, self.targets, every, self.config)
        return float(minibatch_loss(*given).total.detach())

    def given(self) -> tuple[Learner, Algorithm, Experience, Targets, Tensor, RunConfig]:
        every = torch.arange(len(self.experience.scores))
        return self.learner, TRPO, self.experience, self.targets, every, self.config

    def moved(self) -> Tensor:
        """What a step adds to the parameters, flat."""
        before = self.learner.trained[0].detach().clone()
        self.step()
        return (self.learner.trained[0].detach() - before).double().flatten()

    def step(self) -> None:
        given = (self.learner, TRPO, self.experience, self.targets, self.config)
        natural_step(*given, torch.Generator().manual_seed(3))

    def kl(self) -> float:
        """KL(old‖new), which the region is of."""
        return measure_step(
            self.learner,
            self.experience,
            temperature=1.0,
            micro_batch_size=64,
            direction="old_new",
        ).value

    def dense(self) -> Tensor:
        """F of the logits alone: Σ over visited prefixes of share · (diag q − q qᵀ)."""
        q = self.mdp.ref_logits.softmax(-1)
        blocks = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
        return torch.block_diag(
            *(share * block for share, block in zip(self.shares(), blocks, strict=True))
        )

    def shares(self) -> Tensor:
        """Of the tokens drawn, after which prefix: [S]."""
        rollout, vocab = self.experience.rollout, self.mdp.vocab
        prefixes = torch.zeros_like(rollout.response_ids)
        for t in range(1, prefixes.shape[1]):
            prefixes[:, t] = vocab * prefixes[:, t - 1] + 1 + rollout.response_ids[:, t - 1]
        counts = prefixes.flatten().bincount(minlength=self.mdp.num_prefixes)
        return counts.double() / prefixes.numel()


def test_products_are_those_of_the_fisher_matrix() -> None:
    case = Case(SMALL, cg_damping=0.0)
    vector = torch.randn(13, 4, generator=torch.Generator().manual_seed(2))
    vector[:, -1] = 0  # the value column
    found = Fisher(case.learner, case.experience, case.config).product(vector.flatten())
    truth = case.dense() @ vector[:, :-1].double().flatten()

    torch.testing.assert_close(
        found.view(13, 4)[:, :-1].flatten().double(), truth, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("radius", [0.001, 0.01])
def test_a_steps_kl_is_what_its_quadratic_form_says(radius: float) -> None:
    """Within 5 % at δ = 0.01, and never above δ."""
    case = Case(SMALL, step_kl=radius)
    before = case.loss()
    case.step()

    assert 0.7 * radius <= case.kl() <= radius
    assert case.loss() < before


def test_the_region_shrinks_as_the_learning_rate_is_scheduled() -> None:
    """Half the rate: a step half as long, and a quarter of the KL."""
    case = Case(SMALL, step_kl=0.01)
    case.learner.optimizer.param_groups[0]["lr"] /= 2
    case.step()

    assert 0.7 * 0.0025 <= case.kl() <= 0.0025


def test_the_kl_of_an_update_is_known_in_both_directions() -> None:
    """Of a table's rows by hand, at the prefixes that the old policy visited."""
    case = Case(SMALL, step_kl=0.2)
    case.step()
    found = {
        direction: measure_step(
            case.learner, case.experience, temperature=1.0, micro_batch_size=64, direction=direction
        )
        for direction in ("old_new", "new_old")
    }
    table = case.learner.policy.model
    assert isinstance(table, Table)
    old, new = (torch.log_softmax(x, -1) for x in (SMALL.ref_logits, table.logits))
    shares = case.shares()

    assert found["old_new"].value == pytest.approx(
        float(shares @ (old.exp() * (old - new)).sum(-1)), rel=1e-4
    )
    assert found["new_old"].value == pytest.approx(
        float(shares @ (new.exp() * (new - old)).sum(-1)), rel=1e-4
    )
    assert found["old_new"].direction == "old_new"
    assert abs(found["old_new"].value - found["new_old"].value) > 0.01


def test_where_the_region_does_not_bind_the_step_is_newtons() -> None:
    """J's curvature is −βF at the optimum: further than −F⁻¹g/β is past it, however far the region reaches."""
    damping = 0.01
    case = Case(SMALL, step_kl=1e3, cg_damping=damping, cg_iterations=60)
    every = torch.arange(len(case.experience.scores))
    given = (case.learner, TRPO, case.experience, case.targets, every, case.config)
    before = case.learner.trained[0].detach().clone()
    slope = torch.autograd.grad(minibatch_loss(*given).total, case.learner.trained)[0]
    logits = slope.view(13, 4)[:, :-1].flatten().double()
    curvature = case.dense() + damping * torch.eye(len(logits), dtype=torch.double)
    newton = -torch.linalg.solve(curvature, logits) / 0.2
    case.step()
    moved = (case.learner.trained[0].detach() - before).view(13, 4)[:, :-1].flatten().double()

    torch.testing.assert_close(moved, newton, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("vocab", "length"), [(4, 4), (10, 2), (6, 3)])
def test_a_step_is_the_dense_solve_along_its_gradient(vocab: int, length: int) -> None:
    """A3: to 1e-6; with products in float32, as models have them, to 1e-5. That is what is stepped along."""
    damping = 0.01
    case = Case(drawn(vocab, length), cg_damping=damping, cg_iterations=200, step_kl=1e-6)
    rows, wide = case.mdp.num_prefixes, vocab + 1
    slope = torch.autograd.grad(minibatch_loss(*case.given()).total, case.learner.trained)[0]
    gradient = slope.view(rows, wide)[:, :-1].flatten().double()
    curvature = case.dense() + damping * torch.eye(rows * vocab, dtype=torch.double)
    truth = torch.linalg.solve(curvature, gradient)
    exact = conjugate_gradient(lambda v: curvature @ v, gradient, iterations=200, tolerance=1e-15)
    assert float((exact - truth).norm() / truth.norm()) < 1e-6

    fisher = Fisher(case.learner, case.experience, case.config)
    found = conjugate_gradient(fisher.product, slope.flatten(), iterations=200, tolerance=1e-13)
    found = found.view(rows, wide)[:, :-1].flatten().double()
    assert float((found - truth).norm() / truth.norm()) < 1e-5

    moved = case.moved().view(rows, wide)[:, :-1].flatten()
    assert float(-moved @ truth / (moved.norm() * truth.norm())) > 1 - 1e-5


def kl_and_its_quadratic_form(mdp: MDP, radius: float) -> tuple[float, float]:
    """KL(old‖new) of a step d, and ½ dᵀFd, F that of where it began."""
    case = Case(mdp, 2048, step_kl=radius)
    start = case.learner.trained[0].detach().clone()
    moved, kl = case.moved(), case.kl()
    with torch.no_grad():
        case.learner.trained[0].copy_(start)
    product = Fisher(case.learner, case.experience, case.config).product(moved.float()).double()
    return kl, float(moved @ (product - case.config.algorithm.cg_damping * moved)) / 2


def test_at_a_hundredth_a_steps_kl_is_half_its_square_in_fishers_metric() -> None:
    """A3: within 5 % at δ = 0.01."""
    kl, half = kl_and_its_quadratic_form(golden(), 0.01)

    assert kl == pytest.approx(half, rel=0.05)
    assert half > 0.006


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0.01, 0.0025, 0.0004])
def test_on_any_problem_a_smaller_step_is_nearer_to_its_quadratic_form(
    mdp: MDP, radius: float
) -> None:
    """What is left of it is of third order: 7 % at δ = 0.01, 1.4 % at a 25th of it."""
    kl, half = kl_and_its_quadratic_form(mdp, radius)

    assert kl == pytest.approx(half, rel=0.7 * radius**0.5)
    assert half > 0.6 * radius


@pytest.mark.parametrize("radius", [0.1, pytest.param(0.01, marks=pytest.mark.slow)])
def test_no_step_is_accepted_that_does_not_better_the_surrogate(mdp: MDP, radius: float) -> None:
    """A3: at every step of a run, whichever problem; and steps are accepted."""
    case = Case(mdp, step_kl=radius)
    accepted = 0
    for seed in range(4):
        before = case.loss()
        if float(case.moved().abs().max()) > 0:
            accepted += 1
            assert case.loss() < before
            assert case.kl() <= radius
        case = replace_experience(case, seed)
    assert accepted >= 3


def test_a_step_that_worsens_the_surrogate_is_taken_back(
    mdp: MDP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: uphill no length of it is accepted, however small its KL."""
    case = Case(mdp)
    uphill = "kleash.train.natural.conjugate_gradient"
    monkeypatch.setattr(uphill, lambda product, right, **_: -right)

    assert not case.moved().any()


def test_a_policy_too_large_for_it_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    """By the header of its weights: there are no weights behind this one."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [20_000, 10_000], "data_offsets": [0, 0]}})
    weights = len(header).to_bytes(8, "little") + header.encode()
    (tmp_path / "model.safetensors").write_bytes(weights)
    settings = {"model": {"policy": str(tmp_path)}, "algorithm": {"name": "trpo"}}
    config = RunConfig.model_validate({**settings, "rollout": {"group_size": 4}})

    with pytest.raises(ConfigError, match=r"(?s)too large.*200,000,000.*ppo"):
        prepare(config)


def test_every_accepted_step_lowers_its_loss_within_the_region() -> None:
    case = Case(golden(), step_kl=0.02)
    for _ in range(5):
        before = case.loss()
        case.step()
        assert case.loss() < before
        assert case.kl() <= 0.02
        case = replace_experience(case)


def replace_experience(case: Case, seed: int = 2) -> Case:
    """The next rollout, of the policy as it is now."""
    draw = torch.Generator().manual_seed(seed)
    reward = set_up(case.mdp, case.config).reward
    case.experience = collect(
        case.learner,
        [""] * case.config.rollout.num_prompts,
        case.config.rollout,
        (reward, []),
        draw,
    )
    case.targets = TRPO.targets(
        case.experience, 0.2, case.config.algorithm, case.config.penalty.resolved
    )
    return case


def test_without_an_advantage_nothing_moves() -> None:
    case = Case(SMALL)
    before = case.learner.trained[0].detach().clone()
    nothing = torch.zeros_like(case.targets.advantages)
    case.targets = case.targets._replace(advantages=nothing, kl_coefs=0 * case.targets.kl_coefs)
    case.step()

    assert torch.equal(case.learner.trained[0], before)


def test_a_broken_gradient_moves_nothing() -> None:
    case = Case(SMALL)
    before = case.learner.trained[0].detach().clone()
    case.targets = replace_nan(case.targets)
    case.step()

    assert torch.equal(case.learner.trained[0], before)


def replace_nan(targets: Targets) -> Targets:
    """Advantages of which one is no number."""
    broken = targets.advantages.clone()
    broken[0, 0] = torch.nan
    return targets._replace(advantages=broken)
