"""PPO without a clip: its updates are held to δ by their penalty."""

import itertools
from pathlib import Path
from statistics import median

import pytest

from kleash.lab.closed_form import Budget, configure, set_up
from kleash.lab.mdp import golden
from kleash.ledger import Ledger, SigningKey
from kleash.train.loop import run_loop

DELTA = 0.004


def _drifts(directory: Path, step_penalty: float) -> tuple[list[float], list[float | None]]:
    """KL(new‖old) per token of the updates after the first twenty, and all weights."""
    settings = {
        "num_epochs": 4,
        "num_minibatches": 2,
        "step_kl": DELTA,
        "step_penalty": step_penalty,
    }
    more = {"optimizer": {"schedule": "constant"}}
    config = configure(golden(), "ppo_kl", 0.2, 0, Budget(256, 40, 0.1, settings), more)
    with Ledger.create(directory, [SigningKey.generate()]) as ledger:
        lines = [record.metrics for record in run_loop(set_up(golden(), config), ledger)]
    drifts = [float(line["kl_new_old_per_token"] or 0.0) for line in lines]
    return drifts[20:], [line["step_penalty"] for line in lines]


@pytest.mark.slow
def test_updates_are_as_long_as_they_may_be(tmp_path: Path) -> None:
    """From a weight wrong by far; and with next to none they would be several times as long."""
    held, weights = _drifts(tmp_path / "held", 1e-3)
    free, faint = _drifts(tmp_path / "free", 1e-30)

    assert 0.5 * DELTA < median(held) < 2 * DELTA
    assert median(free) > 4 * DELTA
    assert all(weight is not None and weight < 1e-15 for weight in faint)
    pairs = list(itertools.pairwise(weights))
    assert {after / before for before, after in pairs if before and after} <= {0.5, 1.0, 2.0}
