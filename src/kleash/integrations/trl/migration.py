"""An old TRL configuration as one of `kleash train`'s, with what could not come along and what now means another thing.

    found = migrate(read_settings(path))
    found.tables, found.left, found.unknown, found.differs

Nothing is dropped without a word: each key is carried, left with a reason, or listed as unknown.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kleash.errors import ConfigError, InputError
from kleash.rewards.checks import shown

MAX_BYTES = 1 << 20
"""Of a configuration file: the largest that anybody wrote by hand is a thousandth of it."""

Convert = Callable[[Any], Any]
"""A setting's value as kleash has it; raises ValueError with the reason where it can't be had."""


class Carried(NamedTuple):
    """Where a key of TRL's goes."""

    to: str
    """`section.key`."""
    convert: Convert


class Left(NamedTuple):
    """A key that was not carried."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """One of TRL's ways to configure reinforcement learning."""

    name: str
    title: str
    carried: Mapping[str, Carried]
    defaults: Mapping[str, Any]
    """What TRL does where nothing is said, of all that decides the result."""
    left: Mapping[str, str]
    """Keys that have no counterpart, and why."""
    derive: Callable[["Draft"], None]
    """What follows from several keys at once."""

    @property
    def known(self) -> set[str]:
        """Keys that decide something in it: by how many of these are there it is told from the others."""
        return {*self.carried, *self.defaults}


@dataclass(slots=True)
class Draft:
    """A configuration that is being written."""

    given: Mapping[str, Any]
    """What the file says."""
    dialect: Dialect
    tables: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    left: list[Left] = field(default_factory=list[Left])
    unknown: list[Left] = field(default_factory=list[Left])
    differs: list[str] = field(default_factory=list[str])
    """What means, or is by default, something else in kleash: a sentence each."""
    used: set[str] = field(default_factory=set[str])

    def put(self, to: str, value: Any) -> None:
        """Sets a setting, as `section.key` or `section.table.key`."""
        *parents, key = to.split(".")
        table: dict[str, Any] = self.tables
        for parent in parents:
            table = table.setdefault(parent, {})
        table[key] = value

    def take(self, key: str, convert: Convert) -> Any:
        """A key's value, or TRL's default; None where it can't be had, which is noted."""
        self.used.add(key)
        value = self.given.get(key)
        value = self.dialect.defaults.get(key) if value is None else value
        if value is None:
            return None
        try:
            return convert(value)
        except ValueError as error:
            self.left.append(Left(key, value, str(error)))
            default = self.dialect.defaults.get(key)
            return None if default is None or key not in self.given else convert(default)

    def leave(self, key: str, why: str) -> None:
        """Notes of a key that is there that it was not carried."""
        self.used.add(key)
        if key in self.given:
            self.left.append(Left(key, self.given[key], why))


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a YAML, JSON or TOML file. Nothing in it is executed, and no object is built.

    Raises:
        InputError: it can't be read, is none of these, or holds no keys.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read the configuration {path}",
            expected="a YAML, JSON or TOML file",
            got=error.strerror or str(error),
            do="check the path",
        ) from error
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{path} is too long", expected=f"at most {MAX_BYTES} bytes", got="more than that"
        )
    try:
        data = _parse(content.decode("utf-8"), path.suffix.lower())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not what its ending says",
            expected="YAML (.yaml, .yml), JSON (.json) or TOML (.toml)",
            got=str(error)[:300],
        ) from error
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):  # pyright: ignore[reportUnknownVariableType]
        raise InputError(
            f"{path} holds no settings", expected="keys and their values", got=shown(data)
        )
    return dict(data)  # pyright: ignore[reportUnknownArgumentType]


def _parse(text: str, ending: str) -> Any:
    if ending == ".json":
        return json.loads(text)
    if ending == ".toml":
        return tomllib.loads(text)
    if ending not in (".yaml", ".yml"):
        raise ValueError(f"the ending {ending!r}")
    import yaml  # with kleash[train]: JSON and TOML need nothing

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def migrate(
    settings: Mapping[str, Any], dialects: Mapping[str, Dialect], name: str | None = None
) -> Draft:
    """The draft of a configuration.

    Args:
        settings: TRL's, flat.
        dialects: that there are.
        name: which it is in; None: to be told by its keys.

    Raises:
        ConfigError: there is no such dialect, or the keys don't tell.
    """
    dialect = dialects.get(name) if name else _told_by(settings, dialects)
    if dialect is None:
        raise ConfigError(
            f"there is no configuration {name!r} of TRL's",
            expected=", ".join(dialects),
            got=shown(name),
        )
    draft = Draft(settings, dialect)
    for key in (*settings, *dialect.defaults):
        rule = dialect.carried.get(key)
        if rule is None or key in draft.used:
            continue
        value = draft.take(key, rule.convert)
        if value is not None:
            draft.put(rule.to, value)
    dialect.derive(draft)
    for key, value in settings.items():
        if key in dialect.left:
            draft.left.append(Left(key, value, dialect.left[key]))
        elif key not in draft.used:
            draft.unknown.append(Left(key, value, "not a setting that is known here"))
    return draft


def _told_by(settings: Mapping[str, Any], dialects: Mapping[str, Dialect]) -> Dialect:
    """The dialect whose own keys are there most."""
    votes = {name: len(each.known & settings.keys()) for name, each in dialects.items()}
    most = max(votes.values())
    best = [name for name, count in votes.items() if count == most]
    if most == 0 or len(best) > 1:
        raise ConfigError(
            "the keys don't tell which of TRL's configurations this is",
            expected=f"keys of one of {', '.join(dialects)}",
            got=shown(list(settings)),
            do=f"say which: --from {best[0]}",
        )
    return dialects[best[0]]


def number(low: float = -math.inf, high: float = math.inf, *, closed: str = "") -> Convert:
    """Converts to a finite number above `low` and below `high`; the ends named in `closed` count in.

    Examples:
        >>> number(0, 1, closed="high")("1e-5")  # as YAML reads it without a point
        1e-05
    """

    def convert(value: Any) -> float:
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        over = found > low or ("low" in closed and found == low)
        under = found < high or ("high" in closed and found == high)
        if not (math.isfinite(found) and over and under):
            raise ValueError(f"kleash takes a number from {low:g} to {high:g} here")
        return found

    return convert


def whole(low: int, high: int = 10**9) -> Convert:
    """Converts to a whole number from `low` to `high`.

    Examples:
        >>> whole(1)(4.0)
        4
    """
    check = number(low, high, closed="low high")

    def convert(value: Any) -> int:
        try:
            found = check(value)
        except ValueError:
            found = math.nan
        if found != found or found != int(found):
            raise ValueError(f"kleash takes a whole number from {low} to {high} here")
        return int(found)

    return convert


def text(value: Any) -> str:
    """A name that TOML can hold."""
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise ValueError("kleash takes a name here")
    if re.search(r"[\ud800-\udfff]", value):
        raise ValueError("no file can hold this name")
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("kleash takes true or false here")
    return value


def render(draft: Draft, source: str) -> str:
    """The configuration as TOML, its remarks above it, a comment line each.

    Args:
        draft: of `migrate`.
        source: the name of the file that it comes from.
    """
    lines = [f"# From {draft.dialect.title}: {_comment(source)}."]
    lines += ["#", "# Other than there:"] if draft.differs else []
    lines += [f"# - {_comment(each)}" for each in draft.differs]
    lines += ["#", "# Not carried over:"] if draft.left else []
    lines += [f"# - {_said(each)}: {_comment(each.why)}" for each in draft.left]
    lines += ["#", "# Unknown, and so not carried over:"] if draft.unknown else []
    lines += [f"# - {_said(each)}" for each in draft.unknown]
    for name, table in draft.tables.items():
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in plain.items())]
        for inner, values in table.items():
            if isinstance(values, dict):
                pairs: dict[str, Any] = values  # pyright: ignore[reportUnknownVariableType]
                lines += ["", f"[{name}.{inner}]"]
                lines += [f"{key} = {_toml(value)}" for key, value in pairs.items()]
    return "\n".join([*lines, ""])


def _said(left: Left) -> str:
    return f"{_comment(left.key[:80])} = {_comment(shown(left.value))}"


def _comment(value: str) -> str:
    """Text that stays on its line, whatever is in it."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
