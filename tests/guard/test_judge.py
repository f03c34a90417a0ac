"""The guard: what it refuses, that it fails closed, and that a wider limit never refuses more."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kleash.errors import ConfigError
from kleash.guard import GuardConfig, judge
from kleash.records import KLReading, UpdateFacts

DRIFT = KLReading(
    value=4.0,
    low=3.0,
    high=12.0,
    n=64,
    clusters=16,
    unit="response",
    direction="policy_ref",
    estimator="exact",
    reference="base",
)
MOVE = replace(
    DRIFT, value=0.01, low=None, high=None, unit="token", direction="new_old", reference="previous"
)
FINE = UpdateFacts(finite=True, kl_new_old=MOVE, grad_norm=1.0)
SEVERITY = {"accept": 0, "reject": 1, "halt": 2}
limits = st.none() | st.floats(min_value=1e-6, allow_infinity=False, allow_nan=False)


def action(config: GuardConfig, drift: KLReading = DRIFT, facts: UpdateFacts = FINE) -> str:
    verdict = judge(config, drift, facts)
    assert (verdict.action == "accept") == (verdict.reasons == ())
    return verdict.action


def test_a_fine_update_is_accepted_without_a_word() -> None:
    assert action(GuardConfig(max_kl=10.0, max_kl_new_old=0.1)) == "accept"


def test_drift_past_the_limit_halts_and_the_limit_itself_does_not() -> None:
    config = GuardConfig(max_kl=4.0)

    assert action(config) == "accept"
    assert action(config, replace(DRIFT, value=math.nextafter(4.0, 5.0))) == "halt"


def test_the_value_is_compared_not_the_upper_end_of_its_interval() -> None:
    assert DRIFT.high == 12.0
    assert action(GuardConfig(max_kl=10.0)) == "accept"


def test_a_step_past_its_limit_is_rejected() -> None:
    verdict = judge(GuardConfig(max_kl_new_old=0.005), DRIFT, FINE)

    assert verdict.action == "reject"
    assert verdict.reasons == (
        "kl_new_old_per_token is 0.01 nats, over the limit max_kl_new_old = 0.005",
    )


def test_a_halt_outranks_a_rejection_and_both_are_named() -> None:
    verdict = judge(GuardConfig(max_kl=1.0, max_kl_new_old=0.005), DRIFT, FINE)

    assert verdict.action == "halt"
    assert len(verdict.reasons) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_an_impossible_reading_is_never_accepted(value: float) -> None:
    assert action(GuardConfig(), replace(DRIFT, value=value)) == "reject"
    assert action(GuardConfig(), facts=replace(FINE, kl_new_old=replace(MOVE, value=value))) == (
        "reject"
    )


def test_infinite_drift_is_past_every_limit() -> None:
    assert action(GuardConfig(max_kl=1e308), replace(DRIFT, value=math.inf)) == "halt"


def test_an_update_that_is_not_finite_is_rejected_without_any_limit() -> None:
    assert action(GuardConfig(), facts=replace(FINE, finite=False)) == "reject"


def test_what_a_limit_needs_and_was_not_measured_counts_against_the_update() -> None:
    unmeasured = replace(FINE, kl_new_old=None)

    assert action(GuardConfig(), facts=unmeasured) == "accept"
    assert action(GuardConfig(max_kl_new_old=1e9), facts=unmeasured) == "reject"


@given(limits, limits, limits, limits, st.floats(), st.none() | st.floats(), st.booleans())
def test_a_wider_limit_never_refuses_more(
    kl_one: float | None,
    kl_other: float | None,
    move_one: float | None,
    move_other: float | None,
    drift: float,
    move: float | None,
    finite: bool,
) -> None:
    def width(limit: float | None) -> float:
        return math.inf if limit is None else limit

    narrow_kl, wide_kl = sorted((kl_one, kl_other), key=width)
    narrow_move, wide_move = sorted((move_one, move_other), key=width)
    facts = UpdateFacts(
        finite=finite,
        kl_new_old=None if move is None else replace(MOVE, value=move),
        grad_norm=None,
    )
    narrow = GuardConfig(max_kl=narrow_kl, max_kl_new_old=narrow_move)
    wide = GuardConfig(max_kl=wide_kl, max_kl_new_old=wide_move)
    seen = replace(DRIFT, value=drift)

    assert SEVERITY[action(wide, seen, facts)] <= SEVERITY[action(narrow, seen, facts)]


@pytest.mark.parametrize("wrong", [{"unit": "token"}, {"direction": "policy_origin"}])
def test_a_limit_per_response_refuses_another_kl(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="max_kl was shown another KL"):
        judge(GuardConfig(max_kl=10.0), replace(DRIFT, **wrong), FINE)


def test_a_limit_per_token_refuses_another_kl() -> None:
    with pytest.raises(ConfigError, match="expected: kl_new_old_per_token"):
        judge(GuardConfig(max_kl_new_old=1.0), DRIFT, replace(FINE, kl_new_old=DRIFT))


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_limits_nothing_or_everything_is_refused(limit: float) -> None:
    with pytest.raises(ValidationError):
        GuardConfig(max_kl=limit)
