"""Prompts from files, and the order they are asked in."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from kleash.errors import ConfigError, InputError
from kleash.train.data import load_prompts, prompt_batches


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
    ],
)
def test_files_without_usable_prompts_are_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError):
        load_prompts(str(path))


def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("p.txt", "none.txt"):
        with pytest.raises(InputError):
            load_prompts(str(tmp_path / name))


def test_jsonl_and_text_agree(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a b"}\n\n{"prompt": "c"}\n')
    (tmp_path / "p.txt").write_text("a b\n\nc\n")
    assert load_prompts(str(tmp_path / "p.jsonl")) == load_prompts(str(tmp_path / "p.txt"))


def test_every_prompt_is_asked_once_before_any_is_asked_again() -> None:
    prompts = [str(i) for i in range(7)]
    batches = prompt_batches(prompts, 3, torch.Generator().manual_seed(0))
    first, second = islice(batches, 2)
    assert len({*first, *second}) == 6


def test_more_prompts_than_there_are() -> None:
    with pytest.raises(ConfigError):
        prompt_batches(["a"], 2, torch.Generator())
