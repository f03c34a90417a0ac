"""How likely held-out texts are to both models, against their own losses."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kleash.audit import retain
from kleash.audit.pair import Pair
from kleash.audit.retain import encode_texts, load_texts, retention
from kleash.audit.sources import find
from kleash.errors import InputError
from tests.audit.pairs import save_pair

TEXTS = ["abcd", "hgfedcba", "ab", "aabbaabbaabbccdd", "d"]


@torch.no_grad()
def nll(model: Path, text: str) -> tuple[float, int]:
    """By transformers' own loss, of the whole text at once."""
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(model)(text)["input_ids"]])
    count = ids.shape[1] - 1
    return float(loaded(input_ids=ids, labels=ids).loss) * count, count


def test_it_is_the_models_own_loss(tmp_path: Path) -> None:
    policy, reference = save_pair(tmp_path)
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    pair = Pair(find(str(policy)), find(str(reference)))
    rows = encode_texts(pair.tokenizer, str(path), load_texts(str(path)))
    found = retention(pair, str(path), rows)
    whole = [text for text in TEXTS if len(text) > 1]  # of one token nothing is predicted
    sums = [[nll(model, text)[0] for text in whole] for model in (policy, reference)]
    count = sum(nll(policy, text)[1] for text in whole)
    assert found["nll_policy"]["value"] == pytest.approx(sum(sums[0]) / count, rel=1e-5)
    assert found["nll_ref"]["value"] == pytest.approx(sum(sums[1]) / count, rel=1e-5)
    expected = (sum(sums[0]) - sum(sums[1])) / count
    assert found["increase"]["value"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (found["texts"], found["tokens"]) == (4, count)
    rises = [(a - b) / nll(policy, t)[1] for a, b, t in zip(*sums, whole, strict=True)]
    worst = max(range(4), key=lambda i: rises[i])
    assert found["worst"][0]["text"] == whole[worst]
    assert found["worst"][0]["increase"] == pytest.approx(rises[worst], rel=1e-3, abs=1e-6)


def test_a_text_longer_than_a_window_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token but the first is predicted once; a piece knows nothing of the one before."""
    policy, reference = save_pair(tmp_path)
    pair = Pair(find(str(policy)), find(str(reference)))
    monkeypatch.setattr(retain, "WINDOW", 4)
    text = "abcdefgh"
    found = retention(pair, "t.txt", encode_texts(pair.tokenizer, "t.txt", [text]))
    pieces = ["abcd", "defg", "gh"]
    expected = sum(nll(policy, piece)[0] for piece in pieces) / 7
    assert found["tokens"] == 7
    assert found["nll_policy"]["value"] == pytest.approx(expected, rel=1e-5)


def test_texts_that_say_nothing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\n\n")
    with pytest.raises(InputError, match="no texts"):
        load_texts(str(path))
    policy, _ = save_pair(tmp_path)
    with pytest.raises(InputError, match="two tokens"):
        encode_texts(AutoTokenizer.from_pretrained(policy), "t.txt", ["a"])


def test_prompts_with_their_answers_are_texts_too(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"text": "abc"}, {"prompt": "ab", "completion": "c"}, {"prompt": "a", "response": "bc"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_texts(str(path)) == ["abc"] * 3
