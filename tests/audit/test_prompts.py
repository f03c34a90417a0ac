"""Prompts as people keep them, and what can't be asked."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from kleash.audit import prompts
from kleash.audit.prompts import Prompt, load_prompts
from kleash.errors import InputError

CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "What is a leash?"},
]


def lines(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("the film is \n\n  indented\nthe film is \n")
    found = load_prompts(str(path))
    assert found.prompts == (Prompt("the film is"), Prompt("  indented"))
    assert found.duplicates == 1


def test_json_lines_with_slices_plain_or_packed(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "slice": "one"}, {"prompt": "a", "slice": "two"}, {"prompt": "b"}]
    plain = load_prompts(lines(tmp_path / "p.jsonl", *rows))
    # The same prompt in two slices is asked once, and counts in both.
    assert plain.prompts == (Prompt("a", "one", (), ("two",)), Prompt("b"))
    assert plain.prompts[0].slices == ("one", "two")
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    assert load_prompts(str(packed)).prompts == plain.prompts


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "p.jsonl", {"question": "a", "topic": 7}, {"question": "b", "topic": ""}
    )
    found = load_prompts(path, column="question", slice_column="topic")
    assert found.prompts == (Prompt("a", "7"), Prompt("b"))
    with pytest.raises(InputError, match="no prompt") as caught:
        load_prompts(path)
    assert "question" in caught.value.got
    assert "--column" in caught.value.do


def test_a_conversation_ends_where_an_answer_is_due(tmp_path: Path) -> None:
    answered = [*CHAT, {"role": "assistant", "content": "A line."}]
    found = load_prompts(lines(tmp_path / "p.jsonl", {"messages": CHAT}, {"messages": answered}))
    (prompt,) = found.prompts
    assert prompt.text == "What is a leash?"
    assert [dict(turn) for turn in prompt.turns] == CHAT
    assert found.duplicates == 1


def test_a_dataset_is_read_as_tables_are(tmp_path: Path) -> None:
    rows = {"prompt": ["a", "b"], "slice": ["x", None]}
    table = datasets.Dataset.from_dict(rows)
    expected = (Prompt("a", "x"), Prompt("b"))
    table.to_parquet(tmp_path / "p.parquet")
    table.to_csv(tmp_path / "p.csv", index=False)
    table.save_to_disk(str(tmp_path / "saved"))
    for name in ("p.parquet", "p.csv", "saved"):
        assert load_prompts(str(tmp_path / name)).prompts == expected, name


def test_the_digest_knows_order_slice_and_conversation(tmp_path: Path) -> None:
    def digest(*rows: Any) -> str:
        return prompts.digest(load_prompts(lines(tmp_path / "p.jsonl", *rows)).prompts)

    one = digest({"prompt": "a"}, {"prompt": "b"})
    assert one == digest({"prompt": "a"}, {"prompt": "b"})
    others = {
        digest({"prompt": "b"}, {"prompt": "a"}),
        digest({"prompt": "a", "slice": "x"}, {"prompt": "b"}),
        digest({"messages": [{"role": "user", "content": "a"}]}, {"prompt": "b"}),
    }
    assert len(others | {one}) == 4
    # As docs/attestation-format.md has it.
    form = '[{"messages":[],"slices":[],"text":"a"},{"messages":[],"slices":[],"text":"b"}]'
    assert one == hashlib.sha256(form.encode()).hexdigest()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " "}, "blank"),
        ({"prompt": 7}, "not a text"),
        ({"prompt": "a\ud800"}, "not valid Unicode"),
        ({"messages": []}, "nothing is asked"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing is asked"),
        ({"messages": [{"role": "king", "content": "x"}]}, "no role"),
        ({"messages": ["x"]}, "no conversation"),
        ({"messages": [{"role": "user"}]}, "not a text"),
        ({"prompt": "a", "slice": ["x"]}, "not a name"),
        ({"prompt": "a", "slice": "all"}, "no slice can be called"),
        ({"prompt": "a", "slice": "*"}, "no slice can be called"),
        (["a"], "not a JSON object"),
    ],
)
def test_a_line_that_asks_nothing_is_named(row: Any, message: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    assert "line 2" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["nowhere.txt", "nowhere.jsonl", "some/dataset", "nowhere.parquet"]
)
def test_what_is_not_there_is_said_to_be_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_prompts(name if name == "some/dataset" else str(tmp_path / name))


def test_an_empty_file_has_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n \n")
    with pytest.raises(InputError, match="no prompts"):
        load_prompts(str(tmp_path / "p.txt"))
