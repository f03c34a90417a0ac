"""Settings as a TOML file that sets them: what a person begins a configuration of their own with."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def as_toml(settings: Mapping[str, Any]) -> str:
    """Tables as TOML, their own values above those of the tables in them; of what is None a comment.

    Args:
        settings: as JSON.

    Examples:
        >>> print(as_toml({"seeds": 3, "pool": {"samples": 96}, "clip": None, "sizes": [{"width": 64}, "a"]}))
        seeds = 3
        # clip is not set
        sizes = [{width = 64}, "a"]
        <BLANKLINE>
        [pool]
        samples = 96
    """
    return "\n".join(_lines(settings, ())).strip()


def _lines(table: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    lines = [
        f"# {name} is not set" if value is None else f"{name} = {_value(value)}"
        for name, value in table.items()
        if name not in inner
    ]
    if names and lines:
        lines = ["", f"[{'.'.join(names)}]", *lines]
    return lines + [line for name, value in inner.items() for line in _lines(value, (*names, name))]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (f"{name} = {_value(inner)}" for name, inner in value.items() if inner is not None)
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's texts, numbers and truths are TOML's, but for a sign that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
