"""Several rewards as one: a weighted sum, of which each part is kept."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kleash.config import build
from kleash.errors import ConfigError, RewardError
from kleash.rewards.combined import ask_parts, load_monitors, load_reward, weighted_scorer
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer, function_scorer
from tests.rewards.serving import lengths, serving

TEXTS = ["a", "bb", "ccc"]
scores = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)
weights = st.floats(-100, 100)


def spaces(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    return [float(text.count(" ")) for text in texts]


def gives(name: str, values: Sequence[float]) -> Scorer:
    return function_scorer(name, lambda prompts, texts: list(values))


def summed(parts: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    named = [(gives(f"part-{i}", values), weight) for i, (values, weight) in enumerate(parts)]
    return weighted_scorer(named).score(["p"] * 3, TEXTS)


@given(st.lists(st.tuples(scores, weights), min_size=1, max_size=4), st.integers(-8, 8))
def test_the_sum_is_linear_in_the_weights(
    parts: list[tuple[list[float], float]], power: int
) -> None:
    """By a power of two exactly; against double precision elsewhere."""
    found = summed(parts)
    assert summed([(x, w * 2.0**power) for x, w in parts]) == [y * 2.0**power for y in found]
    matrix = torch.tensor([x for x, _ in parts], dtype=torch.double)
    expected = torch.tensor([w for _, w in parts], dtype=torch.double) @ matrix
    torch.testing.assert_close(torch.tensor(found, dtype=torch.double), expected, atol=1e-6, rtol=0)


@given(st.lists(st.tuples(scores, weights), min_size=2, max_size=5), st.randoms())
def test_the_order_of_the_parts_changes_no_bit(
    parts: list[tuple[list[float], float]], random: Any
) -> None:
    """The ledger has the weights by name: a file that names them in another order is the same run."""
    mixed = list(parts)
    random.shuffle(mixed)
    assert summed(parts) == summed(mixed)


@given(scores, scores, weights, weights)
def test_a_part_adds_what_it_would_alone(
    one: list[float], other: list[float], v: float, w: float
) -> None:
    together, alone = summed([(one, v), (other, w)]), (summed([(one, v)]), summed([(other, w)]))
    for found, first, second in zip(together, *alone, strict=True):
        assert math.isclose(found, first + second, rel_tol=1e-9, abs_tol=1e-6)


def test_parts_are_kept_before_their_weights_and_each_is_asked_once() -> None:
    asked: list[str] = []

    def words(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        asked.append("words")
        return [1.0, 2.0, 3.0]

    reward = weighted_scorer(
        [(function_scorer("words", words), -0.5), (gives("flat", [4.0, 4.0, 4.0]), 0.25)]
    )
    found = ask_parts(reward, ["p"] * 3, TEXTS)
    assert found.scores == [0.5, 0.0, -0.5]
    assert found.parts == {"words": [1.0, 2.0, 3.0], "flat": [4.0, 4.0, 4.0]}
    assert asked == ["words"]
    assert ask_parts(gives("one", [1.0, 1.0, 1.0]), ["p"] * 3, TEXTS).parts == {}


def test_a_part_that_fails_is_named_and_so_is_a_sum_that_float32_cannot_hold() -> None:
    fine = gives("fine", [0.0, 0.0, 0.0])
    with pytest.raises(RewardError, match="'broken'"):
        ask_parts(
            weighted_scorer([(fine, 1.0), (gives("broken", [0, math.nan, 0]), 1.0)]), ["p"], TEXTS
        )
    with pytest.raises(RewardError) as error:
        summed([([3e38, 0.0, 0.0], 3.4e38), ([3e38, 0.0, 0.0], 3.4e38)])
    assert "for response 0" in error.value.got


def test_rewards_by_name_are_loaded_with_their_weights() -> None:
    name = f"{__name__}:spaces"
    with serving(lengths) as served:
        config = RewardConfig(model={name: -2.0, served.url: 0.5}, monitor=(served.url, name))
        found = ask_parts(load_reward(config), ["p"] * 2, ["a b", "abcd"])
        assert found.scores == [-0.5, 2.0]
        assert found.parts == {name: [1.0, 0.0], served.url: [3.0, 4.0]}
        monitors = load_monitors(config)
        assert [monitor.name for monitor in monitors] == [served.url, name]
        assert monitors[0].score(["p"], ["abc"]) == [3.0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": {}}, "at least one is not 0"),
        ({"model": {"a": 0.0, "b": -0.0}}, "at least one is not 0"),
        ({"model": {"a": math.inf}}, "finite number"),
        ({"model": {"a": math.nan}}, "finite number"),
        ({"model": {"a": 1e39}}, "within ±3.4e38"),
        ({"model": {"a": "much"}}, "number"),
        ({"model": ["a"]}, "at least two rewards of different names"),
        ({"model": {"a": 1.0}, "label": "POSITIVE"}, "no reward.label"),
        ({"model": {"http://me:pw@h/": 1.0}}, "no user and password"),
        ({"monitor": ["https://h/?key=1"]}, "no ? or #"),
        ({"length_free": 4}, "without reward.length_penalty"),
        ({"length_penalty_max": 1.0}, "without reward.length_penalty"),
        ({"length_penalty": -0.1}, "greater than or equal to 0"),
        ({"length_penalty": math.inf}, "finite"),
        ({"server": {"retries": -1}}, "greater than or equal to 0"),
        ({"server": {"timeout_s": 0.0}}, "greater than 0"),
        ({"server": {"token_env": "A B"}}, "pattern"),
        ({"server": {"token": "s3cret"}}, "token_env"),
        (
            {"model": {"http://a/": 1.0}, "monitor": ["http://b/"], "server": {"token_env": "T"}},
            "more than one server",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(RewardConfig, settings, "run.toml")
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_one_token_is_for_one_server_wherever_it_serves() -> None:
    settings = {
        "model": {"http://h:1/a": 1.0, "http://h:1/b": 2.0},
        "monitor": ["http://h:1/c"],
        "server": {"token_env": "T"},
    }
    assert build(RewardConfig, settings, "run.toml").server.token_env == "T"
    with pytest.raises(ValidationError):
        RewardConfig.model_validate({**settings, "monitor": ["http://h:2/c"]})
