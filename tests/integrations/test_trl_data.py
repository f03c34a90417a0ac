"""Rows for TRL: what is read, what is refused, and that the place of the split changes nothing."""

from pathlib import Path

import pytest

from kleash.errors import ConfigError, InputError
from kleash.integrations.trl.config import DPODataConfig, DPORunConfig
from kleash.integrations.trl.data import preference_row, text_rows
from kleash.train.preferences import Pair


def test_texts_are_of_one_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": " b", "more": 1}\n')
    assert text_rows(str(path)) == [{"prompt": "a", "completion": " b"}]
    path.write_text('{"text": "a b"}\n\n{"text": "c"}\n')
    assert text_rows(str(path)) == [{"text": "a b"}, {"text": "c"}]
    lines = tmp_path / "a.txt"
    lines.write_text("one\n\ntwo \n")
    assert text_rows(str(lines)) == [{"text": "one"}, {"text": "two "}]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", '{"text": "a"}\n{"prompt": "a", "completion": "b"}\n', "line 2"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n', "kleash dpo"),
        ("a.jsonl", '{"prompt": "a"}\n', "'completion' is not a text"),
        ("a.jsonl", '{"text": 3}\n', "'text' is not a text"),
        ("a.jsonl", "[]\n", "not a JSON object"),
        ("a.jsonl", "", "empty"),
        ("a.txt", "\n", "no texts"),
        ("a.csv", "text\na\n", "not a file of texts"),
        ("none.jsonl", None, "cannot read"),
    ],
)
def test_what_is_no_text_is_refused(
    name: str, content: str | None, what: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=what):
        text_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("pair", "row"),
    [
        (Pair(prompt="a", chosen_text="a b", rejected_text="a c"), ("a", " b", " c")),
        (Pair(prompt="", chosen_text="a b", rejected_text="a c"), ("a ", "b", "c")),
        (Pair(prompt="q", chosen_text="[q] b", rejected_text="[q] c"), ("[q] ", "b", "c")),
        (Pair(prompt="", chosen_text="b</s>\n", rejected_text="c</s>\n"), ("", "b</s>", "c</s>")),
        (Pair(prompt="", chosen_text="a", rejected_text="a b"), ("a", "", " b")),
    ],
)
def test_a_pair_keeps_its_texts_whole(pair: Pair, row: tuple[str, str, str]) -> None:
    assert tuple(preference_row(pair, "</s>").values()) == row


def test_a_limit_that_cannot_be_held_is_refused() -> None:
    with pytest.raises(ValueError, match="max_kl_new_old"):
        DPORunConfig.model_validate({"data": {"pairs": "a"}, "guard": {"max_kl_new_old": 0.1}})
    assert DPORunConfig(data=DPODataConfig(pairs="a")).guard.max_kl is None
    assert issubclass(ConfigError, InputError)


@pytest.mark.parametrize("model", [{"refresh_every": 3}, {"reference": {"a": 0.5, "b": 0.5}}])
def test_a_reference_that_trl_does_not_know_is_refused(model: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"one model\.reference that stays"):
        DPORunConfig.model_validate({"data": {"pairs": "a"}, "model": model})


def test_rewards_that_watch_may_be_served_and_a_token_is_for_one_server() -> None:
    reward = {"model": "http://h:1/a", "monitor": ["http://h:1/b"], "server": {"token_env": "T"}}
    config = DPORunConfig.model_validate({"data": {"pairs": "a"}, "reward": reward})
    assert config.reward.server.token_env == "T"
    with pytest.raises(ValueError, match="more than one server"):
        DPORunConfig.model_validate(
            {"data": {"pairs": "a"}, "reward": {**reward, "monitor": ["https://h:1/b"]}}
        )
