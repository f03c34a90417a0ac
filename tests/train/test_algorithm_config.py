"""`[algorithm]`: each algorithm's own defaults, and what it has no use for."""

from typing import Any

import pytest

from kleash.config import build, resolved
from kleash.errors import ConfigError
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
    ],
)
def test_a_setting_that_does_nothing_is_refused_by_name(
    name: str, setting: str, value: float
) -> None:
    said = refused(name=name, **{setting: value})

    assert f"algorithm.{setting}" in said
    assert name in said


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


def test_an_algorithm_of_ones_own_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/algorithms.md shows it."""
    rloo = ALGORITHMS["rloo"]
    own = rloo._replace(settings={**rloo.settings, "clip_eps": 0.1})
    monkeypatch.setitem(ALGORITHMS, "rloo-clipped", own)

    assert made(name="rloo-clipped").algorithm.clip_eps == 0.1
