"""TRPO's step against dense matrices and the exact KL (A3)."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.errors import ConfigError
from kleash.lab.closed_form import Budget, configure, set_up
from kleash.lab.mdp import MDP, golden
from kleash.train.algorithms import ALGORITHMS, Targets
from kleash.train.config import RunConfig
from kleash.train.evaluate import collect
from kleash.train.experience import Experience, measure_step
from kleash.train.learner import Learner
from kleash.train.loss import minibatch_loss
from kleash.train.natural import Fisher, natural_step
from kleash.train.run import prepare

TRPO = ALGORITHMS["trpo"]
SMALL = MDP(
    3,
    3,
    torch.randn(13, 3, generator=torch.Generator().manual_seed(5), dtype=torch.double),
    torch.randn(27, generator=torch.Generator().manual_seed(6), dtype=torch.double),
)


class Case:
    """A table with one rollout of its own."""

    def __init__(self, mdp: MDP, **settings: float) -> None:
        budget = Budget(256, 10, 1.0, settings)
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

    def step(self) -> None:
        given = (self.learner, TRPO, self.experience, self.targets, self.config)
        natural_step(*given)

    def kl(self) -> float:
        return measure_step(
            self.learner, self.experience, temperature=1.0, micro_batch_size=64
        ).value

    def dense(self) -> Tensor:
        """F of the logits alone: Σ over visited prefixes of share · (diag q − q qᵀ)."""
        rollout, vocab = self.experience.rollout, SMALL.vocab
        prefixes = torch.zeros_like(rollout.response_ids)
        for t in range(1, prefixes.shape[1]):
            prefixes[:, t] = vocab * prefixes[:, t - 1] + 1 + rollout.response_ids[:, t - 1]
        shares = prefixes.flatten().bincount(minlength=SMALL.num_prefixes) / prefixes.numel()
        q = SMALL.ref_logits.softmax(-1)
        blocks = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
        return torch.block_diag(
            *(share * block for share, block in zip(shares, blocks, strict=True))
        )


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


def replace_experience(case: Case) -> Case:
    """The next rollout, of the policy as it is now."""
    draw = torch.Generator().manual_seed(2)
    reward = set_up(golden(), case.config).reward
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
