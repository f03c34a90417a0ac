"""Prompts: where they come from, and in which order they are asked."""

from collections.abc import Iterator

import torch

from kleash.errors import ConfigError, InputError
from kleash.models.embedded import resolve
from kleash.rewards.checks import shown
from kleash.rewards.files import Row, read_jsonl, read_lines, text_field

_EXPECTED = "a UTF-8 text file with one {} a line, a .jsonl file, or tiny-reviews/prompts"


def load_prompts(source: str) -> list[str]:
    """Prompts from an embedded name, a text file (one a line, blank lines skipped) or JSON lines (`prompt`).

    Raises:
        InputError: there is no such file, it holds no prompt, or a line is not what it should be.
    """
    return load_rows(source, "prompt")


def load_rows(source: str, field: str) -> list[str]:
    """The same of any texts.

    Args:
        source: an embedded name, a text file, or JSON lines.
        field: which of a JSON line's.

    Raises:
        InputError: there is no such file, it holds none, or a line is not what it should be.
    """
    path = resolve(source)
    if path.endswith((".jsonl", ".jsonl.gz")):
        return [_field_of(row, field) for row in read_jsonl(path)]
    rows = [line.rstrip() for _, line in read_lines(path, _EXPECTED.format(field))]
    if not rows:
        raise InputError(
            f"no {field}s in {source!r}",
            expected="at least one",
            got="an empty file, or blank lines only",
            do=f"write one {field} a line",
        )
    return rows


def prompt_batches(
    prompts: list[str], size: int, generator: torch.Generator
) -> Iterator[list[str]]:
    """Endless batches of `size` different prompts: a new shuffle whenever too few are left.

    Raises:
        ConfigError: there are fewer prompts than a batch holds.
    """
    check_enough(prompts, size)
    return _batches(prompts, size, generator)


def check_enough(prompts: list[str], size: int) -> None:
    """That a rollout of `size` different prompts can be drawn.

    Raises:
        ConfigError: there are fewer prompts than a batch holds.
    """
    if size > len(prompts):
        raise ConfigError(
            "a rollout needs more prompts than there are",
            expected=f"rollout.num_prompts ≤ {len(prompts)}, the prompts in data.prompts",
            got=str(size),
            do="lower rollout.num_prompts and raise rollout.group_size, or add prompts",
        )


def _batches(prompts: list[str], size: int, generator: torch.Generator) -> Iterator[list[str]]:
    while True:
        order: list[int] = torch.randperm(len(prompts), generator=generator).tolist()
        for start in range(0, len(prompts) - size + 1, size):
            yield [prompts[i] for i in order[start : start + size]]


def _field_of(row: Row, field: str) -> str:
    expected = f'a JSON object such as {{"{field}": "the film is"}}'
    text = text_field(row, field, expected)
    if not text.strip():
        raise InputError(
            f"{row.where}: the {field} is blank",
            expected=expected,
            got=shown(text),
            do="mend or remove the line",
        )
    return text
