"""Configuration files: TOML in, a frozen record out, and every problem said at once.

A run is what its configuration says, so nothing is guessed: an unknown key is refused with the nearest valid name, a
number written as text is refused rather than converted.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from kleash.errors import ConfigError, InputError

C = TypeVar("C", bound=BaseModel)

_TYPES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}
_UNSET = object()
_WIDEST = 80
"""Characters of a value that a message shows."""


class _Problem(NamedTuple):
    where: str
    expected: str
    got: str
    do: str = ""


def load(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """The configuration in a TOML file, with `section.key=value` overrides on top.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is not TOML, an override is malformed, or the configuration cannot be run.
    """
    source = f"{path} with --set" if overrides else str(path)
    return build(model, override(read_toml(path), overrides), source)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the configuration {path}",
            expected="a TOML file",
            got=error.strerror or str(error),
            do="check the path",
        ) from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError too
        raise ConfigError(
            f"{path} is not TOML",
            expected='sections like [train], and under them lines like steps = 100 or name = "text"',
            got=str(error),
            do="correct the line named above",
        ) from error


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The tables with some values set: `section.key=value`, the value as in TOML; bare words are strings.

    Raises:
        ConfigError: an assignment is not of that form, or goes through something that is not a table.

    Examples:
        >>> override({"train": {"steps": 100}}, ["train.steps=3", "model.policy=my/model"])
        {'train': {'steps': 3}, 'model': {'policy': 'my/model'}}
    """
    result = dict(data)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *parents, key = [part.strip() for part in name.split(".")]
        if not equals or not all([*parents, key]):
            raise ConfigError(
                f"--set {assignment} sets nothing",
                expected="section.key=value",
                got=assignment,
                do="write it like --set train.steps=3",
            )
        table = result
        for parent in parents:
            inner = table.get(parent, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(
                    f"--set {assignment} goes through {parent}, which is not a section",
                    expected="section.key=value",
                    got=f"{parent} = {_shown(inner)}",
                )
            table[parent] = table = dict(inner)
        table[key] = _value(text.strip())
    return result


def build(model: type[C], data: Mapping[str, Any], source: str) -> C:
    """The configuration that tables spell out.

    Args:
        model: what to build, such as `RunConfig`.
        data: TOML tables.
        source: where they come from, for messages.

    Raises:
        ConfigError: some of it cannot be run; it names every problem.
    """
    try:
        # Through JSON, because pydantic's strict mode then still takes an array for a tuple.
        text = json.dumps(data, default=str)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{source} holds what no setting can be",
            expected="tables a few levels deep, and numbers of a few digits",
            got=str(error),
            do="remove it",
        ) from error
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _error(source, list(_problems(model, error))) from error


def resolved(config: BaseModel) -> dict[str, Any]:
    """Every setting, the defaults too, as JSON can carry it."""
    return config.model_dump(mode="json")


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _error(source: str, problems: Sequence[_Problem]) -> ConfigError:
    alone = len(problems) == 1

    def lines(field: int) -> str:
        """One field of every problem, a line each, headed by where the problem is."""
        found = [(problem.where, problem[field]) for problem in problems if problem[field]]
        return "\n".join(text if alone else f"{where}: {text}" for where, text in found)

    what = f"{source}: {problems[0].where} cannot be used" if alone else ""
    return ConfigError(
        what or f"{source} has {len(problems)} problems",
        expected=lines(1),
        got=lines(2),
        do=lines(3),
    )


def _problems(model: type[BaseModel], error: ValidationError) -> Iterator[_Problem]:
    """One problem a place: the branches of a union, which pydantic reports one by one, are joined."""
    found: dict[str, _Problem] = {}
    for detail in error.errors(include_url=False, include_context=False):
        problem = _problem(model, detail["loc"], detail["type"], detail["msg"], detail["input"])
        known = found.get(problem.where)
        if known is not None:
            problem = known._replace(expected=f"{known.expected}, or {problem.expected}")
        found[problem.where] = problem
    yield from found.values()


def _problem(
    model: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str, value: Any
) -> _Problem:
    path, table = _follow(model, location)
    where = ".".join(path) or "it"
    if kind == "extra_forbidden":
        return _unknown(model, table, path, value)
    if kind == "missing":
        return _Problem(where, "a value: it has no default", "nothing", f"set {where}")
    if kind == "model_type":
        return _Problem(where, f"a section: [{where}]", _shown(value))
    if kind == "value_error":
        return _refused(table, path, message.partition(", ")[2], value)
    return _Problem(where, message.removeprefix("Input should be "), _shown(value))


def _refused(table: type[BaseModel], path: list[str], said: str, value: Any) -> _Problem:
    """What a validator of ours says of a table begins with the setting that it is about: of that the value is shown."""
    found = re.match(r"(?:no )?\[?([a-z_]+(?:\.[a-z_]+)*)", said)
    names = found[1].split(".") if found else []
    if names[: len(path)] == path:
        names = names[len(path) :]
    if not (isinstance(value, Mapping) and names and names[0] in table.model_fields):
        return _Problem(".".join(path) or "it", said, _shown(value))
    inner: Any = value
    for name in names:
        inner = inner.get(name, _UNSET) if isinstance(inner, Mapping) else _UNSET
    got = "nothing: it is not set" if inner is _UNSET else _shown(inner)
    return _Problem(".".join([*path, *names]), said, got)


def _unknown(
    model: type[BaseModel], table: type[BaseModel], path: Sequence[str], value: Any
) -> _Problem:
    """A key that is not there: what is, and which one was probably meant."""
    *parents, key = path
    names = list(table.model_fields)
    renamed: dict[str, str] = getattr(table, "RENAMED", {})
    meant = [renamed[key]] if key in renamed else get_close_matches(key, names, n=1)
    near = [".".join([*parents, name]) for name in meant]
    near += [name for name in _paths(model) if name.rpartition(".")[2] == key]
    section = f"in [{'.'.join(parents)}]" if parents else "at the top"
    return _Problem(
        ".".join(path),
        f"{section} one of: {', '.join(names)}",
        f"{key} = {_shown(value)}",
        f"did you mean {near[0]}?"
        if near
        else "remove it, or see the documentation of the settings",
    )


def _follow(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[list[str], type[BaseModel]]:
    """The keys of a location, without pydantic's names of union branches, and the table the last one is in."""
    path: list[str] = []
    table = model
    for depth, part in enumerate(location, start=1):
        path.append(str(part))
        field = table.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        if depth < len(location):
            table = inner
    return path, table


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of a model, as `section.key`."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _paths(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _shown(value: Any) -> str:
    """A value as TOML would write it, cut to a line, with the name of its type."""
    kind = _TYPES.get(type(value), "a value of another kind")
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{text if len(text) <= _WIDEST else text[:_WIDEST] + '…'} ({kind})"
