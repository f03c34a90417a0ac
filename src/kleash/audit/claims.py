"""What an attestation says, read from its in-toto statement, and whether it contradicts itself. No torch."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kleash.audit.binding import FileDigest, binding_digest
from kleash.errors import TamperError
from kleash.ledger import Problem
from kleash.ledger.envelope import parse_strict

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:kleash:policy-drift:v1"
ROLES = ("policy", "reference", "base")
"""The models a statement is about, in the order of its subjects; a base only where one of the others is an adapter."""
ALL = "all"
"""Scope of a limit on every prompt; any other is the name of a slice."""

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A measured figure with its interval, as a statement records it. Unmeasured is None."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    level: float | None
    n: int | None
    """Responses behind it."""
    unit: str

    def __str__(self) -> str:
        interval = (
            "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        )
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{value}{interval} nats/{self.unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """An upper bound on KL(policy‖reference), and what was measured against it."""

    scope: str
    unit: str
    limit: float
    value: float | None
    low: float | None
    high: float | None
    passed: bool

    @property
    def holds(self) -> bool:
        """The rule: the upper end of the interval is at or below the limit; without one, nothing was shown."""
        if self.high is None or not math.isfinite(self.high) or not math.isfinite(self.limit):
            return False
        return self.high <= self.limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What a search for hidden drift said; it is no part of the verdict, which is of limits alone."""

    alarm: bool | None
    """None: nothing could be scored."""
    statistic: float | None
    threshold: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """What a statement claims: how far which model is from which, on how much, by when."""

    names: Mapping[str, str]
    """Of the models, by role."""
    files: Mapping[str, tuple[FileDigest, ...]]
    """Of the models, by role."""
    digests: Mapping[str, str]
    """The subjects' digests, by role."""
    time: str
    """By the signer's clock."""
    prompts_sha256: str
    prompts: int
    figures: tuple[Figure, ...]
    """The headline divergences."""
    limits: tuple[Limit, ...]
    passed: bool | None
    """The recorded verdict; None: there was no limit."""
    reasons: tuple[str, ...]
    search: Search | None
    """None: nothing was searched."""
    non_claims: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict; of each model the name, the digest and how many files."""
        return {
            "models": {
                role: {"name": name, "sha256": self.digests[role], "files": len(self.files[role])}
                for role, name in self.names.items()
            },
            "time": self.time,
            "prompts": {"sha256": self.prompts_sha256, "count": self.prompts},
            "figures": {
                each.name: {key: item for key, item in asdict(each).items() if key != "name"}
                for each in self.figures
            },
            "limits": [asdict(each) for each in self.limits],
            "verdict": {"passed": self.passed, "reasons": list(self.reasons)},
            "search": None if self.search is None else asdict(self.search),
            "non_claims": list(self.non_claims),
        }


def read_claims(payload: bytes) -> tuple[Claims, list[Problem]]:
    """What a statement claims, and where it contradicts itself.

    Raises:
        TamperError: it is no statement of this kind, or a field has another form than the format's.
    """
    data = parse_strict(payload)
    kinds = (data.get("_type"), data.get("predicateType"))
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise TamperError(
            "not an attestation of a comparison",
            expected=f"{STATEMENT_TYPE} with {PREDICATE_TYPE}",
            got=ascii(kinds)[:200],
        )
    try:
        claims = _claims(data["subject"], data["predicate"])
        found = contradictions(claims, data["predicate"]["measurements"])
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise TamperError(
            "a field of the statement is missing, or has another form than the format's",
            got=ascii(f"{type(error).__name__}: {error}"[:120]),
        ) from error
    return claims, found


def contradictions(claims: Claims, measurements: Mapping[str, Any]) -> list[Problem]:
    """Where digests, limits or verdict are not what the rest of the statement leads to."""
    found = [
        Problem(where=f"subject {role}", what="its digest is not that of the files listed for it")
        for role, files in claims.files.items()
        if binding_digest(files) != claims.digests[role]
    ]
    for limit in claims.limits:
        found += [
            Problem(where=ascii(f"limit on {limit.scope}").strip("'"), what=what)
            for what in _against(limit, measurements)
        ]
    expected = all(each.holds for each in claims.limits) if claims.limits else None
    if claims.passed is not expected:
        words = {True: "passed", False: "failed", None: "no limit"}
        what = f"says {words[claims.passed]}, where limits and measurements say {words[expected]}"
        found.append(Problem(where="verdict", what=what))
    return found


def _against(limit: Limit, measurements: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against a limit's record."""
    scope = measurements if limit.scope == ALL else measurements.get("slices", {}).get(limit.scope)
    where = {"response": "kl_policy_ref_per_response", "token": "per_token"}[limit.unit]
    reading = None if scope is None else scope.get(where)
    if reading is not None and limit.unit == "token":
        reading = reading.get("kl_policy_ref")
    if reading is None:
        yield f"there is no measurement per {limit.unit} for it"
        return
    recorded = (limit.value, limit.low, limit.high)
    measured = tuple(number(reading.get(key)) for key in ("value", "low", "high"))
    if str(recorded) != str(measured):  # nan is nan here
        yield "its figures are not the measured ones"
    if limit.passed is not limit.holds:
        yield (
            f"says {'passed' if limit.passed else 'failed'}, and the upper end of its interval says otherwise"
        )


def figures_of(measurements: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The divergences over all prompts, per response and per token."""
    found: list[Figure] = []
    for group, suffix in ((measurements, ""), (measurements.get("per_token") or {}, "_per_token")):
        for key, reading in group.items():
            if (
                key.startswith(("kl_", "js"))
                and isinstance(reading, Mapping)
                and "value" in reading
            ):
                found.append(_figure(key + suffix, reading))
    return tuple(found)


def number(value: Any) -> float | None:
    """A figure of the statement; the strings "nan", "inf" and "-inf" stand for what JSON has no number for.

    Raises:
        TypeError: it is something else.

    Examples:
        >>> number(2), number("inf"), number(None)
        (2.0, inf, None)
    """
    if value is None:
        return None
    if value in ("nan", "inf", "-inf") or type(value) in (int, float):
        return float(value)
    raise TypeError("not a number")


def _claims(subjects: Any, predicate: Any) -> Claims:
    listed = {role: predicate["files"].get(role) for role in ROLES}
    roles = [role for role in ROLES if listed[role] is not None]
    if roles[:2] != ["policy", "reference"] or len(subjects) != len(roles):
        raise ValueError("subjects and files are not of the same models")
    verdict, prompts = predicate["verdict"], predicate["prompts"]
    by_role = dict(zip(roles, subjects, strict=True))
    return Claims(
        names={role: _text(each["name"]) for role, each in by_role.items()},
        files={role: _files(listed[role]) for role in roles},
        digests={role: _match(_SHA256, each["digest"]["sha256"]) for role, each in by_role.items()},
        time=_match(_TIME, predicate["time"]),
        prompts_sha256=_match(_SHA256, prompts["sha256"]),
        prompts=_count(prompts["count"]),
        figures=figures_of(predicate["measurements"]),
        limits=tuple(_limit(each) for each in predicate["limits"]),
        passed=_flag(verdict["passed"], may_lack=True),
        reasons=tuple(_text(each) for each in verdict["reasons"]),
        search=_search(predicate["measurements"].get("search")),
        non_claims=tuple(_text(each) for each in predicate["nonClaims"]),
    )


def _search(data: Any) -> Search | None:
    if data is None:
        return None
    return Search(
        alarm=_flag(data["alarm"], may_lack=True),
        statistic=number(data["statistic"]),
        threshold=number(data["threshold"]),
    )


def _files(listed: Any) -> tuple[FileDigest, ...]:
    files = tuple(
        FileDigest(
            path=_text(each["path"]),
            size=_count(each["size"]),
            sha256=_match(_SHA256, each["sha256"]),
        )
        for each in listed
    )
    if not files or len({each.path for each in files}) != len(files):
        raise ValueError("a model has no files, or a file twice")
    return files


def _limit(data: Any) -> Limit:
    limit = number(data["limit"])
    if limit is None or data["unit"] not in ("response", "token"):
        raise ValueError("a limit without a number or a unit")
    return Limit(
        scope=_text(data["scope"]),
        unit=data["unit"],
        limit=limit,
        value=number(data["value"]),
        low=number(data["low"]),
        high=number(data["high"]),
        passed=bool(_flag(data["passed"])),
    )


def _figure(name: str, reading: Mapping[str, Any]) -> Figure:
    n = reading.get("n")
    return Figure(
        name=name,
        value=number(reading["value"]),
        low=number(reading.get("low")),
        high=number(reading.get("high")),
        level=number(reading.get("level")),
        n=None if n is None else _count(n),
        unit=_text(reading.get("unit", "")),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _match(pattern: re.Pattern[str], value: Any) -> str:
    if pattern.fullmatch(_text(value)) is None:
        raise ValueError(f"not of the form {pattern.pattern}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("not a count")
    return value


def _flag(value: Any, *, may_lack: bool = False) -> bool | None:
    if isinstance(value, bool) or (value is None and may_lack):
        return value
    raise TypeError("neither true nor false")
