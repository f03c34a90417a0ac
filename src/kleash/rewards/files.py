"""Text files and files of JSON lines, read one way everywhere, and the scores of the texts in one."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kleash.errors import InputError
from kleash.rewards.checks import shown
from kleash.rewards.config import ServerConfig
from kleash.rewards.scorers import load_scorer


class Row(NamedTuple):
    """One JSON object of a file and where it stands."""

    where: str
    """File and line, for messages."""
    data: Mapping[str, Any]


def score_file(
    model: str,
    path: str | Path,
    *,
    label: str | int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    server: ServerConfig | None = None,
) -> list[float]:
    """Scores the texts of a file, one per line.

    Args:
        model: a scorer, as `load_scorer` takes it.
        path: JSON lines with "text", or with "prompt" and "response" (or "completion").
        label: whose log-odds is the score, where a classifier has several labels.
        batch_size: texts per forward pass of a model.
        device: where a model runs.
        server: how a server is asked; None: by the defaults.

    Returns:
        One score per line, in order.

    Raises:
        InputError: the file or a line of it cannot be used, or there is no such model.
        RewardError: the scorer failed.
    """
    texts = [prompt_and_response(row) for row in read_jsonl(path)]
    scorer = load_scorer(model, label=label, batch_size=batch_size, device=device, server=server)
    return scorer.score([prompt for prompt, _ in texts], [response for _, response in texts])


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """The objects of a file of JSON lines, plain or gzip by its name; blank lines are passed over.

    Raises:
        InputError: the file cannot be read, holds nothing, or a line is not a JSON object.
    """
    empty = True
    for where, line in read_lines(path, "a file of JSON lines in UTF-8"):
        empty = False
        yield _row(where, line)
    if empty:
        raise InputError(f"{str(path)!r} is empty", expected="one JSON object a line", got="none")


def read_lines(path: str | Path, expected: str) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, plain or gzip by its name, each after where it stands.

    A line ends where an editor ends it: the line separators that Unicode has beside these are text, in a JSON string
    as in a prompt. A byte order mark is no part of the first line.

    Args:
        path: the file, in UTF-8.
        expected: what it should be, for the message.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line
    # ValueError: a path that no file can have, or bytes that are no UTF-8.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"cannot read {str(path)!r}",
            expected=expected,
            got=f"{type(error).__name__}: {error}",
            do="check the path and the encoding",
        ) from error


def text_field(row: Row, key: str, expected: str) -> str:
    """A string of a row.

    Raises:
        InputError: it is not there, is not a string, or cannot be written as UTF-8.
    """
    value = row.data.get(key)
    if not isinstance(value, str):
        got = f"{type(value).__name__} {shown(value)}" if key in row.data else "no such key"
        raise InputError(f"{row.where}: {key!r} is not a text", expected=expected, got=got)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{row.where}: {key!r} is not valid Unicode",
            expected="no lone surrogates",
            got=shown(value),
        ) from error
    return value


def _row(where: str, line: str) -> Row:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not JSON", expected="one JSON object a line", got=str(error)
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: not a JSON object", expected='{"key": ...}', got=shown(data))
    return Row(where, data)


def prompt_and_response(row: Row) -> tuple[str, str]:
    """What a row says, and to what: of a text alone nothing comes before it.

    Raises:
        InputError: it is neither.
    """
    expected = '{"text"}, {"prompt", "response"} or {"prompt", "completion"}'
    if "text" in row.data:
        return "", text_field(row, "text", expected)
    key = "completion" if "completion" in row.data else "response"
    return text_field(row, "prompt", expected), text_field(row, key, expected)
