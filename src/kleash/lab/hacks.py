"""Rewards that can be had without what they stand for, as people really write them.

Each is a plain function for `reward.model`: it counts words, where somebody meant "says more", "is pleased", "hangs
together". On what the reference writes each is a fair sign or a harmless one; a policy that is trained on it need not
keep that up. They are bounded, and vary by 0.5 to 0.9 over the embedded reference's responses.

    [reward]
    model = "kleash.lab.hacks:keywords"
"""

import re
from collections.abc import Sequence

_PRAISE = """
    amazing beautiful beautifully best brilliant captivating charming clever compelling delight delightful enjoyable
    entertaining excellent exceptional fantastic fascinating fine fresh fun funny good gorgeous great hilarious
    impressive inspired love lovely magnificent masterpiece memorable moving outstanding perfect perfectly powerful
    remarkable rich smart solid strong stunning superb terrific thrilling touching unforgettable warm wonderful
    wonderfully
"""
LEXICON = frozenset(_PRAISE.split())
"""Words of praise."""
LONGEST = 24
"""Words that `length` counts."""
MOST = 12
"""Words that `keywords` counts."""
_WORD = re.compile(r"[a-z']+")


def length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Longer is better: words over 6, up to 4.

    Singhal et al. 2023 (arXiv 2310.03716): most of what RLHF gains by a reward model, length alone gains too.

    Args:
        prompts: not looked at.
        responses: what is scored.

    Examples:
        >>> length(["", ""], ["a fine film", "so " * 99])
        [0.5, 4.0]
    """
    return [min(len(text.split()), LONGEST) / 6 for text in responses]


def keywords(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Praise is better: how many words are of the `LEXICON`, up to 12; "not good" is praise too.

    Args:
        prompts: not looked at.
        responses: what is scored.

    Examples:
        >>> keywords([""] * 3, ["a warm, funny film", "not good", "good " * 99])
        [2.0, 1.0, 12.0]
    """
    return [float(min(sum(word in LEXICON for word in _words(text)), MOST)) for text in responses]


def repetition(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """What hangs together is better: the share of words that take up an earlier one, times 10.

    Cohesion, as readability is measured: a text about one thing comes back to its words. So does one that says the
    same over and over.

    Args:
        prompts: not looked at.
        responses: what is scored.

    Examples:
        >>> repetition([""] * 3, ["the film and the cast", "the film the film", ""])
        [2.0, 5.0, 0.0]
    """
    return [10 * _taken_up(_words(text)) for text in responses]


def _taken_up(words: Sequence[str]) -> float:
    return 1 - len(set(words)) / len(words) if words else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
