"""Broken texts, which teach the gold model what no person would write.

A policy that is pushed hard against a learned reward leaves language behind: it loops, and it
strings pleasing fragments together. A gold model that has read real text only cannot tell, and
would applaud. So each text here keeps a part that is real and breaks the rest, and its score falls
with the share that is broken. Texts are lists of words or of tokens alike.
"""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")  # a word or a token

SMALLEST_SHARE = 0.2  # of a text that is broken
LONGEST_FRAGMENT = 3  # words or tokens
LARGEST_POOL = 6  # fragments that a loop turns over
ALIEN = 0.1  # of the fragments in a loop come from anywhere


class Broken(NamedTuple, Generic[T]):
    """One broken text."""

    text: list[T]
    source: int  # the text that it was made from
    share: float  # of it that is broken


def fragment(texts: Sequence[list[T]], rng: Random) -> list[T]:
    """A few neighbouring words from anywhere in `texts`."""
    text = rng.choice(texts)
    length = rng.randint(1, LONGEST_FRAGMENT)
    start = rng.randrange(max(1, len(text) - length + 1))
    return text[start : start + length]


def shuffle(text: list[T], count: int, _: Sequence[list[T]], rng: Random) -> list[T]:
    """Words of the text itself in another order."""
    positions = rng.sample(range(len(text)), count)
    words = [text[p] for p in positions]
    rng.shuffle(words)
    moved = dict(zip(positions, words, strict=True))
    return [moved.get(i, word) for i, word in enumerate(text)]


def replace(text: list[T], count: int, others: Sequence[list[T]], rng: Random) -> list[T]:
    """Single words swapped for those of other texts."""
    positions = set(rng.sample(range(len(text)), count))
    return [
        rng.choice(rng.choice(others)) if i in positions else word for i, word in enumerate(text)
    ]


def patch(text: list[T], count: int, others: Sequence[list[T]], rng: Random) -> list[T]:
    """The end replaced by fragments of many other texts."""
    tail: list[T] = []
    while len(tail) < count:
        tail += fragment(others, rng)
    return text[: len(text) - count] + tail[:count]


def loop(text: list[T], count: int, others: Sequence[list[T]], rng: Random) -> list[T]:
    """The end replaced by the same few fragments again and again."""
    source = [text] if rng.random() < 0.5 else others
    pool = [fragment(source, rng) for _ in range(rng.randint(1, LARGEST_POOL))]
    tail: list[T] = []
    while len(tail) < count:
        tail += fragment(others, rng) if rng.random() < ALIEN else rng.choice(pool)
    return text[: len(text) - count] + tail[:count]


BREAKERS: tuple[Callable, ...] = (shuffle, replace, patch, loop)


def break_texts(texts: list[list[T]], positive: list[bool], rng: Random) -> list[Broken[T]]:
    """Breaks each text once, with fragments of texts of the same label.

    Args:
        texts: Lists of words, or of tokens without the special ones.
        positive: Their labels.
        rng: Draws how each is broken, and how far.

    Returns:
        One broken text for each that has two words or more.
    """
    others = {
        label: [text for text, p in zip(texts, positive, strict=True) if p is label and text]
        for label in (True, False)
    }
    broken = []
    for i, (text, label) in enumerate(zip(texts, positive, strict=True)):
        if len(text) < 2:
            continue
        count = max(2, math.ceil(rng.uniform(SMALLEST_SHARE, 1) * len(text)))
        result = rng.choice(BREAKERS)(text, count, others[label], rng)
        broken.append(Broken(result, i, count / len(text)))
    return broken
