"""Preference pairs in every form they come in, and the split by prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from kleash.errors import InputError
from kleash.train.preferences import LoadedPairs, Pair, load_pairs, split_pairs

ROWS = [
    {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."},
    {"prompt": "And you?", "chosen": " Fine.", "rejected": " Fine."},
    {"prompt": "Why?", "chosen": " Because.", "rejected": ""},
]
PAIRS = [
    Pair(prompt="Is it good?", chosen_text="Is it good? Yes.", rejected_text="Is it good? No."),
    Pair(prompt="Why?", chosen_text="Why? Because.", rejected_text="Why?"),
]


def messages(*turns: str) -> list[dict[str, str]]:
    """Turns of a user and an assistant, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its tables inside the test's own directory."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet", "directory", "saved", "dict"])
def test_every_source_gives_the_same_pairs(tmp_path: Path, form: str) -> None:
    table = Dataset.from_list(ROWS)
    path = tmp_path / f"pairs.{form}"
    if form in ("jsonl", "json"):
        write(path, ROWS)
    elif form == "csv":
        table.to_csv(path)
    elif form == "parquet":
        table.to_parquet(path)
    elif form == "directory":
        path.mkdir()
        table.to_parquet(path / "train.parquet")
    elif form == "saved":
        table.save_to_disk(path)
    else:
        DatasetDict({"train": table}).save_to_disk(path)
    # An empty cell of a .csv file is no text, so that row is not one of its pairs.
    if form == "csv":
        with pytest.raises(InputError, match="row 3: 'rejected' is not a text"):
            load_pairs(path)
    else:
        assert load_pairs(path) == LoadedPairs(PAIRS, 1)


def test_what_two_texts_begin_with_is_not_taken_for_their_prompt(tmp_path: Path) -> None:
    rows = [
        {"chosen": "the cast is fine", "rejected": "the plot is not"},
        {"chosen": "the end", "rejected": "the beginning"},
    ]
    pairs = load_pairs(write(tmp_path / "p.jsonl", rows)).pairs
    assert [pair.prompt for pair in pairs] == ["", ""]
    train, held_out = split_pairs(pairs, 0.5)
    assert len(train) == len(held_out) == 1


@pytest.mark.parametrize("explicit", [True, False])
def test_conversations_without_a_template(tmp_path: Path, explicit: bool) -> None:
    talk = messages("Hi", "Hello", "How?")
    good, bad = messages("", "So.")[1:], messages("", "No.")[1:]
    row = {"chosen": talk + good, "rejected": talk + bad}
    if explicit:
        row = {"prompt": talk, "chosen": good, "rejected": bad}
    (pair,) = load_pairs(write(tmp_path / "p.jsonl", [row])).pairs
    assert pair.prompt == "User: Hi\n\nAssistant: Hello\n\nUser: How?"
    assert pair.chosen_text == pair.prompt + "\n\nAssistant: So."
    assert pair.rejected_text == pair.prompt + "\n\nAssistant: No."


def test_the_response_is_never_part_of_the_prompt(tmp_path: Path) -> None:
    row = {"chosen": messages("Hi", "Yes"), "rejected": messages("Hi", "Yes", "Bye", "No")}
    (pair,) = load_pairs(write(tmp_path / "p.jsonl", [row])).pairs
    assert pair.prompt == "User: Hi"


def test_the_chat_template_writes_a_conversation(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
    )
    row = {
        "prompt": messages("Hi"),
        "chosen": messages("", "a")[1:],
        "rejected": messages("", "b")[1:],
    }
    path = write(tmp_path / "p.jsonl", [row])
    (pair,) = load_pairs(path, tokenizer=tokenizer).pairs
    assert pair.chosen_text == "<user>Hi<assistant>a"
    row["chosen"] = [{"role": "tool", "content": "x"}]
    write(path, [row])
    with pytest.raises(InputError, match="line 1: the chat template refuses"):
        load_pairs(path, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "a"}, "'rejected' is not a text"),
        ({"chosen": "a", "rejected": None}, "'rejected' is not a text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' is not a text"),
        ({"chosen": messages("a"), "rejected": "b"}, "'rejected' is not a conversation"),
        ({"chosen": messages("a"), "rejected": []}, "'rejected' is not a conversation"),
        ({"prompt": "p", "chosen": messages("a"), "rejected": messages("b")}, "'prompt' is not a"),
        ({"chosen": ["a"], "rejected": ["b"]}, "'chosen', message 1: not a message"),
        ({"chosen": [{"role": "user"}], "rejected": messages("b")}, "'content' is not a text"),
        ([], "not a JSON object"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: Any, says: str) -> None:
    path = write(tmp_path / "p.jsonl", [ROWS[0], row])
    with pytest.raises(InputError) as error:
        load_pairs(path)
    assert f"{path}, line 2" in error.value.what
    assert says in error.value.what
    assert error.value.exit_code == 2


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="states no preference"):
        load_pairs(write(tmp_path / "same.jsonl", [ROWS[1]]))
    for source in (tmp_path / "nowhere", tmp_path / "nothing.parquet", "no-such/dataset"):
        with pytest.raises(InputError, match="cannot load preference pairs"):
            load_pairs(source)
    strange = tmp_path / "pairs.xlsx"
    strange.write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot load preference pairs"):
        load_pairs(strange)


def texts(pairs: list[Pair]) -> set[str]:
    return {text for pair in pairs for text in (pair.chosen_text, pair.rejected_text)}


prompts = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g"]), max_size=30)


@given(prompts, st.floats(0, 0.99))
def test_no_prompt_is_on_both_sides_and_no_pair_is_lost(names: list[str], share: float) -> None:
    pairs = [
        Pair(prompt=p, chosen_text=f"{p} good {i}", rejected_text=f"{p} bad {i}")
        for i, p in enumerate(names)
    ]
    train, held_out = split_pairs(pairs, share)
    assert sorted(map(str, train + held_out)) == sorted(map(str, pairs))
    assert not {p.prompt for p in train if p.prompt} & {p.prompt for p in held_out}
    assert not texts(train) & texts(held_out)
    assert train or not pairs
    again = split_pairs(pairs[::-1], share)
    assert again == (train[::-1], held_out[::-1])


links = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30)


@given(links, st.floats(0, 0.99))
def test_without_prompts_no_text_is_on_both_sides(
    edges: list[tuple[int, int]], share: float
) -> None:
    pairs = [Pair(prompt="", chosen_text=f"{c}", rejected_text=f"{r}") for c, r in edges]
    train, held_out = split_pairs(pairs, share)
    assert sorted(map(str, train + held_out)) == sorted(map(str, pairs))
    assert not texts(train) & texts(held_out)
    assert train or not pairs
    assert split_pairs(pairs[::-1], share) == (train[::-1], held_out[::-1])


def test_without_prompts_a_ranking_is_one_prompt_and_strangers_are_two() -> None:
    """Ten rankings of four texts, each as a chain of three pairs, that all begin alike."""
    pairs = [
        Pair(prompt="", chosen_text=f"the {i} {j}", rejected_text=f"the {i} {j + 1}")
        for i in range(10)
        for j in range(3)
    ]
    train, held_out = split_pairs(pairs, 0.2)
    assert (len(train), len(held_out)) == (24, 6)
    assert len({pair.chosen_text.split()[1] for pair in held_out}) == 2


def test_the_split_takes_its_share_of_the_prompts() -> None:
    pairs = [Pair(prompt=f"{i}", chosen_text="a", rejected_text="b") for i in range(200)]
    assert len(split_pairs(pairs, 0.1).held_out) == 20
    assert len(split_pairs(pairs, 0.001).held_out) == 1
    assert split_pairs(pairs, 0.0).held_out == []
    assert split_pairs(pairs[:1], 0.5).held_out == []
