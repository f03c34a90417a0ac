"""Prompts from files, and the order they are asked in."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from kleash.errors import ConfigError, InputError
from kleash.train.data import Shuffled, load_prompts


def test_embedded_prompts() -> None:
    prompts = load_prompts("tiny-reviews/prompts")
    assert len(prompts) >= 64
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", ""),
        ("p.txt", "\n \n"),
        ("p.jsonl", '{"text": "x"}\n'),
        ("p.jsonl", "{\n"),
        ("p.jsonl", '{"prompt": 3}'),
        ("p.jsonl", '{"prompt": " "}'),
        ("p.jsonl", ""),
        ("p.jsonl", "[" * 100_000),
        ("p.jsonl", '{"prompt": "\\ud800"}'),
    ],
)
def test_files_without_usable_prompts_are_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError):
        load_prompts(str(path))


def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("p.txt", "none.txt", "nul\0.txt", "nul\0.jsonl", "lone\ud800.txt", "."):
        with pytest.raises(InputError, match="cannot read") as error:
            load_prompts(str(tmp_path / name))
        assert error.value.exit_code == 2


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": 3}\n')
    with pytest.raises(InputError, match=r"p\.jsonl, line 3: 'prompt' is not a text"):
        load_prompts(str(tmp_path / "p.jsonl"))


def test_jsonl_and_text_agree(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a b"}\n\n{"prompt": "c"}\n')
    (tmp_path / "p.txt").write_text("a b\n\nc\n")
    assert load_prompts(str(tmp_path / "p.jsonl")) == load_prompts(str(tmp_path / "p.txt"))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_ends_end_a_prompt(tmp_path: Path, separator: str) -> None:
    """What `str.splitlines` cuts at besides is text, as JSON has it."""
    prompt = f"a{separator}b"
    written = json.dumps({"prompt": prompt}, ensure_ascii=False)
    (tmp_path / "p.jsonl").write_text(f"{written}\n", encoding="utf-8")
    (tmp_path / "p.txt").write_text(f"{prompt}\nc\r\n", encoding="utf-8", newline="")
    assert load_prompts(str(tmp_path / "p.jsonl")) == [prompt]
    assert load_prompts(str(tmp_path / "p.txt")) == [prompt, "c"]


@pytest.mark.parametrize(("name", "line"), [("p.txt", "a b"), ("p.jsonl", '{"prompt": "a b"}')])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / name).write_text(line, encoding="utf-8-sig")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(line.encode("utf-8-sig")))
    assert load_prompts(str(tmp_path / name)) == ["a b"]
    assert load_prompts(str(tmp_path / f"{name}.gz")) == ["a b"]


def test_every_prompt_is_asked_once_before_any_is_asked_again() -> None:
    prompts = [str(i) for i in range(7)]
    batches = Shuffled(prompts, 3, torch.Generator().manual_seed(0))
    first, second = islice(batches, 2)
    assert len({*first, *second}) == 6


def test_more_prompts_than_there_are() -> None:
    with pytest.raises(ConfigError):
        Shuffled(["a"], 2, torch.Generator())
