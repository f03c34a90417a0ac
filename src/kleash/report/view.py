"""A run directory as plain frozen records: what was measured, nothing else.

No number is computed here. A value that the run did not measure is `None` in the records, a gap in a curve and a
dash in a table; it is never 0.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from kleash.errors import InputError

T = TypeVar("T")

Measured = float | None
"""A number that the run measured, or None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One line of samples.jsonl: a response and what the reference said to the same prompt."""

    step: int
    prompt: str
    response: str
    tokens: tuple[str, ...] = ()
    kl_per_token: tuple[Measured, ...] = ()
    """Nats at each of `tokens`; the same length."""
    kl_policy_ref: Measured = None
    """Nats of this response, summed over its tokens."""
    reward: Measured = None
    monitor: Mapping[str, Measured]
    reference_response: str | None = None
    reference_reward: Measured = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The KL at one position of the responses."""

    position: int
    """0: the response's first token."""
    nats: Measured
    """Nats per response, whether or not it reaches so far."""
    count: int | None
    """Responses that do; None where nobody counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one prompt, or one token, has of the KL."""

    text: str
    nats: Measured
    """Nats per response: of a prompt's own responses, or a token's share of the sampled, signed log-ratio."""
    count: int
    """Responses to the prompt, or times the token was drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """One line of drift.jsonl: where the KL per response comes from."""

    step: int
    by_position: tuple[Place, ...] = ()
    by_prompt: tuple[Share, ...] = ()
    """The worst first."""
    by_token: tuple[Share, ...] = ()
    """Those that moved most first, whichever way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """What a run directory holds, ready to be shown."""

    name: str
    """The directory's name."""
    config: Mapping[str, Any]
    """The resolved sections."""
    versions: Mapping[str, Any]
    digests: Mapping[str, Any]
    steps: tuple[int, ...]
    metrics: Mapping[str, tuple[Measured, ...]]
    """Metric name to one value a step, aligned with `steps`."""
    samples: tuple[Sample, ...]
    drift: tuple[Drift, ...] = ()

    def series(self, name: str) -> tuple[Measured, ...]:
        """The values of a metric, one a step; all None when the run never measured it."""
        return self.metrics.get(name, (None,) * len(self.steps))

    def last(self, name: str) -> Measured:
        """A metric at the last step, None when it was not measured there."""
        return self.series(name)[-1] if self.steps else None

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved configuration, None when it is not there."""
        values = self.config.get(section)
        return cast(Mapping[str, Any], values).get(key) if isinstance(values, Mapping) else None

    def limit(self, name: str) -> Measured:
        """A limit of `[guard]`; None where it is not set."""
        return _loose_number(self.setting("guard", name))

    @property
    def monitors(self) -> tuple[str, ...]:
        """Names of the scorers that were logged and never trained on."""
        return tuple(
            key.removeprefix("monitor/") for key in self.metrics if key.startswith("monitor/")
        )

    @property
    def gold(self) -> str | None:
        """The monitor that stands for what was wanted: the first with "gold" in its name, else the first."""
        return next(
            (name for name in self.monitors if "gold" in name), next(iter(self.monitors), None)
        )

    @property
    def target(self) -> Measured:
        """The KL target in nats (per response or per token, see `unit`), None for a run without one."""
        stated = next(
            (value for value in reversed(self.series("kl_target")) if value is not None), None
        )
        return stated if stated is not None else _loose_number(self.setting("rl", "kl_target"))

    @property
    def unit(self) -> str:
        """What the target is per: "response" or "token"."""
        return "token" if self.setting("rl", "kl_unit") == "token" else "response"

    @property
    def method(self) -> str:
        """What trained it, such as PPO; `DPO` and `SFT` are TRL's."""
        by_trl = next((name for name in ("dpo", "sft") if name in self.config), None)
        named = by_trl or self.setting("algorithm", "name")
        return named.replace("_", " ").upper() if isinstance(named, str) else "PPO"

    @property
    def is_judged(self) -> bool:
        """Whether each update was made on a reward and judged, as this loop's are and those of TRL are not."""
        return not {"dpo", "sft"} & set(self.config)

    @property
    def accepted(self) -> int | None:
        """Updates that the guard let through; None when no verdict was logged."""
        return self._verdicts(1)

    @property
    def rejected(self) -> int | None:
        """Updates that the guard refused; None when no verdict was logged."""
        return self._verdicts(0)

    def _verdicts(self, wanted: int) -> int | None:
        verdicts = [value for value in self.series("accepted") if value is not None]
        return sum(value == wanted for value in verdicts) if verdicts else None


def load_run(path: str | Path) -> RunView:
    """Read a run directory; one that is unfinished, or has no samples, is fine.

    Raises:
        InputError: there is no run at `path`, or a line of a file cannot be read (it names file and line).
    """
    run = Path(path)
    config_file = run / "config.json"
    if not config_file.is_file():
        raise InputError(
            f"no run at {run}",
            expected="a run directory, with config.json and metrics.jsonl in it",
            got="no config.json" if run.is_dir() else "no such directory",
            do="pass the directory that `kleash train` wrote, as in runs/NAME",
        )
    document = _parse(_read(config_file), config_file, line=1)
    rows = list(_lines(run / "metrics.jsonl", _metrics_row))
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    return RunView(
        name=run.resolve().name,
        config=_section(document, "config"),
        versions=_section(document, "versions"),
        digests=_section(document, "digests"),
        steps=tuple(step for step, _ in rows),
        metrics={name: tuple(row.get(name) for _, row in rows) for name in names},
        samples=tuple(_lines(run / "samples.jsonl", _sample)),
        drift=tuple(_lines(run / "drift.jsonl", _drift)),
    )


def _lines(file: Path, build: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    """Each line of a JSONL file as a record; nothing when the file is not there yet."""
    if not file.is_file():
        return
    for number, text in enumerate(_read(file).split("\n"), start=1):
        if text.strip():
            data = _parse(text, file, number)
            try:
                yield build(data)
            except (ValueError, OverflowError) as error:
                _refuse(file, number, str(error))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        _refuse(file, line, "bytes that are not UTF-8")
    except OSError as error:
        raise InputError(
            f"{file} cannot be read", got=str(error), do="check the file's permissions"
        ) from error


def _parse(text: str, file: Path, line: int) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        _refuse(
            file,
            line + error.lineno - 1,
            f"text that is not JSON ({error.msg} at column {error.colno})",
        )
    except (ValueError, RecursionError):
        _refuse(file, line, "JSON too deep or with too long a number")
    if not isinstance(data, dict):
        _refuse(file, line, f"a JSON {type(data).__name__}, not an object")
    return cast(Mapping[str, Any], data)


def _refuse(file: Path, line: int, got: str) -> NoReturn:
    raise InputError(
        f"{file}, line {line}, cannot be read",
        expected="one JSON object, as `kleash train` writes it",
        got=got,
        do="if the run was cut off while writing, resume it or delete that line; `kleash verify` tells what changed",
    )


def _metrics_row(data: Mapping[str, Any]) -> tuple[int, dict[str, Measured]]:
    return _step(data), {key: _number(value, key) for key, value in data.items() if key != "step"}


def _sample(data: Mapping[str, Any]) -> Sample:
    tokens = tuple(_text(token, "tokens") for token in _list(data, "tokens"))
    kl = tuple(_number(value, "kl_per_token") for value in _list(data, "kl_per_token"))
    if len(tokens) != len(kl):
        raise ValueError(f"{len(tokens)} tokens with {len(kl)} values in kl_per_token")
    reference = data.get("reference_response")
    return Sample(
        step=_step(data),
        prompt=_text(data.get("prompt"), "prompt"),
        response=_text(data.get("response"), "response"),
        tokens=tokens,
        kl_per_token=kl,
        kl_policy_ref=_number(data.get("kl_policy_ref"), "kl_policy_ref"),
        reward=_number(data.get("reward"), "reward"),
        monitor={name: _number(value, name) for name, value in _section(data, "monitor").items()},
        reference_response=None if reference is None else _text(reference, "reference_response"),
        reference_reward=_number(data.get("reference_reward"), "reference_reward"),
    )


def _drift(data: Mapping[str, Any]) -> Drift:
    return Drift(
        step=_step(data),
        by_position=tuple(
            Place(
                position=_whole(part.get("position"), "position"),
                nats=_number(part.get("nats"), "nats"),
                count=_whole(part.get("count"), "count"),
            )
            for part in _objects(data, "by_position")
        ),
        by_prompt=_shares(data, "prompt"),
        by_token=_shares(data, "token"),
    )


def _shares(data: Mapping[str, Any], of: str) -> tuple[Share, ...]:
    return tuple(
        Share(
            text=_text(part.get(of), of),
            nats=_number(part.get("nats"), "nats"),
            count=_whole(part.get("count"), "count"),
        )
        for part in _objects(data, f"by_{of}")
    )


def _step(data: Mapping[str, Any]) -> int:
    step = data.get("step")
    if not isinstance(step, int):
        raise ValueError(f"step: {_brief(step)}, not a whole number")
    return step


def _number(value: Any, name: str) -> Measured:
    """A number or None; "nan", "inf" and "-inf" are how JSON carries a measured value that is not finite."""
    if value is None:
        return None
    if isinstance(value, int | float) or value in ("nan", "inf", "-inf"):
        return float(value)
    raise ValueError(f"{name}: {_brief(value)}, not a number or null")


def _whole(value: Any, name: str) -> int:
    """A count. Beyond 2^53 a browser would read another number."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**53:
        raise ValueError(f"{name}: {_brief(value)}, not a count")
    return value


def _loose_number(value: Any) -> Measured:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: {_brief(value)}, not text")
    return value


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    values = data.get(name)
    if values is not None and not isinstance(values, list):
        raise ValueError(f"{name}: {_brief(values)}, not a list")
    return cast(list[Any], values or [])


def _objects(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    values = _list(data, name)
    for value in values:
        if not isinstance(value, dict):
            raise ValueError(f"{name}: {_brief(value)}, not an object")
    return values


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = data.get(name)
    return cast(Mapping[str, Any], values) if isinstance(values, dict) else {}


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
