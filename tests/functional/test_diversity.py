"""How different responses are: against nltk's BLEU, and at the ends of each scale."""

import random
from typing import Any

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from kleash.functional.diversity import distinct_n, self_bleu, unique_share


@pytest.mark.parametrize(("words", "seed"), [(3, 0), (6, 1), (30, 2)])
def test_self_bleu_is_nltks(words: int, seed: int) -> None:
    draw = random.Random(seed)
    rows = [[draw.randrange(words) for _ in range(draw.randrange(4, 15))] for _ in range(10)]
    smooth = SmoothingFunction(epsilon=0.5).method1
    theirs: list[Any] = [
        sentence_bleu([x for j, x in enumerate(rows) if j != i], row, smoothing_function=smooth)
        for i, row in enumerate(rows)
    ]
    assert self_bleu(rows) == pytest.approx(sum(theirs) / len(theirs))


def test_copies_and_strangers() -> None:
    copies = [[1, 2, 3, 4, 5]] * 6
    strangers = [[10 * i + j for j in range(5)] for i in range(6)]
    assert (self_bleu(copies), distinct_n(copies, 2), unique_share(copies, [0] * 6)) == (
        1.0,
        4 / 24,
        1 / 6,
    )
    assert (distinct_n(strangers, 2), unique_share(strangers, [0] * 6)) == (1.0, 1.0)
    found = self_bleu(strangers)
    assert found is not None
    assert found < 0.2


def test_where_there_is_nothing_to_compare() -> None:
    assert distinct_n([[1]], 2) is None
    assert unique_share([[1], [1]], [0, 1]) is None
    assert self_bleu([[1, 2, 3, 4]]) is None
    assert self_bleu([[1, 2, 3], [1, 2, 3]]) is None


def test_order_does_not_matter() -> None:
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9], [7, 2, 3, 4, 1]]
    assert self_bleu(rows) == pytest.approx(self_bleu(rows[::-1]))
