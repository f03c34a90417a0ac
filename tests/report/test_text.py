"""Nothing hidden stays hidden, and nothing unmeasured looks like a number."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from kleash.report.text import chart_text, interval, number, signed, token_text, visible


@given(st.text(st.characters(exclude_categories=())))
def test_visible_text_has_nothing_to_hide(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not {c for c in shown if unicodedata.category(c) in {"Cc", "Cs"}} - {"\n", "\t"}
    assert not set(shown) & set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\ufeff"
    )
    assert visible(shown) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_a_token_shows_every_space_it_has(text: str) -> None:
    shown = token_text(text)
    assert not any(sign.isspace() for sign in shown)
    assert visible(shown) == shown
    assert bool(shown) == bool(text)


@given(st.text())
def test_chart_text_has_no_markup(text: str) -> None:
    assert not set(chart_text(text)) & set("<>\n")


def test_joiners_and_other_scripts_are_left_alone() -> None:
    for text in ("👩‍🚀", "naïve", "日本語", "می‌خواهم", "π‖π_ref", "a\n\tb"):
        assert visible(text) == text


def test_numbers() -> None:
    assert number(0.0) == "0"
    assert number(None) == "–"
    assert number(float("nan")) == "nan"
    assert number(float("-inf")) == "-inf"
    assert number(-1e9) == "−1e+09"
    assert signed(float("nan")) == "nan"
    assert signed(float("inf")) == "+inf"
    assert signed(-0.0) == "0"
    assert interval(4.0, 3.5, None) == "4"
    assert interval(None, 3.5, 4.5) == "–"
