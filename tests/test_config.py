"""A configuration is taken as written or refused with everything that is wrong with it."""

import contextlib
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from kleash.config import build, load, override, read_toml, resolved
from kleash.errors import ConfigError, InputError
from kleash.train.config import RunConfig
from kleash.train.reward_config import RewardFitConfig

REQUIRED: dict[type[BaseModel], dict[str, Any]] = {
    RunConfig: {},
    RewardFitConfig: {"data": {"pairs": "pairs.jsonl"}},
}


class Setting(NamedTuple):
    model: type[BaseModel]
    section: str
    key: str
    types: frozenset[type]
    """What TOML may hold for it."""


def settings() -> Iterator[Setting]:
    """Every key of every section of both kinds of configuration."""
    for model in REQUIRED:
        for section, field in model.model_fields.items():
            inner = field.annotation
            assert isinstance(inner, type)
            assert issubclass(inner, BaseModel)
            for key, each in inner.model_fields.items():
                yield Setting(model, section, key, frozenset(leaves(each.annotation)))


def leaves(annotation: Any) -> Iterator[type]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for branch in get_args(annotation):
            yield from leaves(branch)
    elif isinstance(annotation, type):
        yield annotation
    elif origin is tuple:
        yield tuple
    elif hasattr(annotation, "__metadata__"):
        yield from leaves(annotation.__origin__)
    else:
        yield from {type(value) for value in get_args(annotation)}  # a Literal


def named(setting: Setting) -> str:
    return f"{setting.model.__name__}.{setting.section}.{setting.key}"


EVERY = list(settings())
NUMBERS = [each for each in EVERY if each.types & {int, float} and str not in each.types]


def refused(setting: Setting, value: Any) -> ConfigError:
    data = json.loads(json.dumps(REQUIRED[setting.model]))
    data.setdefault(setting.section, {})[setting.key] = value
    with pytest.raises(ConfigError) as caught:
        build(setting.model, data, "run.toml")
    return caught.value


def test_the_walk_reaches_every_section() -> None:
    assert {each.section for each in EVERY if each.model is RunConfig} == set(
        RunConfig.model_fields
    )
    assert len(EVERY) > 45


@pytest.mark.parametrize("setting", EVERY, ids=named)
def test_a_value_of_the_wrong_type_is_refused_by_name(setting: Setting) -> None:
    # A number written as text, or, where text is right, a list of numbers: neither is converted.
    error = refused(setting, [1] if str in setting.types else "3")
    assert f"{setting.section}.{setting.key}" in error.what + error.expected
    assert error.expected
    assert error.got


@pytest.mark.parametrize("setting", NUMBERS, ids=named)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
def test_a_number_that_cannot_be_meant_is_refused(setting: Setting, value: float) -> None:
    error = refused(setting, value)
    assert f"{setting.section}.{setting.key}" in error.what + error.expected


@pytest.mark.parametrize("setting", EVERY, ids=named)
def test_a_misspelt_key_is_refused_with_the_nearest(setting: Setting) -> None:
    data = json.loads(json.dumps(REQUIRED[setting.model]))
    data.setdefault(setting.section, {})[f"{setting.key}x"] = 1
    with pytest.raises(ConfigError) as caught:
        build(setting.model, data, "run.toml")
    assert f"did you mean {setting.section}.{setting.key}?" in caught.value.do
    assert setting.key in caught.value.expected


@pytest.mark.parametrize("model", REQUIRED)
def test_what_was_resolved_builds_the_same_again(model: type[BaseModel]) -> None:
    config = build(model, REQUIRED[model], "run.toml")
    assert build(model, json.loads(json.dumps(resolved(config))), "config.json") == config


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, {"rl": {"kl_coef": "high"}, "train": {"sed": 1, "steps": 0}}, "run.toml")
    error = caught.value
    assert error.what == "run.toml has 3 problems"
    assert error.expected.splitlines()[:2] == [
        "rl.kl_coef: a valid number",
        "train.steps: greater than 0",
    ]
    assert 'rl.kl_coef: "high" (a string)' in error.got
    assert "train.sed: did you mean train.seed?" in error.do


def test_a_value_of_several_types_is_one_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, {"reward": {"label": [1]}}, "run.toml")
    assert caught.value.what == "run.toml: reward.label cannot be used"
    assert caught.value.expected == "a valid string, or a valid integer"


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimiser") as caught:
        build(RunConfig, {"optimiser": {}}, "run.toml")
    assert caught.value.do == "did you mean optimizer?"


def test_a_key_outside_its_section_is_told_where_it_belongs() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, {"kl_target": 4.0}, "run.toml")
    assert caught.value.do == "did you mean rl.kl_target?"


def test_a_section_that_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, {"rl": 3}, "run.toml")
    assert caught.value.expected == "a section: [rl]"


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RewardFitConfig, {"data": {}}, "reward.toml")
    assert caught.value.do == "set data.pairs"


def test_a_long_value_does_not_fill_the_screen() -> None:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, {"train": {"steps": "9" * 10_000}}, "run.toml")
    assert len(caught.value.got) < 120


def test_toml_that_is_not_toml_says_where(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[train]\nsteps = \n")
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    assert "line 2" in caught.value.got


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = 1\na = 2\n", b"x = " + b"[" * 5000])
def test_bytes_that_are_not_toml_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        read_toml(path)


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError) as caught:
            read_toml(path)
        assert not isinstance(caught.value, ConfigError)


def test_overrides_come_after_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[train]\nsteps = 9\n[model]\npolicy = "one"\n')
    config = load(RunConfig, path, ["train.steps=3", "model.policy=org/two", "rl.kl_target=4"])
    assert (config.train.steps, config.model.policy, config.rl.kl_target) == (3, "org/two", 4.0)
    with pytest.raises(ConfigError, match="with --set"):
        load(RunConfig, path, ["train.steps=three"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ('"3"', "3"),
        ('["a", "b"]', ["a", "b"]),
        ("tiny-reviews/base", "tiny-reviews/base"),
        ("module:function", "module:function"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
        ("a=b", "a=b"),
    ],
)
def test_an_override_is_read_as_toml_or_as_a_bare_string(text: str, value: Any) -> None:
    assert override({}, [f"a.b={text}"]) == {"a": {"b": value}}


@pytest.mark.parametrize(
    "assignment", ["", "train.steps", "=3", "train.=3", ".steps=3", "train..x=3"]
)
def test_an_override_that_sets_nothing_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="sets nothing"):
        override({}, [assignment])


def test_an_override_does_not_go_through_a_value() -> None:
    with pytest.raises(ConfigError, match="not a section"):
        override({"model": {"policy": "x"}}, ["model.policy.name=y"])


def test_an_override_leaves_its_input_alone() -> None:
    data = {"train": {"steps": 1}}
    override(data, ["train.steps=2", "train.seed=3"])
    assert data == {"train": {"steps": 1}}


@pytest.mark.parametrize(
    "content",
    [
        f"[train]\nsteps = 0x{'f' * 5000}\n",  # TOML has no largest number; JSON is written in decimal
        f"{'a.' * 3000}a = 1\n",
        f"a = {'[' * 300}{']' * 300}\n",
    ],
)
def test_what_no_setting_can_be_is_refused_in_words(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        load(RunConfig, path)
    assert error.value.expected
    assert len(str(error.value)) < 10_000


def test_an_override_as_deep_as_one_likes_is_refused_in_words() -> None:
    data = override({}, [f"{'a.' * 3000}a=1"])
    with pytest.raises(ConfigError, match="holds what no setting can be") as error:
        build(RunConfig, data, "--set")
    assert error.value.do == "remove it"


NAMES = st.text("abcdefghijklmnop_", min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(NAMES | st.sampled_from(sorted(RunConfig.model_fields)), VALUES, max_size=4))
def test_any_tables_build_or_are_refused_in_words(data: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        build(RunConfig, data, "run.toml")
