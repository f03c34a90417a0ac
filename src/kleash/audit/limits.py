"""What a drift may not exceed, and whether it can be said not to: the upper end of its interval decides. No torch."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kleash.errors import ConfigError
from kleash.records import KLReading, Unit

ALL = "all"
"""The scope of a limit on all prompts together."""
EACH = "*"
"""Stands for every slice."""

_FORM = re.compile(r"(?:(?P<scope>.+)=)?(?P<value>[^=/]+)(?:/(?P<unit>response|token))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The largest KL(π‖π_ref) that is let pass."""

    scope: str
    """`all`, `*` for every slice, or a slice's name."""
    nats: float
    unit: Unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A limit beside what was measured."""

    limit: Limit
    reading: KLReading

    @property
    def passed(self) -> bool:
        """Whether the whole interval is at or below it: a KL that may be above is not let pass."""
        high = self.reading.high
        return high is not None and self.reading.is_finite and high <= self.limit.nats

    @property
    def reason(self) -> str:
        """Why it isn't; empty where it is.

        Examples:
            >>> reading = KLReading(value=3.0, low=1.5, high=4.5, n=8, clusters=4, unit="response",
            ...                     direction="policy_ref", estimator="exact", reference="base")
            >>> Judged(limit=Limit(scope="all", nats=4.0, unit="response"), reading=reading).reason
            'all prompts: the interval of KL(π‖π_ref), 3 [1.5, 4.5], ends above 4 nats per response'
        """
        if self.passed:
            return ""
        where = "all prompts" if self.limit.scope == ALL else f"slice {self.limit.scope}"
        nats, reading = f"{self.limit.nats:g} nats per {self.limit.unit}", self.reading
        if reading.high is None or reading.low is None:
            return f"{where}: one prompt has no interval that could lie below {nats}"
        between = f"{reading.value:.4g} [{reading.low:.4g}, {reading.high:.4g}]"
        return f"{where}: the interval of KL(π‖π_ref), {between}, ends above {nats}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        said = self.reading.to_json()
        return {
            "scope": self.limit.scope,
            "unit": self.limit.unit,
            "limit": self.limit.nats,
            **{name: said[name] for name in ("value", "low", "high")},
            "passed": self.passed,
            "reason": self.reason,
        }


def parse(text: str) -> Limit:
    """A limit as it is written: `4.0`, `0.1/token`, `films=4.0`, `*=6/response`.

    Args:
        text: nats, per response where no unit is named; before a `=`, the slice that it is for, or `*` for each.

    Raises:
        ConfigError: it is none.

    Examples:
        >>> parse("code=0.1/token")
        Limit(scope='code', nats=0.1, unit='token')
    """
    found = _FORM.fullmatch(text.strip())
    try:
        nats = float(found["value"]) if found else math.nan
    except ValueError:
        nats = math.nan
    if found is None or not (math.isfinite(nats) and nats >= 0):
        raise ConfigError(
            f"{text!r} is no limit",
            expected="nats, and where it isn't per response the unit: 4.0, 0.1/token, SLICE=4.0, *=6.0 for every slice",
            got=text,
        )
    unit: Unit = "token" if found["unit"] == "token" else "response"
    return Limit(scope=found["scope"] or ALL, nats=nats, unit=unit)


def judge(
    limits: Sequence[Limit],
    whole: Mapping[Unit, KLReading],
    slices: Mapping[str, Mapping[Unit, KLReading]],
) -> tuple[Judged, ...]:
    """Each limit against what was measured; one for every slice against each of them.

    Raises:
        ConfigError: a limit is for a slice that no prompt is of.
    """
    check_scopes(limits, list(slices))
    judged: list[Judged] = []
    for limit in limits:
        if limit.scope == ALL:
            judged.append(Judged(limit=limit, reading=whole[limit.unit]))
            continue
        names = list(slices) if limit.scope == EACH else [limit.scope]
        judged += [
            Judged(
                limit=Limit(scope=name, nats=limit.nats, unit=limit.unit),
                reading=slices[name][limit.unit],
            )
            for name in names
        ]
    return tuple(judged)


def check_scopes(limits: Sequence[Limit], slices: Sequence[str]) -> None:
    """That every limit is for something that is there.

    Raises:
        ConfigError: it isn't.
    """
    for limit in limits:
        known = limit.scope == ALL or (
            bool(slices) if limit.scope == EACH else limit.scope in slices
        )
        if not known:
            raise ConfigError(
                f"no prompt is of the slice that {limit.scope}={limit.nats:g} limits",
                expected=", ".join(slices[:20]) or "prompts with slices",
                got=limit.scope,
                do="name the column with --slice-column, let --max-prompts leave fewer out, or drop the limit",
            )
