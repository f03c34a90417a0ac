"""Words and numbers as the page shows them. Model text is hostile: what cannot be seen is made visible."""

import math
from collections.abc import Mapping, Sequence
from html import escape

DASH = "–"
"""Stands for a number that was not measured."""

_HIDDEN = (
    *range(0x80, 0xA0),  # C1 controls
    *(0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0x2060, 0xFEFF),  # invisible
    *range(0x202A, 0x202F),  # bidirectional overrides: text that reads otherwise than it is written
    *range(0x2066, 0x206A),
)
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE = (
    _PICTURES
    | {0x7F: "\u2421"}
    | {code: f"⟨U+{code:04X}⟩" for code in _HIDDEN}
    | dict.fromkeys((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\ufffd")
)


def visible(text: str) -> str:
    r"""Text with control, invisible and text-reversing characters replaced by signs one can see.

    Examples:
        >>> visible("a\x1b[31m\u202eb")
        'a␛[31m⟨U+202E⟩b'
    """
    return text.translate(_VISIBLE)


def token_text(text: str) -> str:
    r"""A token by itself, its spaces and line ends as signs too.

    Examples:
        >>> token_text(" good"), token_text("\n\n"), token_text("\u00a0")
        ('␣good', '↵↵', '⟨U+00A0⟩')
    """
    signs = {" ": "␣", "\n": "↵", "\t": "⇥"}
    return "".join(
        signs.get(sign) or (f"⟨U+{ord(sign):04X}⟩" if sign.isspace() else sign)
        for sign in visible(text)
    )


def shorten(text: str, width: int) -> str:
    """Text cut to `width` characters, the last one an ellipsis.

    Examples:
        >>> shorten("adaptive", 5)
        'adap…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def short_name(scorer: str) -> str:
    """The last part of a scorer's name.

    Examples:
        >>> short_name("tiny-reviews/gold")
        'gold'
    """
    return scorer.rstrip("/").rpartition("/")[2] or scorer


def chart_text(text: str, width: int = 24) -> str:
    """Text for inside a figure, where plotly would read tags, links and line breaks.

    Examples:
        >>> chart_text("<b>free</b>")
        '&lt;b&gt;free&lt;/b&gt;'
    """
    return escape(shorten(visible(text).replace("\n", " "), width), quote=False)


def number(value: float | None) -> str:
    """A measured number, to the digits worth reading.

    Examples:
        >>> [number(value) for value in (None, 4.1034, -0.0042, 1234.5, 12)]
        ['–', '4.10', '−0.0042', '1,234', '12']
    """
    if value is None:
        return DASH
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        text = f"{value:,.0f}"
    elif abs(value) < 0.1 or abs(value) >= 1e6:
        text = f"{value:.2g}"
    else:
        text = f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    """A measured number that may go either way, with its sign.

    Examples:
        >>> [signed(value) for value in (0.25, -0.25, 0.0, -0.0, None)]
        ['+0.25', '−0.25', '0', '0', '–']
    """
    if value is None or not value:
        return number(None if value is None else 0.0)
    return f"+{number(value)}" if value > 0 else number(value)


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A measured number with its interval, where there is one.

    Examples:
        >>> interval(4.1, 3.8, 4.4), interval(4.1, None, None)
        ('4.10 [3.80, 4.40]', '4.10')
    """
    if value is None or low is None or high is None:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


STEPS = 8
"""Steps that are named one by one."""


def steps_told(steps: Sequence[int]) -> str:
    """Steps by their numbers, up to as many as a person reads.

    Examples:
        >>> steps_told([3, 5]), steps_told(range(1, 12))
        ('3, 5', '1, 2, 3, 4, 5, 6, 7, 8 and 3 more')
    """
    more = len(steps) - STEPS
    return ", ".join(map(str, steps[:STEPS])) + (f" and {more} more" if more > 0 else "")


VERDICTS = {
    "accept": "accepted",
    "shrink": "shortened",
    "reject": "refused",
    "rollback": "rolled back",
    "halt": "halted",
}
"""The guard's verdicts as a person would say them."""


def verdict_counts(counts: Mapping[str, int]) -> str:
    """How many updates were accepted, and what became of the others.

    Examples:
        >>> verdict_counts({"shrink": 2, "accept": 1200})
        '1,200 accepted, 2 shortened'
    """
    known = [f"{number(counts[key])} {word}" for key, word in VERDICTS.items() if counts.get(key)]
    return ", ".join(known) or "none"
