"""Where two models part, where it is known."""

from pathlib import Path

import pytest
import torch

from kleash.audit.pair import Pair, encode
from kleash.audit.prompts import Prompt
from kleash.audit.sources import find
from kleash.audit.where import side_by_side
from tests.audit.pairs import END, VOCAB, save_pair, save_unigram
from tests.train.small import save_small_model


def pair_of(policy: Path, reference: Path) -> Pair:
    return Pair(find(str(policy)), find(str(reference)))


def test_greedy_answers_are_the_likeliest_tokens_in_turn(tmp_path: Path) -> None:
    policy, reference = save_pair(tmp_path)
    pair = pair_of(policy, reference)
    prompts = [Prompt(text) for text in ("abc", "d", "hg")]
    rows = encode(pair, prompts, 4, None)
    shown = side_by_side(pair, prompts, rows, [2, 0, 1], 4)
    assert [each["prompt"] for each in shown] == ["hg", "abc", "d"]
    for each, row in zip(shown, [rows[2], rows[0], rows[1]], strict=True):
        for name, side, other in (
            ("policy", pair.policy(), pair.reference()),
            ("reference", pair.reference(), pair.policy()),
        ):
            ids = torch.tensor([row])
            for token, kl in zip(each[name]["tokens"], each[name]["kl"], strict=True):
                with torch.no_grad():
                    own, theirs = (
                        m.model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
                        for m in (side, other)
                    )
                assert token == pair.tokenizer.decode([int(own.argmax())])
                expected = float((own.exp() * (own - theirs)).sum())
                assert kl == pytest.approx(expected, rel=1e-4, abs=1e-6)
                ids = torch.cat([ids, own.argmax()[None, None]], 1)
        assert each["same"] == (each["policy"]["tokens"] == each["reference"]["tokens"])


def test_nobody_is_asked_where_nothing_is_to_be_shown(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "m")
    assert side_by_side(pair_of(model, model), [], [], [], 4) == []


def test_the_kl_of_an_answer_is_at_temperature_one(tmp_path: Path) -> None:
    """Answers are greedy; how far the models disagree there is not a matter of that."""
    logits, small = torch.linspace(-1.0, 1.0, VOCAB), save_small_model(tmp_path / "small")
    policy = save_unigram(small, tmp_path / "policy", logits)
    reference = save_unigram(small, tmp_path / "reference", 2 * logits)
    pair, prompts = pair_of(policy, reference), [Prompt("a")]
    (shown,) = side_by_side(pair, prompts, encode(pair, prompts, 3, None), [0], 3)
    q, p = ((scale * logits.double()).softmax(-1) for scale in (1, 2))
    assert q.argmax() != END
    assert shown["policy"]["kl"] == pytest.approx([float((q * (q / p).log()).sum())] * 3, rel=1e-5)
    assert shown["reference"]["kl"] == pytest.approx(
        [float((p * (p / q).log()).sum())] * 3, rel=1e-5
    )
