"""Limits as they are written, and what is let pass."""

import pytest

from kleash.audit.limits import Judged, Limit, judge, parse
from kleash.errors import ConfigError
from kleash.records import KLReading, Unit


def reading(
    low: float | None, value: float, high: float | None, unit: Unit = "response"
) -> KLReading:
    return KLReading(
        value=value,
        low=low,
        high=high,
        n=8,
        clusters=4,
        unit=unit,
        direction="policy_ref",
        estimator="exact",
        reference="base",
    )


def both(high: float | None) -> dict[Unit, KLReading]:
    low = None if high is None else 0.5
    return {"response": reading(low, 1.0, high), "token": reading(low, 1.0, high, "token")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", Limit(scope="all", nats=4.0, unit="response")),
        ("4.5/response", Limit(scope="all", nats=4.5, unit="response")),
        (" 0.1/token ", Limit(scope="all", nats=0.1, unit="token")),
        ("*=2", Limit(scope="*", nats=2.0, unit="response")),
        ("a=b/c=1e-2/token", Limit(scope="a=b/c", nats=0.01, unit="token")),
    ],
)
def test_a_limit_is_read_as_written(text: str, expected: Limit) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "four", "-1", "nan", "inf", "1/word", "=1", "a=", "1/"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no limit"):
        parse(text)


@pytest.mark.parametrize(
    ("high", "passed"),
    [(3.9, True), (4.0, True), (4.1, False), (float("inf"), False), (None, False)],
)
def test_the_upper_end_decides(high: float | None, passed: bool) -> None:
    """A value of 1 against a limit of 4: what may be above it is not let pass, nor what is not known."""
    (found,) = judge([parse("4")], both(high), {})
    assert found.passed is passed
    assert bool(found.reason) is not passed


def test_a_value_that_is_no_number_never_passes() -> None:
    judged = Judged(limit=parse("4"), reading=reading(0.0, float("nan"), 1.0))
    assert not judged.passed


def test_every_slice_or_one_of_them() -> None:
    slices = {"a": both(3.0), "b": both(5.0)}
    found = judge([parse("*=4"), parse("b=6/token"), parse("9")], both(8.0), slices)
    said = [(x.limit.scope, x.limit.unit, x.passed) for x in found]
    assert said == [
        ("a", "response", True),
        ("b", "response", False),
        ("b", "token", True),
        ("all", "response", True),
    ]
    assert "slice b" in found[1].reason


@pytest.mark.parametrize("text", ["c=4", "*=4"])
def test_a_limit_on_what_is_not_there_is_refused(text: str) -> None:
    """Silence would be taken for a limit that holds."""
    slices = {"a": both(3.0)} if text == "c=4" else {}
    with pytest.raises(ConfigError, match="no prompt is of the slice"):
        judge([parse(text)], both(1.0), slices)
