"""An arm on the golden problem, where all of it is known: trained from samples, and valued by enumeration."""

from pathlib import Path

import torch
from pydantic import BaseModel, Field

from kleash.lab.arms.settings import FROZEN
from kleash.lab.closed_form import Budget, solve
from kleash.lab.mdp import golden
from kleash.lab.study.work import Desk, Result

TOLD_EVERY = 10
"""Steps."""


class SolveSettings(BaseModel):
    """A run of RLOO on the golden problem at a held β."""

    model_config = FROZEN

    beta: float = Field(gt=0)
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=2000, gt=0)
    responses: int = Field(default=1024, gt=0, multiple_of=8)
    """Of each step."""
    learning_rate: float = Field(default=0.05, gt=0)
    """It falls to 0."""


def solve_golden(settings: SolveSettings, directory: Path, desk: Desk) -> Result:
    """Trains a table, and says where it ends.

    Returns:
        `reward`, `kl` and `variance` (of the reward, of a response), under the trained policy, by enumeration.
    """
    torch.set_num_threads(1)
    mdp, last = golden(), settings.steps

    def told(step: int) -> None:
        if step % TOLD_EVERY == 0 or step == last:
            desk.tell(step, last)

    budget = Budget(settings.responses, last, settings.learning_rate)
    found = solve(mdp, "rloo", settings.beta, settings.seed, budget=budget, observer=told)
    law = mdp.logprobs(torch.tensor(found.policy).double()).sum(-1).exp()
    reward = found.standing.reward
    variance = float(law @ (mdp.rewards - reward).square())
    return {"reward": reward, "kl": found.standing.kl, "variance": variance}
