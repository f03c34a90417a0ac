"""`[algorithm]`: each algorithm's own defaults, and what it has no use for."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.config import build, resolved
from kleash.errors import ConfigError
from kleash.lab.closed_form import Budget, solve
from kleash.lab.mdp import MDP
from kleash.train.algorithms import ALGORITHMS
from kleash.train.config import RunConfig


def made(**algorithm: Any) -> RunConfig:
    return build(RunConfig, {"algorithm": algorithm}, "run.toml")


def refused(**algorithm: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        made(**algorithm)
    return f"{caught.value.what} {caught.value.expected} {caught.value.do}"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_not_said_is_the_algorithms_own(name: str) -> None:
    config = made(name=name).algorithm

    assert config.name == name
    for setting, default in ALGORITHMS[name].settings.items():
        assert getattr(config, setting) == default, setting


def test_what_is_said_is_taken() -> None:
    config = made(name="dapo", clip_eps=0.1, num_epochs=3).algorithm

    assert (config.clip_eps, config.clip_eps_high, config.num_epochs) == (0.1, 0.28, 3)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_resolved_configuration_is_the_same_when_it_is_read_again(name: str) -> None:
    config = made(name=name)

    assert build(RunConfig, resolved(config), "config.json") == config


def test_without_a_section_it_is_ppo() -> None:
    assert build(RunConfig, {}, "run.toml").algorithm == made(name="ppo").algorithm


def test_an_unknown_algorithm_is_refused_with_the_nearest() -> None:
    said = refused(name="rlo")

    assert "grpo, dr_grpo" in said
    assert "did you mean rloo?" in said


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("grpo", "gae_lambda", 0.9),
        ("rloo", "value_coef", 0.5),
        ("ppo", "step_kl", 0.1),
        ("trpo", "num_epochs", 4),
        ("trpo", "update", "gradient"),
        ("ppo_kl", "step_penalty", 0.0),
        ("rloo", "baseline", "value"),
        ("ppo", "baseline", "group"),
        ("grpo", "num_minibatches", 65),
        ("grpo", "correction_cap", 5.0),
        ("grpo", "correction_drop", True),
    ],
)
def test_a_setting_that_does_nothing_or_cannot_be_is_refused_by_name(
    name: str, setting: str, value: Any
) -> None:
    said = refused(name=name, **{setting: value})

    assert f"algorithm.{setting}" in said


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "rloo", "trpo"])
def test_a_group_of_one_has_nobody_to_be_compared_with(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        build(RunConfig, {"algorithm": {"name": name}, "rollout": {"group_size": 1}}, "run.toml")
    assert "rollout.group_size of at least 2" in caught.value.expected


@pytest.mark.parametrize("name", ["ppo", "reinforce", "reinforce++"])
def test_where_nothing_is_compared_within_a_group_one_is_enough(name: str) -> None:
    build(RunConfig, {"algorithm": {"name": name}, "rollout": {"group_size": 1}}, "run.toml")


def test_the_section_of_an_older_version_is_named_with_its_new_name() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, {"ppo": {"clip_eps": 0.1}}, "run.toml")
    assert caught.value.do == "did you mean algorithm?"


@pytest.mark.slow
def test_an_algorithm_of_ones_own_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/algorithms.md, and what docs/algorithms.md says of it."""
    for name in list(ALGORITHMS):
        monkeypatch.setitem(ALGORITHMS, name, ALGORITHMS[name])  # what is added is taken away again
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    exec(code, {})
    draw = torch.Generator().manual_seed(1)
    mdp = MDP(
        4,
        2,
        torch.randn(5, 4, generator=draw, dtype=torch.double),
        torch.randn(16, generator=draw, dtype=torch.double),
    )
    lost = {}
    for name in ("rloo", "better-only"):
        found = solve(mdp, name, 0.3, 0, budget=Budget(128, 80, 0.15)).standing
        assert found.gain_lost is not None
        lost[name] = found.gain_lost

    assert made(name="better-only").algorithm.baseline == "leave_one_out"
    assert 3 * lost["rloo"] < lost["better-only"] < 0.5
