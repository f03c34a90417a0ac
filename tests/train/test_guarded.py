"""The guard in the loop: what is over a limit is never kept, what is undone leaves no trace, the record says why."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.errors import LimitError
from kleash.ledger import Entry, UpdateEntry, read
from kleash.models.hub import load_language_model
from kleash.models.identity import weights_digest
from kleash.records import StepRecord
from kleash.replay import verify_run
from kleash.train.canary import Canary
from kleash.train.checkpoint import load_weights
from kleash.train.config import RunConfig
from kleash.train.learner import Learner
from kleash.train.loop import run_loop
from kleash.train.progress import Progress
from kleash.train.run import prepare, train
from tests.train.small import count_a, save_prompts, save_small_model

RATE = 0.05
"""A learning rate at which a step moves a token by some tenths of a nat."""


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The reward."""
    return count_a(list(prompts), list(responses))


def against(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A held-out reward that likes what the reward does not."""
    return [-score for score in reward(prompts, responses)]


@pytest.fixture(autouse=True)
def _reward_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "guarded_rewards", sys.modules[__name__])


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of a run that moves fast."""
    return {
        "model": {"policy": str(save_small_model(tmp_path / "model"))},
        "data": {"prompts": str(save_prompts(tmp_path / "prompts.txt"))},
        "rollout": {"num_prompts": 4, "group_size": 2, "max_new_tokens": 4},
        "reward": {"model": "guarded_rewards:reward"},
        "rl": {"controller": "fixed", "kl_coef": 0.05},
        "optimizer": {"learning_rate": RATE},
        "train": {
            "steps": 6,
            "threads": 1,
            "device": "cpu",
            "num_samples": 2,
            "sample_every": 9,
            "checkpoint_every": 2,
            "trackers": [],
        },
    }


def start(settings: dict[str, Any], directory: Path) -> Iterator[StepRecord]:
    return train(RunConfig.model_validate(settings), directory, skip_self_test=True)


def run(settings: dict[str, Any], directory: Path) -> list[StepRecord]:
    return list(start(settings, directory))


def _until_halt(records: Iterator[StepRecord]) -> Iterator[StepRecord]:
    """The records of a run that the guard may end."""
    with suppress(LimitError):
        yield from records


def updates(directory: Path) -> list[UpdateEntry]:
    found: list[Entry] = [e for e in read(directory / "ledger") if e.type == "update"]
    return [UpdateEntry.from_json(entry.body) for entry in found]


def digest(learner: Learner, progress: Progress) -> str:
    """Of all that an update can change."""
    whole = hashlib.sha256()
    state = learner.optimizer.state_dict()["state"]
    moments = [x for each in state.values() for x in each.values()]
    for tensor in (*learner.trained, *moments, progress.generator.get_state()):
        whole.update(tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


LIMITS: dict[str, tuple[float, str]] = {
    "max_kl_new_old": (0.01, "kl_new_old_per_token"),
    "max_kl_new_old_p99": (0.05, "kl_new_old_per_token_p99"),
    "max_kl_new_old_token": (0.05, "kl_new_old_per_token_max"),
    "max_log_ratio": (0.2, "log_ratio_new_old_max"),
    "max_kl_canary": (0.3, "canary_kl_policy_ref_per_response"),
}


@pytest.mark.parametrize(
    ("name", "on_breach"),
    [
        ("max_kl_new_old", "shrink"),
        ("max_kl_new_old", "reject"),
        *(pytest.param(name, "shrink", marks=pytest.mark.slow) for name in list(LIMITS)[1:]),
    ],
)
def test_nothing_that_is_kept_is_over_its_limit(
    settings: dict[str, Any], tmp_path: Path, name: str, on_breach: str
) -> None:
    """And without the limit it would have been."""
    limit, metric = LIMITS[name]
    free = run(
        {**settings, "guard": {"canary_prompts": 4, "max_kl_canary": 1e6}}, tmp_path / "free"
    )
    assert max(record.metrics[metric] or 0.0 for record in free) > 1.5 * limit
    guard = {name: limit, "on_breach": on_breach, "canary_prompts": 4, "max_rollbacks": 0}
    settings["guard"] = guard | ({"rollback_after": 99})
    records = list(_until_halt(start(settings, tmp_path / "run")))
    found = verify_run(tmp_path / "run")
    assert found.ok, found.problems
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines if json.loads(line)["accepted"]]
    assert all(line[metric] <= limit for line in kept)
    if on_breach == "shrink":
        shrunk = [record for record in records if record.verdict.action == "shrink"]
        assert shrunk
        # As much as there may be: a line search ends within a tenth of the longest step.
        if name == "max_kl_new_old":
            assert all((r.metrics[metric] or 0.0) > 0.75 * limit for r in shrunk)
        assert all(0.0 < (r.metrics["step_fraction"] or 0.0) < 1.0 for r in shrunk)
        # And which limit it was.
        assert all(any(f"over the limit {name}" in x for x in r.verdict.reasons) for r in shrunk)
    else:
        assert "reject" in [u.verdict.action for u in updates(tmp_path / "run")]


def test_an_update_that_is_refused_leaves_no_trace(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Weights, moments and random streams are bit for bit what they were."""
    settings["guard"] = {"max_kl_new_old": 1e-9, "on_breach": "reject", "rollback_after": 99}
    setup = prepare(RunConfig.model_validate(settings))
    progress = Progress(setup)

    class Taken:
        """A ledger that looks at what there is when an entry is made, and after."""

        before = ""

        def append(self, kind: str, body: dict[str, Any]) -> None:
            if kind == "update":
                assert body["verdict"]["action"] == "reject"

    seen: list[str] = []
    original = progress.hold

    def hold() -> Any:
        seen.append(digest(setup.learner, progress))
        return original()

    progress.hold = hold  # as an update is about to be made
    after = [
        digest(setup.learner, progress)
        for _ in _until_halt(run_loop(setup, Taken(), progress))  # pyright: ignore[reportArgumentType]
    ]
    assert after == seen
    assert len(seen) == 6


def test_drift_is_refused_before_it_is_applied(settings: dict[str, Any], tmp_path: Path) -> None:
    """No policy is ever over `max_kl` at its rollout's states, and the run goes on beside the limit."""
    settings["optimizer"]["learning_rate"] = 0.01
    free = run({**settings}, tmp_path / "free")
    limit = 0.5 * max(record.kl.value for record in free)
    settings["guard"] = {"max_kl": limit, "rollback_after": 99}
    list(_until_halt(start(settings, tmp_path / "run")))
    kept = [u for u in updates(tmp_path / "run") if u.verdict.keeps]
    assert len(kept) > 1
    assert all(u.facts.kl_proposed and u.facts.kl_proposed.value <= limit for u in kept)
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_after_repeated_refusals_it_goes_back_with_more_beta(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last checkpoint whose policy was found within its limits."""
    settings["train"]["steps"] = 10
    settings["optimizer"]["learning_rate"] = 0.02
    canary = {"canary_prompts": 4, "max_kl_canary": 1e6}
    free = run({**settings, "guard": canary}, tmp_path / "free")
    drift = [record.metrics["canary_kl_policy_ref_per_response"] or 0.0 for record in free]
    settings["guard"] = {
        "max_kl_canary": drift[3],
        "canary_prompts": 4,
        "on_breach": "reject",
        "rollback_after": 2,
        "max_rollbacks": 1,
    }
    restored: list[str] = []

    def load(directory: Path, learner: Learner) -> None:
        load_weights(directory, learner)
        saved = load_language_model(str(directory / "policy")).model
        assert weights_digest(learner.policy.model) == weights_digest(saved)
        restored.append(directory.name)

    monkeypatch.setattr("kleash.train.directory.load_weights", load)
    with pytest.raises(LimitError, match="halted"):
        run(settings, tmp_path / "run")
    found = updates(tmp_path / "run")
    actions = [u.verdict.action for u in found]
    back = actions.index("rollback")
    assert actions[back - 1] == "reject"
    assert actions[-1] == "halt"
    assert "back to the checkpoint after step" in found[back].verdict.reasons[-1]
    assert found[back + 1].kl_coef == pytest.approx(2 * found[back].kl_coef)
    good = (found[back].guard or {})["good"]
    assert restored == [f"step-{good:06d}"]
    result = verify_run(tmp_path / "run")
    assert result.ok, result.problems


def test_a_budget_is_spent_and_never_overdrawn(settings: dict[str, Any], tmp_path: Path) -> None:
    """By law the policy is no further from where it began than what was spent; and the run ends when that is all."""
    settings["guard"] = {
        "max_path_log_ratio": 1.0,
        "canary_prompts": 4,
        "burst": 3.0,
        "rollback_after": 99,
    }
    list(_until_halt(start(settings, tmp_path / "run")))
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    spent = [line["budget_log_ratio_spent"] for line in lines]
    assert spent == sorted(spent)
    assert 0.3 < spent[-1] <= 1.0
    assert all(
        line["canary_sup_log_ratio"] <= line["budget_log_ratio_spent"] + 1e-3
        for line in lines
        if line["accepted"]
    )
    assert verify_run(tmp_path / "run").ok


@pytest.mark.parametrize("action", ["warn", "raise", "halt"])
def test_a_reward_that_a_held_out_one_contradicts_rings(
    settings: dict[str, Any], tmp_path: Path, action: str
) -> None:
    settings["reward"]["monitor"] = ["guarded_rewards:against"]
    settings["guard"] = {
        "alarms": {"concordance": {"mean": 0.0, "mean_time": 5.0, "action": action}}
    }
    if action == "halt":
        with pytest.raises(LimitError, match="alarm"):
            run(settings, tmp_path / "run")
    else:
        run(settings, tmp_path / "run")
    found = updates(tmp_path / "run")
    rung = next(i for i, u in enumerate(found) if u.verdict.alarms)
    assert "concordance has a mean under 0" in found[rung].verdict.alarms[0]
    if action == "raise":
        assert found[rung + 1].kl_coef == pytest.approx(2 * found[rung].kl_coef)
    if action == "warn":
        assert found[-1].kl_coef == found[0].kl_coef
    assert (found[-1].verdict.action == "halt") == (action == "halt")
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_epochs_stop_early(settings: dict[str, Any], tmp_path: Path) -> None:
    """Fewer gradient steps, and less moved."""
    settings["algorithm"] = {"name": "ppo", "num_epochs": 6}
    settings["optimizer"]["learning_rate"] = 0.01
    far = run(settings, tmp_path / "far")
    settings["guard"] = {"stop_kl": 0.02}
    near = run(settings, tmp_path / "near")
    moved = [[r.metrics["kl_new_old_per_token"] or 0.0 for r in records] for records in (far, near)]
    assert moved[1][0] < 0.5 * moved[0][0]


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_is_not_finite_is_refused(
    settings: dict[str, Any], tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that broke in the weights or in the optimiser's memory, whatever the limits."""
    real, calls = torch.optim.AdamW.step, {"n": 0}

    def step(self: torch.optim.AdamW, *args: Any) -> Any:
        out = real(self, *args)
        calls["n"] += 1
        if calls["n"] == 5:
            parameter = self.param_groups[0]["params"][0]
            broken = parameter if where == "weight" else self.state[parameter]["exp_avg_sq"]
            with torch.no_grad():
                broken.view(-1)[0] = torch.inf
        return out

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(settings, tmp_path / "run")
    assert [u.facts.finite for u in updates(tmp_path / "run")].count(False) == 1
    assert [u.verdict.action for u in updates(tmp_path / "run")].count("reject") == 1
    found = verify_run(tmp_path / "run")
    assert found.ok, found.problems


@pytest.mark.slow
def test_what_was_measured_of_an_update_is_what_the_next_is_measured_from(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slow twin goes through the model again; some updates here are whole, some shortened."""
    settings["guard"] = {
        "canary_prompts": 4,
        "max_kl_canary": 1e6,
        "max_kl_new_old": 0.1,
        "max_path_log_ratio": 1e6,
    }
    settings["optimizer"] = {"learning_rate": RATE, "schedule": "linear"}
    fast = run(settings, tmp_path / "fast")
    assert {"accept", "shrink"} <= {record.verdict.action for record in fast}
    real = Canary.settle
    monkeypatch.setattr(Canary, "settle", lambda self, policy, facts=None: real(self, policy))
    slow = run(settings, tmp_path / "slow")
    assert [record.metrics for record in fast] == [record.metrics for record in slow]
