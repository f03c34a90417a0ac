"""Rows as TRL's trainers take them, from the files that kleash reads."""

from itertools import takewhile
from typing import Any

from kleash.errors import InputError
from kleash.rewards.checks import shown
from kleash.rewards.files import Row, read_jsonl, read_lines, text_field
from kleash.train.preferences import Pair, load_pairs

Rows = list[dict[str, str]]

_TEXTS = 'rows with "text", or rows with "prompt" and "completion"'


def preference_rows(source: str, split: str, tokenizer: Any) -> Rows:
    """Pairs with `prompt`, `chosen` and `rejected`, as plain text.

    Raises:
        InputError: the source or a row of it can't be used, or no row states a preference.
    """
    loaded = load_pairs(source, tokenizer=tokenizer, split=split)
    return [preference_row(pair, tokenizer.eos_token) for pair in loaded.pairs]


def preference_row(pair: Pair, eos: str) -> dict[str, str]:
    """One pair; where its texts don't begin with its prompt, what both begin with stands for the prompt.

    That changes no loss: what both texts begin with cancels out of log π(chosen) − log π(rejected).

    Args:
        pair: the pair.
        eos: the end-of-sequence token's text: what a chat template writes behind it is left out, since TRL would add a
            second one there.

    Examples:
        >>> preference_row(Pair(prompt="", chosen_text="a b", rejected_text="a c"), "</s>")
        {'prompt': 'a ', 'chosen': 'b', 'rejected': 'c'}
    """
    texts = [pair.chosen_text, pair.rejected_text]
    texts = [text.rstrip() if text.rstrip().endswith(eos) else text for text in texts]
    known = all(text.startswith(pair.prompt) for text in texts)
    same = takewhile(lambda signs: signs[0] == signs[1], zip(*texts, strict=False))
    prompt = pair.prompt if known and pair.prompt else "".join(sign for sign, _ in same)
    chosen, rejected = (text.removeprefix(prompt) for text in texts)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def text_rows(source: str) -> Rows:
    """Texts to learn, all of one kind: `text`, or `prompt` and `completion`.

    Raises:
        InputError: the file or a row of it can't be used.
    """
    if not source.endswith((".jsonl", ".jsonl.gz", ".txt", ".txt.gz")):
        raise InputError(
            f"{source!r} is not a file of texts",
            expected=f"a .jsonl file of {_TEXTS}, or a .txt file with one text a line",
            got="another ending",
            do="convert it, or rename it",
        )
    if source.endswith((".txt", ".txt.gz")):
        lines = [{"text": line.rstrip("\r\n")} for _, line in read_lines(source, _TEXTS)]
        if not lines:
            raise InputError(f"no texts in {source!r}", expected="one text a line", got="none")
        return lines
    found = list(read_jsonl(source))
    keys = ("text",) if "text" in found[0].data else ("prompt", "completion")
    return [_texts(row, keys) for row in found]


def _texts(row: Row, keys: tuple[str, ...]) -> dict[str, str]:
    if not row.data.keys() & set(keys):
        raise InputError(
            f"{row.where}: nothing to learn here",
            expected=f"{_TEXTS}; all of one kind",
            got=shown(list(row.data)),
            do="rename the columns; preference pairs are for kleash dpo",
        )
    return {key: text_field(row, key, _TEXTS) for key in keys}
