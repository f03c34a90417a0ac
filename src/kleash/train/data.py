"""Prompts: where they come from, and in which order they are asked."""

from collections.abc import Sequence

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


def load_slices(source: str) -> list[str]:
    """The `slice` of each prompt of a file of JSON lines; none where none has one.

    Raises:
        InputError: some have one and others don't, or one is not a text.
    """
    path = resolve(source)
    if not path.endswith((".jsonl", ".jsonl.gz")):
        return []
    rows = list(read_jsonl(path))
    if not any("slice" in row.data for row in rows):
        return []
    return [text_field(row, "slice", '{"prompt": "the film is", "slice": "films"}') for row in rows]


class Shuffled:
    """Endless batches of `size` different texts: a new shuffle whenever too few are left.

    Args:
        texts: all of them.
        size: of a batch.
        generator: of the shuffles.

    Raises:
        ConfigError: there are fewer texts than a batch holds.

    Examples:
        >>> sorted(next(Shuffled(["a", "b"], 2, torch.Generator().manual_seed(0))))
        ['a', 'b']
    """

    def __init__(self, texts: list[str], size: int, generator: torch.Generator) -> None:
        check_enough(texts, size)
        self.texts, self.size, self.generator = texts, size, generator
        self.order: list[int] = []
        self.taken = 0
        """Of `order`."""

    def go_to(self, order: Sequence[int], taken: int) -> None:
        """Goes on from an order of which so many are taken."""
        self.order, self.taken = list(order), taken

    def __iter__(self) -> "Shuffled":
        return self

    def __next__(self) -> list[str]:
        if self.taken + self.size > len(self.order):
            self.order = torch.randperm(len(self.texts), generator=self.generator).tolist()
            self.taken = 0
        self.taken += self.size
        return [self.texts[i] for i in self.order[self.taken - self.size : self.taken]]


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
