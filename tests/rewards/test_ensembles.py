"""Several rewards that are to say the same, as one."""

import math
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kleash.config import build
from kleash.errors import ConfigError, RewardError
from kleash.rewards.combined import ask_parts, ensemble_scorer, load_monitors, load_reward
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer, function_scorer, load_scorer

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
TEXTS = ["a", "bb", "ccc"]
Classifier = Callable[..., str]


def gives(name: str, values: Sequence[float]) -> Scorer:
    return function_scorer(name, lambda prompts, texts: list(values))


def letters(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def vowels(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    return [float(sum(c in "aeiou" for c in text)) for text in texts]


def of(name: str, **settings: Any) -> RewardConfig:
    names = [f"{__name__}:{each}" for each in name.split()]
    return RewardConfig.model_validate({"model": names, **settings})


def another(directory: str, suffix: str, factor: float) -> str:
    """The same classifier under another name, with so many times its scores."""
    copy = f"{directory}{suffix}"
    copytree(directory, copy)
    path = Path(copy) / "model.safetensors"
    weights = load_file(path)
    weights["score.weight"] = weights["score.weight"] * factor
    save_file(weights, path, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [2.0, 1.5, 1.0]),
        ({"combine": "worst"}, [1.0, 0.0, 1.0]),
        ({"combine": "uncertainty"}, [1.5, 0.375, 1.0]),
        ({"combine": "uncertainty", "uncertainty_weight": 2.0}, [0.0, -3.0, 1.0]),
    ],
)
def test_members_are_asked_once_kept_and_combined(
    settings: dict[str, Any], expected: list[float]
) -> None:
    asked: list[str] = []

    def once(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        asked.append("once")
        return [1.0, 3.0, 1.0]

    config = RewardConfig.model_validate({"model": ["once", "other"], **settings})
    members = [function_scorer("once", once), gives("other", [3.0, 0.0, 1.0])]
    reward = ensemble_scorer(members, config.combine, config.uncertainty_weight)
    found = ask_parts(reward, ["p"] * 3, TEXTS)
    assert found.scores == expected
    assert found.parts == {"once": [1.0, 3.0, 1.0], "other": [3.0, 0.0, 1.0]}
    assert found.disagreement == [1.0, 1.5, 0.0]
    assert asked == ["once"]
    assert reward.name == config.name
    assert reward.score(["p"] * 3, TEXTS) == expected


def test_a_member_that_fails_is_named_and_so_is_a_variance_that_float32_cannot_hold() -> None:
    with pytest.raises(RewardError, match="'broken'"):
        ensemble_scorer([gives("a", [0.0]), gives("broken", [])], "mean").score(["p"], ["r"])
    apart = [gives("a", [-1e30]), gives("b", [1e30])]
    assert ensemble_scorer(apart, "mean").score(["p"], ["r"]) == [0.0]
    with pytest.raises(RewardError, match=r"mean − 0.5 · variance of a, b"):
        ensemble_scorer(apart, "uncertainty").score(["p"], ["r"])


def test_members_by_name_are_loaded() -> None:
    config = of("letters vowels", combine="worst", monitor=[f"{__name__}:vowels"])
    found = ask_parts(load_reward(config), ["p"] * 2, ["cat", "aei"])
    assert found.scores == [1.0, 3.0]
    assert found.parts == {
        f"{__name__}:letters": [3.0, 3.0],
        f"{__name__}:vowels": [1.0, 3.0],
    }
    assert config.name == f"worst of {__name__}:letters, {__name__}:vowels"
    assert [each.name for each in load_monitors(config)] == [f"{__name__}:vowels"]


def test_a_label_is_each_members(classifier: Classifier, tmp_path: Path) -> None:
    one = classifier(3)
    two = another(one, "-twice", 2.0)
    config = RewardConfig(model=(one, two), label="label-1", monitor=(two, classifier(1)))
    found = ask_parts(load_reward(config), [""] * 3, TEXTS)
    for name in (one, two):
        alone = load_scorer(name, label="label-1").score([""] * 3, TEXTS)
        assert found.parts[name] == alone
        assert len({*alone}) == 3
    assert load_monitors(config)[0].score([""] * 3, TEXTS) == found.parts[two]
    with pytest.raises(ConfigError, match="a label means nothing to the function"):
        load_reward(RewardConfig(model=(one, f"{__name__}:letters"), label="label-1"))


def test_averaged_weights_are_one_model_that_has_no_parts(classifier: Classifier) -> None:
    """Of heads that are 1 and 3 times the same, the average is twice it."""
    one = classifier(3)
    config = RewardConfig(model=(one, another(one, "-thrice", 3.0)), combine="weights", label=2)
    reward = load_reward(config)
    found = ask_parts(reward, [""] * 3, TEXTS)
    twice = load_scorer(another(one, "-twice", 2.0), label=2).score([""] * 3, TEXTS)
    torch.testing.assert_close(torch.tensor(found.scores), torch.tensor(twice))
    assert (found.parts, found.disagreement) == ({}, None)
    assert reward.name == config.name
    assert not config.has_parts


@pytest.mark.parametrize("name", [f"{__name__}:letters", "http://localhost:1/score"])
def test_what_has_no_weights_is_refused_where_they_are_averaged(
    classifier: Classifier, name: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_reward(RewardConfig(model=(classifier(), name), combine="weights"))
    assert name in error.value.what
    assert 'reward.combine = "mean"' in error.value.do


PAIR = ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": []}, "at least two rewards of different names"),
        ({"model": ["a", "b", "a"]}, "at least two rewards of different names"),
        ({"model": ["a", 2]}, "string"),
        ({"model": ["http://me:pw@h/", "b"]}, "no user and password"),
        ({"combine": "worst"}, "no reward.combine where reward.model is not an array"),
        ({"model": {"a": 1.0}, "combine": "weights"}, "no reward.combine where reward.model"),
        ({"model": PAIR, "combine": "median"}, "'mean', 'worst', 'uncertainty'"),
        (
            {"model": PAIR, "uncertainty_weight": 0.1},
            'no reward.uncertainty_weight without reward.combine = "uncertainty"',
        ),
        (
            {"model": PAIR, "combine": "uncertainty", "uncertainty_weight": -0.1},
            "greater than or equal to 0",
        ),
        ({"clip": [1.0, 1.0]}, "reward.clip = [low, high] within ±3.4e38, low below high"),
        ({"clip": [0.0, 1e39]}, "reward.clip = [low, high] within ±3.4e38, low below high"),
        ({"clip": [1.0]}, "clip cannot be used"),
        ({"clip": [0.0, 1.0, 2.0]}, "at most 2 items"),
        ({"clip": [0.0, math.inf]}, "finite number"),
        ({"model": ["http://a/", "http://b/"], "server": {"token_env": "T"}}, "more than one"),
    ],
)
def test_what_cannot_be_run_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(RewardConfig, settings, "run.toml")
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_what_the_page_shows_can_be_run() -> None:
    """The sections [reward] of the page, as they stand there."""
    blocks = [
        block
        for block in PAGE.read_text(encoding="utf-8").split("\n\n")
        if block.startswith("    [reward]")
    ]
    found = [
        build(RewardConfig, tomllib.loads(block.replace("\n    ", "\n"))["reward"], "the page")
        for block in blocks
    ]
    ensemble = next(each for each in found if each.is_ensemble)
    assert ensemble.name == ("mean − 0.1 · variance of runs/proxy-0, runs/proxy-1, runs/proxy-2")
    assert [each.clip for each in found if each.clip] == [(-3.0, 3.0)]
