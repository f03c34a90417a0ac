"""Preference pairs: which of two responses to a prompt was preferred.

The format is TRL's: rows with `chosen`, `rejected` and, optionally, `prompt`; each a text, or each
a list of `{"role", "content"}` messages. Without `prompt`, that of two conversations is the messages
both begin with; that of two texts is unknown. A conversation is written out by the tokenizer's chat
template; without one, as

    User: How are you?

    Assistant: Fine.

A `.jsonl` file is read here, line by line, so that an error names its line; anything else goes
through `datasets`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from kleash.errors import InputError
from kleash.rewards.checks import shown
from kleash.rewards.files import Row, read_jsonl, text_field

_BUILDERS = {".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""File endings that `datasets` reads, and with which of its builders."""

_EXPECTED = '"chosen" and "rejected" (and "prompt"): texts, or lists of {"role", "content"}'

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two texts, one of them preferred; each holds the prompt and the response."""

    prompt: str
    """What both answer; a split keeps the pairs of one prompt on one side. Empty: the source does not say."""
    chosen_text: str
    rejected_text: str


class LoadedPairs(NamedTuple):
    """The pairs of a source."""

    pairs: list[Pair]
    num_identical: int
    """Rows left out because their two texts are the same: they state no preference."""


class PairSplit(NamedTuple):
    """Pairs to fit on, and pairs of other prompts to measure on."""

    train: list[Pair]
    held_out: list[Pair]


def load_pairs(
    source: str | Path,
    *,
    tokenizer: Any = None,
    split: str = "train",
) -> LoadedPairs:
    """Reads preference pairs.

    Args:
        source: a .jsonl(.gz), .json, .csv or .parquet file, a directory, or a hub dataset's id.
        tokenizer: whose chat template writes out conversations; None for the plain form above.
        split: which split of a dataset; a file has none.

    Raises:
        InputError: the source or a row of it cannot be used, or no row states a preference.
    """
    pairs = [_pair(row, tokenizer) for row in _rows(str(source), split)]
    kept = [pair for pair in pairs if pair.chosen_text != pair.rejected_text]
    if not kept:
        raise InputError(
            f"{str(source)!r} states no preference",
            expected="rows whose chosen and rejected texts differ",
            got=f"{len(pairs)} rows, all with two identical texts" if pairs else "no rows",
        )
    return LoadedPairs(kept, len(pairs) - len(kept))


def split_pairs(pairs: Sequence[Pair], fraction: float) -> PairSplit:
    """Holds out the prompts whose SHA-256 is lowest: the same ones always, whatever their order.

    Pairs without a prompt count as answers to one prompt where a chain of shared texts joins them, as the pairs made
    of one ranking are: no text is fitted on in one pair and measured on in another. Nothing else about two texts says
    that they answer the same prompt.

    Args:
        pairs: what to split.
        fraction: share of the prompts to hold out, in [0, 1); at least one where that can be and it
            is not 0.

    Examples:
        >>> pairs = [Pair(prompt=p, chosen_text=p + "+", rejected_text=p + "-") for p in "aabc"]
        >>> train, held_out = split_pairs(pairs, 0.34)
        >>> [pair.prompt for pair in train], [pair.prompt for pair in held_out]
        (['a', 'a', 'b'], ['c'])
    """
    keys = _split_keys(pairs)
    ranked = sorted(set(keys))
    wanted = max(1, round(fraction * len(ranked))) if fraction > 0 else 0
    held = set(ranked[: min(wanted, len(ranked) - 1)])
    train = [pair for pair, key in zip(pairs, keys, strict=True) if key not in held]
    return PairSplit(train, [pair for pair, key in zip(pairs, keys, strict=True) if key in held])


def _split_keys(pairs: Sequence[Pair]) -> list[bytes]:
    """What decides the side of each pair: its prompt's digest, or the lowest of the texts that are joined to it."""
    joined = _joined_texts([pair for pair in pairs if not pair.prompt])
    return [_digest(pair.prompt) if pair.prompt else joined[pair.chosen_text] for pair in pairs]


def _joined_texts(pairs: Sequence[Pair]) -> dict[str, bytes]:
    """For each text, the lowest digest among all texts that a chain of pairs joins it to."""
    neighbours: dict[str, list[str]] = {}
    for pair in pairs:
        neighbours.setdefault(pair.chosen_text, []).append(pair.rejected_text)
        neighbours.setdefault(pair.rejected_text, []).append(pair.chosen_text)
    lowest: dict[str, bytes] = {}
    for start in sorted(neighbours, key=_digest):
        reached = [start]
        while reached:
            text = reached.pop()
            if text not in lowest:
                lowest[text] = _digest(start)
                reached += neighbours[text]
    return lowest


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _rows(source: str, split: str) -> Iterable[Row]:
    """The rows of a source, each with where it stands."""
    if source.endswith((".jsonl", ".jsonl.gz")):
        return read_jsonl(source)
    return _dataset_rows(source, split)


def _dataset_rows(source: str, split: str) -> Iterator[Row]:
    """The rows of what `datasets` loads."""
    # Imported here: it is slow to import, and files of JSON lines do not need it.
    import datasets

    path = Path(source)
    try:
        if path.is_file():
            builder = _BUILDERS[path.suffix]
            table = datasets.load_dataset(builder, data_files=source, split="train")
        elif (path / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(source)[split]
        elif (path / "state.json").is_file():
            table = datasets.load_from_disk(source)
        else:
            table = datasets.load_dataset(source, split=split)
    # Builders and the formats below them raise many kinds of error, all about the source.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot load preference pairs from {source!r}",
            expected="a .jsonl, .json, .csv or .parquet file, a directory, or the id of a dataset",
            got=f"{type(error).__name__}: {reason[:200]}",
            do="check the name and the split",
        ) from error
    for number, data in enumerate(table, start=1):
        yield Row(f"{source}, row {number}", dict(data))


def _pair(row: Row, tokenizer: Any) -> Pair:
    """The pair of a row, plain or conversational."""
    if isinstance(row.data.get("chosen"), list):
        return _conversation_pair(row, tokenizer)
    chosen, rejected = (text_field(row, key, _EXPECTED) for key in ("chosen", "rejected"))
    if row.data.get("prompt") is None:
        # What two texts begin with is no prompt: it may be "I " or half of a word, or nothing.
        return Pair(prompt="", chosen_text=chosen, rejected_text=rejected)
    prompt = text_field(row, "prompt", _EXPECTED)
    return Pair(prompt=prompt, chosen_text=prompt + chosen, rejected_text=prompt + rejected)


def _shared_messages(left: Messages, right: Messages) -> Messages:
    """The messages that two conversations begin with."""
    both = zip(left, right, strict=False)
    return [ours for ours, _ in takewhile(lambda item: item[0] == item[1], both)]


def _conversation_pair(row: Row, tokenizer: Any) -> Pair:
    """The pair of a row of messages; without a prompt, it is the messages that both begin with."""
    chosen, rejected = (_messages(row, key) for key in ("chosen", "rejected"))
    if row.data.get("prompt") is None:
        # The last message is always the response, so never part of the prompt.
        prompt = _shared_messages(chosen[:-1], rejected[:-1])
    else:
        prompt = _messages(row, "prompt")
        chosen, rejected = prompt + chosen, prompt + rejected
    # The prompt of a split: its words, whatever the template makes of them.
    return Pair(
        prompt=_plain(prompt),
        chosen_text=_write_out(row, chosen, tokenizer),
        rejected_text=_write_out(row, rejected, tokenizer),
    )


def _messages(row: Row, key: str) -> Messages:
    """A list of messages of a row.

    Raises:
        InputError: it is something else.
    """
    value = row.data.get(key)
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{row.where}: {key!r} is not a conversation",
            expected=_EXPECTED,
            got=f"{type(value).__name__} {shown(value)}",
        )
    return [
        _message(Row(f"{row.where}, {key!r}, message {i}", each)) for i, each in enumerate(value, 1)
    ]


def _message(row: Row) -> dict[str, str]:
    data: Any = row.data
    if not isinstance(data, dict):
        raise InputError(f"{row.where}: not a message", expected=_EXPECTED, got=shown(data))
    return {
        key: text_field(row, key, '{"role", "content"}, both texts') for key in ("role", "content")
    }


def _write_out(row: Row, messages: Messages, tokenizer: Any) -> str:
    """A conversation as one text, by the chat template where there is one."""
    if tokenizer is None or not tokenizer.chat_template:
        return _plain(messages)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    # A template is a program of its author's and may raise anything.
    except Exception as error:
        raise InputError(
            f"{row.where}: the chat template refuses this conversation",
            expected="roles in an order that the template knows",
            got=f"{type(error).__name__}: {shown(str(error))}",
        ) from error


def _plain(messages: Messages) -> str:
    r"""A conversation as `Role: content` paragraphs.

    Examples:
        >>> _plain([{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}])
        'User: Well?\n\nAssistant: Yes.'
    """
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)
