"""What a model still finds likely: the negative log-likelihood of held-out texts under both, text by text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.audit.pair import Pair
from kleash.errors import InputError
from kleash.functional.intervals import Interval, clustered_mean
from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.ledger import encode
from kleash.models.embedded import resolve
from kleash.models.policy import LanguageModel
from kleash.rewards.files import prompt_and_response, read_jsonl, read_lines

WINDOW = 512
"""Tokens that are read at once, or the shorter context where that is less; a longer text is read in pieces."""
ROWS = 8
TOP = 10
"""Texts that became least likely."""


def load_texts(source: str) -> list[str]:
    """Held-out texts: one a line, or of JSON lines `text`, or `prompt` with `response` or `completion`.

    Raises:
        InputError: they can't be read, or there are none.
    """
    path = Path(resolve(source)).expanduser()
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        found = ["".join(prompt_and_response(row)) for row in read_jsonl(path)]
    else:
        expected = "a text file with one held-out text a line, or JSON lines with `text`"
        found = [line.rstrip("\n") for _, line in read_lines(path, expected)]
    if not found:
        raise InputError(f"no texts in {source!r}", expected="at least one", got="none")
    return found


class HeldOut(NamedTuple):
    """A text that both models are asked the likelihood of."""

    text: str
    ids: list[int]


def encode_texts(tokenizer: Any, source: str, texts: Sequence[str]) -> list[HeldOut]:
    """Those of the texts that have a token which could be predicted.

    Raises:
        InputError: none has.
    """
    rows = [HeldOut(text, list(tokenizer(text)["input_ids"])) for text in texts]
    rows = [row for row in rows if len(row.ids) > 1]
    if not rows:
        raise InputError(f"no text of {source!r} has two tokens", expected="texts", got="none")
    return rows


def retention(pair: Pair, source: str, rows: Sequence[HeldOut]) -> dict[str, Any]:
    """Mean NLL per token of both models, and how much it rose, with intervals clustered by text; no temperature.

    Returns:
        `nll_policy`, `nll_ref` and `increase`, nats per token, each with its interval; the texts that lost most.
    """
    window = min(WINDOW, pair.context or WINDOW)
    pieces = [(i, piece) for i, (_, ids) in enumerate(rows) for piece in _windows(ids, window)]
    owner = torch.tensor([i for i, _ in pieces])
    found = [_nll(side(), [ids for _, ids in pieces]) for side in (pair.policy, pair.reference)]
    counts = torch.tensor([len(ids) - 1 for _, ids in pieces]).double()
    sums = [torch.zeros(len(rows), dtype=torch.double).index_add_(0, owner, x) for x in found]
    sizes = torch.zeros(len(rows), dtype=torch.double).index_add_(0, owner, counts)
    which = torch.arange(len(rows))
    rise = (sums[0] - sums[1]) / sizes
    return {
        "source": source,
        "sha256": hashlib.sha256(encode([row.text for row in rows])).hexdigest(),
        "texts": len(rows),
        "tokens": int(sizes.sum()),
        "nll_policy": _said(clustered_mean(sums[0], sizes, which)),
        "nll_ref": _said(clustered_mean(sums[1], sizes, which)),
        "increase": _said(clustered_mean(sums[0] - sums[1], sizes, which)),
        "worst": [
            {"text": rows[i].text[:300], "increase": float(rise[i])}
            for i in rise.argsort(descending=True, stable=True)[:TOP].tolist()
        ],
    }


def _windows(ids: list[int], size: int) -> list[list[int]]:
    """Pieces that share a token, so that every token but the first is predicted once."""
    starts = range(0, len(ids) - 1, size - 1)
    return [ids[start : start + size] for start in starts]


@torch.no_grad()
def _nll(model: LanguageModel, pieces: Sequence[list[int]]) -> Tensor:
    """Σ −log p of each piece's tokens after the first, [N]."""
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
    found = torch.zeros(len(pieces), dtype=torch.double)
    for some in torch.tensor(order).split(ROWS):
        chosen = [pieces[i] for i in some.tolist()]
        longest = max(map(len, chosen))
        ids = torch.full((len(chosen), longest), model.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, piece in enumerate(chosen):
            ids[row, : len(piece)], mask[row, : len(piece)] = torch.tensor(piece), True
        ids, mask = ids.to(model.device), mask.to(model.device)
        states = model.hidden(ids[:, :1], mask[:, :1], ids[:, 1:], mask[:, 1:])
        for row, number in enumerate(some.tolist()):
            kept = mask[row, 1:]
            logprobs = log_softmax(model.head(states[row][kept]))
            found[number] = -token_logprobs(logprobs, ids[row, 1:][kept]).double().sum().cpu()
    return found


def _said(interval: Interval) -> dict[str, Any]:
    return {**interval._asdict(), "unit": "token"}
