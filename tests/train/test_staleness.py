"""Rollouts that were sampled ahead of their update: whose they are, and that they still lead to the optimum."""

import pytest
import torch

from kleash.config import build
from kleash.errors import ConfigError
from kleash.lab.closed_form import Budget, configure, set_up, solve
from kleash.lab.mdp import MDP
from kleash.lab.tabular import Table
from kleash.train.config import RunConfig
from kleash.train.progress import Progress

DRAW = torch.Generator().manual_seed(1)
SMALL = MDP(
    3,
    2,
    torch.randn(4, 3, generator=DRAW, dtype=torch.double),
    torch.randn(9, generator=DRAW, dtype=torch.double),
)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_rollout_is_of_the_policy_as_it_was_so_many_updates_before(staleness: int) -> None:
    """The policy is made another before each rollout is asked for; a rollout carries the policy that drew it."""
    config = configure(SMALL, "rloo", 0.3, 0, Budget(16, 5, 0.1, {"correction": "token"}), {})
    rollout = config.rollout.model_copy(update={"staleness": staleness})
    setup = set_up(SMALL, config.model_copy(update={"rollout": rollout}))
    table = setup.learner.policy.model
    assert isinstance(table, Table)
    progress = Progress(setup)
    for update in range(6):
        with torch.no_grad():
            table.rows[0, :3] = torch.tensor([float(update), 0.0, 0.0])
        found = progress.next_rollout()
        then = torch.log_softmax(torch.tensor([max(update - staleness, 0.0), 0.0, 0.0]), -1)
        torch.testing.assert_close(found.sampled_logprobs[:, 0], then[found.response_ids[:, 0]])


def test_stale_rollouts_without_a_correction_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, {"rollout": {"staleness": 2}}, "run.toml")
    assert "algorithm.correction" in caught.value.expected


@pytest.mark.slow
def test_corrected_they_lead_to_the_optimum() -> None:
    budget = Budget(256, 120, 0.1, {"correction": "sequence", "correction_cap": 10.0})
    stale = solve(
        SMALL, "rloo", 0.3, 0, budget=budget, sections={"rollout": {"staleness": 4}}
    ).standing

    assert stale.gain_lost is not None
    assert stale.gain_lost < 0.02
