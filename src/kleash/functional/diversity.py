"""How different a policy's responses are from each other: what a policy loses as it collapses.

All take token ids and need no model. A value is None where there is nothing to compare.
"""

from collections import Counter
from collections.abc import Sequence
from math import exp, log

Tokens = Sequence[int]


def distinct_n(responses: Sequence[Tokens], n: int) -> float | None:
    """Share of n-grams that are different, over all responses (Li et al. 2016); 1 is no repetition.

    It falls with the number of tokens looked at, whoever wrote them: compare figures of as many responses.

    Examples:
        >>> distinct_n([[1, 2, 1, 2]], 2)
        0.6666666666666666
    """
    grams = [gram for row in responses for gram in _grams(row, n)]
    return len(set(grams)) / len(grams) if grams else None


def unique_share(responses: Sequence[Tokens], groups: Sequence[int]) -> float | None:
    """Different responses to one prompt over all responses to it, as a mean over prompts; 1: no two are alike.

    Args:
        responses: in tokens.
        groups: which prompt each answers.

    Returns:
        None where no prompt has two responses.

    Examples:
        >>> unique_share([[1], [1], [2], [3]], [0, 0, 1, 1])
        0.75
    """
    of_prompt: dict[int, list[tuple[int, ...]]] = {}
    for row, group in zip(responses, groups, strict=True):
        of_prompt.setdefault(group, []).append(tuple(row))
    shares = [len(set(rows)) / len(rows) for rows in of_prompt.values() if len(rows) > 1]
    return sum(shares) / len(shares) if shares else None


def self_bleu(responses: Sequence[Tokens], order: int = 4) -> float | None:
    """How far each response is made of pieces of the others: the mean of BLEU against them; 1: of nothing else.

    Zhu et al. 2018, arXiv 1802.01886: for each response exp(1/N Σ_n log p_n) with p_n the share of its n-grams that
    another has as often, times BLEU's penalty for being shorter than the others. Where no n-gram of a length is found
    again, half a one is counted (as "smoothing 1" of Chen & Cherry 2014 with ε = ½).

    Args:
        responses: in tokens.
        order: N, the longest n-gram; a response shorter than that has no value.

    Returns:
        None where fewer than two responses are that long.

    Examples:
        >>> self_bleu([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
        1.0
        >>> round(self_bleu([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]), 4)
        0.6687
    """
    rows = [tuple(row) for row in responses if len(row) >= order]
    if len(rows) < 2:
        return None
    logs = [0.0] * len(rows)
    for n in range(1, order + 1):
        counts = [Counter(_grams(row, n)) for row in rows]
        most = _two_most(counts)
        for i, own in enumerate(counts):
            found = sum(min(count, _of_others(most[gram], i)) for gram, count in own.items())
            logs[i] += log((found or 0.5) / sum(own.values())) / order
    lengths = [len(row) for row in rows]
    scores = [
        exp(value + min(0.0, 1 - _nearest(lengths, i) / lengths[i])) for i, value in enumerate(logs)
    ]
    return sum(scores) / len(scores)


def _grams(row: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def _two_most(
    counts: Sequence[Counter[tuple[int, ...]]],
) -> dict[tuple[int, ...], tuple[int, int, int]]:
    """Of each n-gram, how often the response that has most of it has it, which that is, and how often the next has."""
    most: dict[tuple[int, ...], tuple[int, int, int]] = {}
    for i, own in enumerate(counts):
        for gram, count in own.items():
            first, who, second = most.get(gram, (0, -1, 0))
            if count > first:
                most[gram] = count, i, first
            elif count > second:
                most[gram] = first, who, count
    return most


def _of_others(most: tuple[int, int, int], i: int) -> int:
    first, who, second = most
    return second if who == i else first


def _nearest(lengths: Sequence[int], i: int) -> int:
    """The length of another response that is nearest to this one's; of two the shorter."""
    return min(
        (length for j, length in enumerate(lengths) if j != i),
        key=lambda length: (abs(length - lengths[i]), length),
    )
