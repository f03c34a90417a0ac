"""Going on with a run: as if it had never stopped, or not at all."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.errors import (
    ConfigError,
    InputError,
    RepeatError,
    ResourceError,
    RewardError,
    TamperError,
)
from kleash.ledger import Ledger, read
from kleash.replay import verify_run
from kleash.train.config import RunConfig
from kleash.train.run import train
from tests.train.small import count_a, save_prompts, save_small_model

_broken = {"after": 10**9, "error": KeyboardInterrupt}


def breaking(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The reward, until it breaks off."""
    _broken["after"] -= 1
    if _broken["after"] < 0:
        raise _broken["error"]
    return count_a(list(prompts), list(responses))


@pytest.fixture(autouse=True)
def _reward_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "resume_rewards", sys.modules[__name__])
    _broken.update(after=10**9, error=KeyboardInterrupt)
    yield


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of a run of seven steps, with a checkpoint every three."""
    return {
        "model": {"policy": str(save_small_model(tmp_path / "model"))},
        "data": {"prompts": str(save_prompts(tmp_path / "prompts.txt"))},
        "rollout": {"num_prompts": 4, "group_size": 2, "max_new_tokens": 4},
        "reward": {"model": "resume_rewards:breaking"},
        "rl": {"kl_target": 0.3},
        "optimizer": {"learning_rate": 1e-2},
        "train": {
            "steps": 7,
            "threads": 1,
            "device": "cpu",
            "num_samples": 2,
            "sample_every": 2,
            "checkpoint_every": 3,
            "trackers": [],
        },
    }


def run(settings: dict[str, Any], directory: Path, **options: bool) -> int:
    config = RunConfig.model_validate(settings)
    return len(list(train(config, directory, skip_self_test=True, **options)))


def remains(directory: Path) -> dict[str, bytes]:
    """All that a run is, but when it was and how often it was begun."""
    names = ["metrics.jsonl", "samples.jsonl", "drift.jsonl", "config.json"]
    trees = [
        path for d in ("final", "checkpoints/step-000006") for path in (directory / d).rglob("*")
    ]
    files = {str(p.relative_to(directory)): p.read_bytes() for p in trees if p.is_file()}
    files |= {name: (directory / name).read_bytes() for name in names}
    bodies = [
        (e.type, e.body) for e in read(directory / "ledger") if e.type in ("run.started", "update")
    ]
    ending = read(directory / "ledger")[-1]
    return {**files, "ledger": json.dumps([*bodies, (ending.type, ending.body)]).encode()}


VARIANTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "stale": {
        "rollout": {"num_prompts": 4, "group_size": 2, "max_new_tokens": 4, "staleness": 2},
        "algorithm": {"name": "rloo", "correction": "token"},
    },
    "refreshed": {"model": {"refresh_every": 2, "refresh_share": 0.5}},
    "penalised step": {"algorithm": {"name": "ppo_kl"}},
    "texts": {"ptx": {"num_texts": 2}},
    "limited": {"guard": {"max_kl": 50.0}},
    "trpo": {"algorithm": {"name": "trpo", "cg_probes": 2}},
    "per token": {"rl": {"kl_target": 0.1, "kl_unit": "token"}},
}


@pytest.mark.parametrize("after", [2, 5], ids=["before a checkpoint", "after one"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_is_gone_on_with_is_the_one_that_never_stopped(
    settings: dict[str, Any], tmp_path: Path, name: str, after: int
) -> None:
    """Bit for bit: weights, optimiser, streams, controller, record."""
    for section, values in VARIANTS[name].items():
        settings[section] = {**settings.get(section, {}), **values}
    if name == "texts":
        (tmp_path / "texts.txt").write_text("abc\nbcd\ncde\ndef\nefg\n")
        settings["ptx"]["data"] = str(tmp_path / "texts.txt")
    assert run(settings, tmp_path / "whole") == 7
    _broken["after"] = {2: 5, 5: 9}[
        after
    ]  # samples are scored as well: at the start, and at step 1, 2, 4
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run")
    _broken["after"] = 10**9
    broken = verify_run(tmp_path / "run")
    assert (broken.ok, broken.status, broken.steps) == (True, "interrupted", after)
    run(settings, tmp_path / "run", resume=True)

    found = verify_run(tmp_path / "run")
    assert found.ok, found.problems
    assert (found.status, found.steps) == ("finished", 7)
    assert remains(tmp_path / "run") == remains(tmp_path / "whole")
