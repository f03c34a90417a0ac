"""Prompts: where they come from, and in which order they are asked."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from kleash.errors import ConfigError, InputError
from kleash.models.embedded import resolve


def load_prompts(source: str) -> list[str]:
    """Prompts from an embedded name, a text file (one a line, blank lines skipped) or JSONL (`prompt`).

    Raises:
        InputError: there is no such file, it holds no prompt, or a line is not what it should be.
    """
    path = Path(resolve(source))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the prompts {source!r}",
            expected="a UTF-8 text file with one prompt a line, a .jsonl file, or tiny-reviews/prompts",
            got=str(error),
            do="check data.prompts",
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".jsonl":
        prompts = [_prompt_of(line, path, number) for number, line in numbered]
    else:
        prompts = [line.rstrip() for _, line in numbered]
    if not prompts:
        raise InputError(
            f"no prompts in {source!r}",
            expected="at least one",
            got="an empty file" if not lines else "blank lines only",
            do="write one prompt a line",
        )
    return prompts


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


def _prompt_of(line: str, path: Path, number: int) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _bad_line(path, number, str(error)) from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise _bad_line(path, number, line[:80])
    return prompt


def _bad_line(path: Path, number: int, got: str) -> InputError:
    return InputError(
        f"{path}, line {number}: not a prompt",
        expected='a JSON object such as {"prompt": "the film is"}',
        got=got,
        do="mend or remove the line",
    )
