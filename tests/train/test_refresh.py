"""A reference that follows the policy, and the first one that is measured from all the same (A23)."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.errors import ConfigError, LimitError
from kleash.lab.closed_form import Budget, configure, set_up, solve, standing
from kleash.lab.mdp import MDP, optimum, tilt
from kleash.lab.tabular import Table, tabular
from kleash.ledger import Ledger, SigningKey, UpdateEntry, read
from kleash.records import StepRecord
from kleash.replay import replay
from kleash.train.learner import check_alike
from kleash.train.loop import run_loop

BETA = 0.5
DRAW = torch.Generator().manual_seed(3)
MDP_ = MDP(
    4,
    2,
    torch.randn(5, 4, generator=DRAW, dtype=torch.double),
    torch.randn(16, generator=DRAW, dtype=torch.double),
)


def _run(steps: int, directory: Path, **sections: Mapping[str, Any]) -> list[StepRecord]:
    config = configure(MDP_, "rloo", BETA, 0, Budget(256, steps, 0.05), sections)
    with Ledger.create(directory, [SigningKey.generate()]) as ledger:
        ledger.append("run.started", {"config": config.model_dump(mode="json")})
        return list(run_loop(set_up(MDP_, config), ledger))


def _distance(policy: list[list[float]], other: torch.Tensor) -> float:
    """KL(policy‖other) over whole sequences."""
    return standing(MDP(4, 2, other, MDP_.rewards), torch.tensor(policy), BETA).kl


@pytest.mark.long
def test_after_a_reset_the_optimum_is_tilted_once_more() -> None:
    """π* ∝ π_ref exp(R/β) as the new reference: its optimum is the tilt at 2/β of the first."""
    sections, budget = {"model": {"refresh_every": 200}}, Budget(512, 400, 0.06)
    found = solve(MDP_, "rloo", BETA, 0, budget=budget, sections=sections)
    stayed = solve(MDP_, "rloo", BETA, 0, budget=budget)

    assert _distance(found.policy, tilt(MDP_, 2 / BETA)) < 0.02
    assert _distance(found.policy, optimum(MDP_, BETA)) > 0.2
    assert _distance(stayed.policy, optimum(MDP_, BETA)) < 0.01


def test_both_drifts_are_measured(tmp_path: Path) -> None:
    records = _run(7, tmp_path / "run", model={"refresh_every": 3})
    near = [record.metrics["kl_policy_ref_per_response"] for record in records]
    far = [record.metrics["kl_policy_origin_per_response"] for record in records]

    assert [near[0], near[3], near[6]] == pytest.approx([0, 0, 0], abs=1e-6)
    assert near[1:3] == far[1:3]
    assert all(isinstance(x, float) and x > 1e-4 for x in (*near[1:3], *near[4:6], *far[3:]))
    assert records[3].kl.reference == "table, brought nearer by 1 after step 3"
    updates = [entry.body for entry in read(tmp_path / "run") if entry.type == "update"]
    origin = [UpdateEntry.from_json(body).kl_origin for body in updates]
    assert [reading.value for reading in origin if reading] == far
    assert {reading.reference for reading in origin if reading} == {"table"}


@pytest.mark.parametrize(
    ("step", "forge", "problem"),
    [
        (4, {"signals": {"refreshed": 0.0}}, "signals.refreshed is 0.0"),
        (5, {"signals": {"refreshed": 1.0}}, "signals.refreshed is 1.0"),
        (5, {"kl_origin": None}, "kl_origin is not"),
        (6, {"kl_origin": {"n": 3}}, "not readings of one rollout"),
    ],
)
def test_a_record_that_hides_a_refresh_is_found(
    tmp_path: Path, step: int, forge: dict[str, Any], problem: str
) -> None:
    _run(7, tmp_path / "run", model={"refresh_every": 3})
    entries, at = list(read(tmp_path / "run")), 2 * step  # each update has its intent before it
    assert replay(entries) == []
    body = json.loads(json.dumps(entries[at].body))
    for key, change in forge.items():
        body[key] = change and {**body[key], **change}
    entries[at] = replace(entries[at], body={k: v for k, v in body.items() if v is not None})

    found = replay(entries)
    assert found
    assert all(each.where == f"segments/000000.jsonl line {at + 1}" for each in found[:1])
    assert problem in " ".join(each.what for each in found)


def test_a_share_of_the_way_is_a_mean_of_weights() -> None:
    config = configure(MDP_, "rloo", BETA, 0, Budget(64, 1, 0.1), {"model": {"refresh_every": 1}})
    learner = set_up(MDP_, config).learner
    tables = [side.model for side in (learner.policy, learner.reference, learner.origin)]
    own, held, first = (table.rows for table in tables if isinstance(table, Table))
    before = held.clone()
    with torch.no_grad():
        own += 1.0
    learner.refresh(0.25, 1)

    torch.testing.assert_close(held, before + 0.25)
    assert torch.equal(first, before)
    learner.refresh(1.0, 2)
    assert torch.equal(held, own)


def test_the_limit_is_of_the_first_reference_too(tmp_path: Path) -> None:
    """A reference that follows at every step would otherwise lift it."""
    sections = {"model": {"refresh_every": 1}, "guard": {"max_kl": 0.2}}
    with pytest.raises(LimitError, match="kl_policy_origin_per_response"):
        _run(60, tmp_path / "run", **sections)


def test_a_reference_of_another_shape_is_refused() -> None:
    other = MDP(4, 1, MDP_.ref_logits[:1], MDP_.rewards[:4])
    with pytest.raises(ConfigError, match="brought nearer"):
        check_alike(tabular(MDP_), tabular(other))
