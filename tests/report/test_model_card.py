"""A block for a model card: the same figures, a command that measures them again, and text that stays text."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.audit.config import CompareConfig
from kleash.report import drift_card
from kleash.report.model_card import USUAL, command, markdown, quoted
from tests.report.comparing import SETTINGS, comparison_document, limited, with_text
from tests.report.test_html import HOME

Payloads = Callable[[str], list[str]]
GOLDEN = Path(__file__).parents[1] / "golden" / "model-card.md"


def test_the_card_is_as_it_was() -> None:
    limits = limited(("all", 5.0, "response"), ("films", 0.5, "token"))
    document = comparison_document(**limits, search=None)
    assert drift_card(document) == GOLDEN.read_text(encoding="utf-8")


def test_a_bare_document_has_a_card() -> None:
    card = drift_card({})
    assert "None" not in card
    assert "**No limit was set.**" in card
    assert "| 0" not in card


def test_the_settings_of_the_tests_are_those_of_the_configuration() -> None:
    elsewhere = {"policy", "reference", "prompts", "limits", "retain", "show", "null"}
    assert set(SETTINGS) == set(CompareConfig.model_fields) - elsewhere


@pytest.mark.slow  # it imports torch
def test_what_is_taken_for_usual_is_what_compare_takes() -> None:
    from kleash.audit.compare import resolved
    from kleash.audit.sources import Source

    config = CompareConfig(policy="a", reference="b", prompts="p.txt")
    found = resolved(config, Source(name="a", load="a", kind="model"))
    assert {name: getattr(found, name) for name in USUAL} == USUAL


def test_a_run_has_its_settings_said_in_full() -> None:
    document = comparison_document()
    assert "--temperature" not in command(document)
    document["policy"]["kind"] = "run"
    assert "--max-new-tokens 64 --temperature 1 --no-chat" in command(document)


def test_limits_are_said_as_they_are_written() -> None:
    limits = limited(("all", 5.25, "response"), ("one prompt", 0.1, "token"))
    words = shlex.split(command(comparison_document(**limits)))
    given = [words[i + 1] for i, word in enumerate(words) if word == "--limit"]
    assert given == ["5.25", "one prompt=0.1/token"]


def test_a_name_is_no_option() -> None:
    document = comparison_document()
    document["policy"]["name"] = "--out"
    assert shlex.split(command(document))[-3:] == ["--", "--out", "acme/base"]


@pytest.mark.parametrize(
    "text", ["plain", "it's", "a\nb", "\x1b[31m", "π‖π", "$(id)`id`", "a\\b'\n", "\u202ex", "日本"]
)
def test_a_shell_reads_the_argument_as_it_was(text: str) -> None:
    line = quoted(text)
    assert "\n" not in line
    assert not set(line) & {"\x1b", "\u202e"}
    script = f"printf %s {line}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode() == text


@given(st.text(st.characters(exclude_categories=())))
def test_text_stays_text(text: str) -> None:
    shown = markdown(text)
    assert "\n" not in shown
    assert not set(shown) & set("<>[]$@\r\x1b\u202e")
    assert not re.search(r"(?<!\\)(\\\\)*[`*|~]", shown)
    assert not re.search(r"&(?!#\d+;)", shown)
    assert "://" not in shown


def test_a_hostile_document_adds_no_line_and_no_column(xss: Payloads) -> None:
    plain = shape("plain")
    for payload in [*xss(HOME), "a|b|c", "```\n# x", "\n\n- x\n", "[x](y)", "![x](y)", "--- |"]:
        assert shape(payload) == plain


def shape(text: str) -> list[Any]:
    """What each line of the card begins with, and how many columns it has; the command is one line."""
    document: Any = comparison_document(**limited(("films", 5.0, "response")))
    lines = drift_card(with_text(document, text)).split("\n")
    return [
        (line.split(" ")[:1] if not line.startswith("kleash") else "kleash", len(bars(line)))
        for line in lines
    ]


def bars(line: str) -> list[str]:
    return [] if line.startswith("kleash") else re.findall(r"(?<!\\)\|", line)
