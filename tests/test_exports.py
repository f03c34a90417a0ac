"""What a room says it offers is what it offers. (ruff keeps the lists sorted.)"""

import ast
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "kleash"
ROOMS = sorted(
    path.parent.name
    for path in SOURCE.glob("*/__init__.py")
    if "__all__" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("room", ROOMS)
def test_all_is_true(room: str) -> None:
    module = importlib.import_module(f"kleash.{room}")
    assert len(module.__all__) == len(set(module.__all__))
    assert not [name for name in module.__all__ if not hasattr(module, name)]


@pytest.mark.parametrize("room", ROOMS)
def test_all_names_everything_the_room_brings_in(room: str) -> None:
    tree = ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8"))
    public = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kleash")
        for alias in node.names
    }
    assert public <= set(importlib.import_module(f"kleash.{room}").__all__)
