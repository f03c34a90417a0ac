"""Prompts of a comparison: lines of text, JSON lines, conversations, or any dataset; each perhaps of a slice."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from kleash.audit.limits import ALL, EACH
from kleash.errors import InputError
from kleash.ledger import encode
from kleash.models.embedded import resolve
from kleash.rewards.checks import shown
from kleash.rewards.files import Row, read_jsonl, read_lines, text_field

EXPECTED = "a text file with one prompt a line, JSON lines, or a dataset that `datasets` loads"
TABLES = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".json": "json"}
"""Files that `datasets` reads, by the end of their names."""
COLUMNS = ("prompt", "messages")
"""Where a prompt is looked for."""
RESERVED = (ALL, EACH)
"""What limits are on beside slices."""
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What both models are asked."""

    text: str
    """As it is shown: of a conversation, its last turn."""
    slice: str | None = None
    """A name that its KL is told under too."""
    turns: tuple[Mapping[str, str], ...] = ()
    """A conversation, which ends before an answer; empty for a plain text."""
    others: tuple[str, ...] = ()
    """Further slices that it is of: it is asked once and counts in each."""

    @property
    def slices(self) -> tuple[str, ...]:
        """All of them."""
        return (*(() if self.slice is None else (self.slice,)), *self.others)

    @property
    def identity(self) -> str:
        """What makes it the same prompt as another."""
        return json.dumps([self.text, *map(dict, self.turns)], ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """The prompts of a file, each once."""

    source: str
    prompts: tuple[Prompt, ...]
    duplicates: int
    """Lines that said again what another had said."""


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of prompts in their order, over the canonical JSON that docs/attestation-format.md fixes."""
    said = [
        {"messages": [dict(turn) for turn in p.turns], "slices": list(p.slices), "text": p.text}
        for p in prompts
    ]
    return hashlib.sha256(encode(said)).hexdigest()


def load_prompts(
    source: str, *, column: str | None = None, slice_column: str = "slice", split: str = "train"
) -> PromptSet:
    """Reads prompts; one that was there before counts once.

    Args:
        source: an embedded name, a file, a directory with a dataset, or a dataset's hub id.
        column: where a prompt stands in a line; None: `prompt`, else `messages`.
        slice_column: where its slice stands, if anywhere.
        split: of a dataset.

    Raises:
        InputError: there is no such file, a line can't be used, or there are fewer than two prompts.
    """
    found = list(_read(source, column, slice_column, split))
    first: dict[str, Prompt] = {}
    for prompt in found:
        known = first.setdefault(prompt.identity, prompt)
        if prompt.slice is not None and prompt.slice not in known.slices:
            where = (
                {"others": (*known.others, prompt.slice)}
                if known.slice
                else {"slice": prompt.slice}
            )
            first[prompt.identity] = replace(known, **where)
    if not first:
        raise InputError(f"no prompts in {source!r}", expected="at least one", got="none")
    return PromptSet(
        source=source, prompts=tuple(first.values()), duplicates=len(found) - len(first)
    )


def _read(source: str, column: str | None, slice_column: str, split: str) -> Iterator[Prompt]:
    path = Path(resolve(source)).expanduser()
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows: Iterator[Row] = read_jsonl(path)
    elif path.is_dir() or path.suffix in TABLES or not _is_file(source, path):
        rows = _dataset(source, path, split)
    else:
        for _, line in read_lines(path, EXPECTED):
            yield Prompt(line.rstrip())
        return
    for row in rows:
        yield _prompt(row, column or _column(row), slice_column)


def _is_file(source: str, path: Path) -> bool:
    """Whether a name is meant as a file's, there or not, rather than as a dataset's on the hub."""
    return path.exists() or bool(path.suffix) or source.startswith((".", "/", "~"))


def _column(row: Row) -> str:
    for name in COLUMNS:
        if name in row.data:
            return name
    raise InputError(
        f"{row.where}: no prompt",
        expected=f"one of the columns {', '.join(COLUMNS)}",
        got=", ".join(map(str, row.data))[:200],
        do="name the column with --column",
    )


def _prompt(row: Row, column: str, slice_column: str) -> Prompt:
    where, value = _slice(row, slice_column), row.data.get(column)
    if isinstance(value, list):
        turns = _turns(row, column, value)
        return Prompt(turns[-1]["content"], where, turns)
    text = text_field(row, column, f'a text, as in {{"{column}": "the film is"}}')
    if not text.strip():
        raise InputError(
            f"{row.where}: the prompt is blank",
            expected="a text",
            got=shown(text),
            do="mend or remove the line",
        )
    return Prompt(text, where)


def _slice(row: Row, column: str) -> str | None:
    value = row.data.get(column)
    if value is None or value == "":
        return None
    if value in RESERVED:
        raise InputError(
            f"{row.where}: no slice can be called {shown(value)}",
            expected="another name: a limit on it stands for all prompts, or for each slice",
            got=shown(value),
        )
    if not isinstance(value, str | int):
        raise InputError(
            f"{row.where}: {column!r} is not a name", expected="a text", got=shown(value)
        )
    return str(value)


def _turns(row: Row, column: str, value: list[Any]) -> tuple[Mapping[str, str], ...]:
    """A conversation without the answer that it may end with: that is the models' to give."""
    expected = 'a list such as [{"role": "user", "content": "Hello"}]'
    turns: list[Mapping[str, str]] = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise InputError(
                f"{row.where}: {column!r} is no conversation", expected=expected, got=shown(turn)
            )
        part = Row(f"{row.where}, {column}", cast("Mapping[str, Any]", turn))
        role, content = (text_field(part, key, expected) for key in ("role", "content"))
        if role not in ROLES:
            raise InputError(
                f"{part.where}: no role of a conversation",
                expected=", ".join(ROLES),
                got=shown(role),
            )
        turns.append({"role": role, "content": content})
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or not turns[-1]["content"].strip():
        raise InputError(f"{row.where}: nothing is asked", expected=expected, got=shown(value))
    return tuple(turns)


def _dataset(source: str, path: Path, split: str) -> Iterator[Row]:
    """The rows of a dataset. Nothing of it is executed: `datasets` runs no scripts since version 4."""
    import datasets

    local = path if path.exists() else None
    kind = None if local is None or local.is_dir() else TABLES.get(local.suffix)
    try:
        datasets.disable_progress_bars()
        if kind is not None:
            loaded = datasets.load_dataset(kind, data_files=str(local), split=split)
        elif local is not None and (local / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(str(local))
        else:
            loaded = datasets.load_dataset(source if local is None else str(local), split=split)
    except Exception as error:  # whatever a reader of tables finds wrong with one
        raise InputError(
            f"cannot read prompts from {source!r}",
            expected=EXPECTED,
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            do="check the path, or the dataset's id and --split",
        ) from error
    for number, data in enumerate(cast("Sequence[Mapping[str, Any]]", loaded), start=1):
        yield Row(f"{source}, row {number}", data)
