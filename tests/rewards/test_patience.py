"""When a failing server is asked again: bounds of the waits, and the circuit as a state machine."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.rewards.patience import Circuit, admit, backoff, retry_after, settle, withdraw

seconds = st.floats(0, 1e6)


@given(st.integers(0, 10**6), seconds, seconds, st.floats(0, 1, exclude_max=True))
def test_a_wait_is_below_its_bounds(attempt: int, first: float, most: float, share: float) -> None:
    wait = backoff(attempt, first_s=first, most_s=most, share=share)
    assert 0 <= wait <= most
    if attempt < 60:
        assert wait <= first * 2**attempt


@given(st.integers(0, 80), seconds, seconds, st.floats(0, 1, exclude_max=True))
def test_bounds_double_until_they_are_the_most(
    attempt: int, first: float, most: float, share: float
) -> None:
    this, following = (
        backoff(k, first_s=first, most_s=most, share=1) for k in (attempt, attempt + 1)
    )
    assert following == pytest.approx(min(most, 2 * this))
    # Full jitter: the draw scales the bound, from nothing up.
    assert backoff(attempt, first_s=first, most_s=most, share=share) == share * this


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_retry_after_is_a_wait_or_nothing(header: str) -> None:
    found = retry_after(header, now=0.0)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("0", 0.0),
        (" 3 ", 3.0),
        ("9" * 5000, 999_999_999_999_999_999.0),
        ("Thu, 01 Jan 1970 00:00:30 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0),  # past
        *((text, None) for text in ("", "-1", "1.5", "soon", "٣", "Thu, 99 Jan 1970 00:00:30 GMT")),
        (None, None),
    ],
)
def test_golden_retry_afters(header: str | None, wait: float | None) -> None:
    assert retry_after(header, now=10.0) == wait


def fail(circuit: Circuit, now: float) -> Circuit:
    return settle(circuit, now, answered=False, trip_after=3)


def test_a_circuit_opens_cools_down_and_lets_one_probe_through() -> None:
    circuit = fail(fail(Circuit(), 0.0), 1.0)
    assert admit(circuit, 1.0, cool_down_s=10) == circuit  # two are not yet too many
    circuit = fail(circuit, 2.0)
    assert circuit == Circuit(failures=3, opened=2.0)
    assert admit(circuit, 11.9, cool_down_s=10) is None
    probing = admit(circuit, 12.0, cool_down_s=10)
    assert probing is not None
    assert probing == replace(circuit, probing=True)
    assert admit(probing, 99.0, cool_down_s=10) is None  # one alone
    assert settle(probing, 13.0, answered=True, trip_after=3) == Circuit()
    again = fail(probing, 13.0)
    assert again == Circuit(failures=4, opened=13.0)
    assert admit(again, 22.9, cool_down_s=10) is None
    assert admit(again, 23.0, cool_down_s=10) is not None


def test_a_late_failure_does_not_keep_a_circuit_open_longer() -> None:
    circuit = Circuit(failures=3, opened=2.0)
    assert fail(circuit, 9.0) == Circuit(failures=4, opened=2.0)


def test_a_probe_that_is_broken_off_lets_another_through() -> None:
    probing = Circuit(failures=3, opened=2.0, probing=True)
    assert admit(withdraw(probing), 12.0, cool_down_s=10) == probing


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=40))
def test_laws_of_the_circuit(trip_after: int, events: list[tuple[bool, float]]) -> None:
    """One request after another: it is open exactly after `trip_after` failures in a row, until an answer."""
    circuit, now, failures = Circuit(), 0.0, 0
    for answered, waited in events:
        now += waited
        admitted = admit(circuit, now, cool_down_s=10)
        if failures < trip_after:
            assert admitted == circuit
        else:
            assert circuit.opened is not None
            assert (admitted is None) == (now - circuit.opened < 10)
        if admitted is None:
            continue
        circuit = settle(admitted, now, answered=answered, trip_after=trip_after)
        failures = 0 if answered else failures + 1
        assert circuit.failures == failures
        assert not circuit.probing
        assert (circuit.opened == now) == (failures >= trip_after)
