"""The fifty numeric pitfalls of KL penalties that other trainers fell into: each has a test that names its number.

A test says so in its docstring, as in "Pitfall 7: …" or "Pitfalls 8, 9 and 10".
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

WITHOUT = {
    45: "sharded parameters: of several processes each holds the whole model",
}
"""Pitfalls of what kleash does not do (yet), and why there is no test."""


def numbers(text: str) -> set[int]:
    """The pitfalls that a docstring names.

    >>> sorted(numbers("Pitfalls 8-10, 41 and 42; T9"))
    [8, 9, 10, 41, 42]
    """
    found: set[int] = set()
    for listed in re.findall(r"[Pp]itfalls? ((?:\d+(?: to |-|–|, | and )?)+)", text):
        for first, last in re.findall(r"(\d+)(?:(?: to |-|–)(\d+))?", listed):
            found |= set(range(int(first), int(last or first) + 1))
    return found


@cache
def named() -> set[int]:
    """The numbers that docstrings of test functions name."""
    found: set[int] = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found |= numbers(ast.get_docstring(node) or "")
    return found


@pytest.mark.parametrize("number", sorted(set(range(1, 51)) - WITHOUT.keys()))
def test_every_pitfall_has_a_test_that_names_it(number: int) -> None:
    assert number in named()


def test_what_has_a_test_is_not_listed_as_without() -> None:
    assert not named() & WITHOUT.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Pitfall 7: x", {7}), ("pitfalls 21 to 23)", {21, 22, 23}), ("T9: 12 rows", set())],
)
def test_numbers_are_read_as_written(text: str, expected: set[int]) -> None:
    assert numbers(text) == expected
