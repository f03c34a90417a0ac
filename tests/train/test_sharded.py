"""Weights divided among processes: the figures of one, with a part of every weight on each."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kleash.errors import ConfigError
from kleash.ledger import read
from kleash.replay import verify_run
from kleash.train.config import RunConfig
from kleash.train.joint import as_launched, check_together
from kleash.train.world import World, launched
from tests.train.test_world import (
    GUARD,
    ILL_CONDITIONED,
    TWICE,
    assert_alike,
    assert_goes_on_to_the_same_end,
    launch,
    metrics,
    settings_of,
)

SHARD = {"shard": True}
ILL = ILL_CONDITIONED | {"kl_coef_effective"}
"""A fit to three groups of three: pieces of another size move it by 6e-6 on one process."""
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm": TWICE, "guard": GUARD},
    # Three prompts, so that shares are unequal, and minibatches of which a process may have no row.
    "grpo": {
        "rollout": {"num_prompts": 3},
        "algorithm": {"name": "grpo", "num_epochs": 2, "num_minibatches": 4},
        "guard": GUARD,
        "reward": {"monitor": ["tests.train.small:count_a"]},
        "train": {"micro_batch_size": 2},
    },
    "tied and recomputed, one minibatch": {
        "algorithm": {"name": "rloo", "num_epochs": 2, "num_minibatches": 1},
        "model": {"policy": "tiny-reviews/base", "gradient_checkpointing": True},
        "optimizer": {"learning_rate": 1e-4},
    },
    "an adapter, beside texts": {
        "algorithm": TWICE,
        "model": {"lora": {"rank": 2}},
        "ptx": {"num_texts": 4},
    },
    "stale, of a reference that is refreshed": {
        "rollout": {"staleness": 1},
        "algorithm": {"name": "gspo", "correction": "sequence", **TWICE},
        "model": {"refresh_every": 2, "refresh_share": 0.5},
    },
}


def with_train(sections: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {**sections, "train": {**sections.get("train", {}), **train}}


def alone_and_divided(root: Path, name: str, several: int) -> None:
    """A run by one process, and by several with a part of the weights each."""
    sections = RUNS[name]
    jobs: list[dict[str, Any]] = [
        {
            "settings": settings_of(root / "made", **with_train(sections, shard=size > 1)),
            "size": size,
            "run": str(root / f"{size}"),
        }
        for size in (1, several)
    ]
    for job, found in zip(jobs, launch(*jobs), strict=True):
        assert found["codes"] == [0] * job["size"], found["said"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_figures_are_those_of_one_process(tmp_path: Path, name: str) -> None:
    size = 3 if name == "grpo" else 2
    alone_and_divided(tmp_path, name, size)
    ill = ILL if name == "grpo" else ILL_CONDITIONED
    assert_alike(tmp_path / "1", tmp_path / f"{size}", ill)
    (own,), (other,) = (
        [*(tmp_path / run / "final").glob("*.safetensors")] for run in ("1", f"{size}")
    )
    alone, divided = load_file(own), load_file(other)
    assert {n: (x.shape, x.dtype) for n, x in divided.items()} == {
        n: (x.shape, x.dtype) for n, x in alone.items()
    }
    for weight, tensor in alone.items():
        assert float((divided[weight] - tensor).abs().max()) <= 1e-4, weight


@pytest.mark.slow
def test_each_process_has_its_part_of_everything(tmp_path: Path) -> None:
    sections = {"algorithm": {"name": "grpo", **TWICE}}
    given = settings_of(tmp_path / "made", **with_train(sections, **SHARD))
    whole = {"settings": settings_of(tmp_path / "made", **sections), "size": 1}
    jobs = [{**whole, "run": str(tmp_path / "whole"), "weigh": [0, 3]}]
    jobs += [
        {"settings": given, "size": 2, "run": str(tmp_path / f"of {rank}"), "weigh": [rank, 3]}
        for rank in range(2)
    ]
    alone, *both = launch(*jobs)
    total = json.loads(alone["said"][0])
    parts = [json.loads(found["said"][rank]) for rank, found in enumerate(both)]
    assert total["weights"] == total["gradients"] == total["snapshot"] == total["reference"]
    for name, count in total.items():
        counts = [part[name] for part in parts]
        assert sum(counts) == count, name
        assert max(counts) <= 0.51 * count, name


@pytest.mark.slow
def test_what_is_left_of_a_killed_process_goes_on_to_the_same_end() -> None:
    assert_goes_on_to_the_same_end(with_train(RUNS["ppo"], **SHARD), rank=1)


@pytest.mark.slow
def test_all_go_back_to_a_checkpoint_together(tmp_path: Path) -> None:
    strict = {"max_kl": 0.02, "max_kl_canary": 0.02, "on_breach": "reject", "rollback_after": 1}
    sections: dict[str, Any] = {
        "guard": strict,
        "rl": {"kl_target": 3.0},
        "optimizer": {"learning_rate": 3e-2},
        "train": {"steps": 10, "checkpoint_every": 1},
    }
    jobs = [
        {
            "settings": settings_of(tmp_path / "made", **with_train(sections, shard=size > 1)),
            "size": size,
            "run": str(tmp_path / f"{size}"),
        }
        for size in (1, 2)
    ]
    codes = [found["codes"] for found in launch(*jobs)]
    assert codes == [[3], [3, 3]]
    actions = [
        [e.body["verdict"]["action"] for e in read(tmp_path / run / "ledger") if e.type == "update"]
        for run in ("1", "2")
    ]
    assert actions[0] == actions[1]
    assert "rollback" in actions[0]
    assert verify_run(tmp_path / "2").ok
    assert (tmp_path / "2/final/model.safetensors").exists()


@pytest.mark.slow
def test_what_fails_or_asks_on_one_process_ends_all(tmp_path: Path) -> None:
    """The self-test is made by all; accelerate's launcher is understood; an error on one reaches the other."""
    settings = settings_of(tmp_path / "made", **RUNS["ppo"])
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    asked["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    job = {"settings": settings, "size": 2, "environment": asked}
    tested, failed = launch(
        {**job, "run": str(tmp_path / "tested"), "self_test": True},
        {**job, "run": str(tmp_path / "failed"), "fail": [1, 2]},
    )
    assert tested["codes"] == [0, 0], tested["said"]
    started = read(tmp_path / "tested/ledger")[0].body
    assert started["config"]["train"]["shard"] is True
    assert all(check["passed"] for check in started["self_test"]["checks"])
    assert len(metrics(tmp_path / "tested")) == 4
    assert failed["codes"] == [5, 5], failed["said"]
    assert "process 1 of 2: ResourceError: the device is on fire" in failed["said"][0]
    assert verify_run(tmp_path / "failed").ok


def test_what_is_not_done_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = settings_of(tmp_path)
    config = RunConfig.model_validate({**plain, "train": {**plain["train"], **SHARD}})
    several = World(rank=0, size=2)
    policy = config.model.policy
    blend = {policy: 0.5, "tiny-reviews/base": 0.5}
    mixed = config.model_copy(
        update={"model": config.model.model_copy(update={"reference": blend})}
    )
    with pytest.raises(ConfigError, match="several references can't be divided"):
        check_together(mixed, several)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="FSDP 1") as caught:
        launched("cpu")
    assert caught.value.got == "1"
    for name in ("FSDP_OFFLOAD_PARAMS", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "true")
        with pytest.raises(ConfigError, match="launched for what isn't done"):
            launched("cpu")
        monkeypatch.delenv(name)
    undivided = RunConfig.model_validate(plain)
    assert as_launched(undivided, several).train.shard
    assert not as_launched(undivided, World()).train.shard
