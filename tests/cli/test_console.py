"""What a person sees, what a program reads, and what a hostile text cannot do to either."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from kleash.cli.console import Screen, jsonable, kl_text, line, plain
from kleash.errors import ConfigError, KleashError

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202ereversed\u2066[bold red]markup[/] {0}\r"
CONTROLS = {chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} - {"\n", "\t"}
FORBIDDEN = CONTROLS | set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert not FORBIDDEN & set(plain(text))
    assert "\n" not in line(text)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_hostile_text_reaches_no_channel(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.say(HOSTILE)
    screen.note(HOSTILE)
    screen.check(passed=False, text=HOSTILE)
    screen.table({"name": "left"}, [[HOSTILE]])
    screen.error(ConfigError(HOSTILE, expected=HOSTILE, got=HOSTILE, do=HOSTILE))
    with screen.progress() as steps:
        steps.show(HOSTILE, 1, 1, HOSTILE)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert not FORBIDDEN & set(text)
        assert "[bold red]markup[/]" in text.replace("\n", "")


def test_a_bar_shows_hostile_text_as_text() -> None:
    screen = Screen()
    screen._err = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    with screen.progress() as steps:
        steps.show(HOSTILE, 1, 2, Text("[bold]figures"))
    assert isinstance(screen._err.file, io.StringIO)
    drawn = screen._err.file.getvalue()
    assert "[bold red]markup[/] {0}" in drawn
    assert "[bold]figures" in drawn
    assert "owned\x07" not in drawn
    assert "1/2" in drawn


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(as_json=True)
    screen.say("for people")
    screen.check(passed=True, text="for people")
    screen.table({"name": "left"}, [["for people"]])
    with screen.progress() as steps:
        steps.show("work", 1, 1)
    screen.document({"kl": float("inf"), "text": HOSTILE, "steps": (1, None)})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"kl": "inf", "text": HOSTILE, "steps": [1, None]}
    assert captured.out.isascii()
    assert "work" in captured.err


def test_an_error_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).error(ConfigError("no", expected="this", got="that", do="so"))
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {"what": "no", "expected": "this", "got": "that", "do": "so"},
        "exit_code": 2,
    }
    assert "no" in captured.err


def test_an_error_fits_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    long = "\n".join(["x" * 10_000] * 1000)
    Screen().error(KleashError("what", expected="short", got=long))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 50
    assert any("and 990 more" in text for text in lines)


@pytest.mark.parametrize(
    ("value", "style"), [(3.2, "green"), (4.8, "green"), (3.19, "yellow"), (4.81, "yellow")]
)
def test_the_leash_has_a_colour(value: float, style: str) -> None:
    assert kl_text(value, None, None, 4.0).style == style


def test_without_a_target_there_is_nothing_to_hold() -> None:
    text = kl_text(9.0, 8.0, 10.0, None)
    assert (text.plain, text.style) == ("9.00 [8.00, 10.00] nats", "")
    assert kl_text(None, None, None, 4.0).plain == "– nats"


def test_where_there_is_no_terminal_progress_is_a_few_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Screen().progress() as steps:
        for step in range(1, 1001):
            steps.show("training", step, 1000, "reward 0.10")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training 100/1000 reward 0.10"
    assert len(lines) == 10


def test_infinity_is_a_word_in_json() -> None:
    assert jsonable([float("nan"), -float("inf"), 1.5]) == ["nan", "-inf", 1.5]
