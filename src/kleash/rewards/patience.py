"""When a failing server is asked again, and when no longer: pure, floats only, the time is handed in.

Seconds are of any clock that only goes forward.
"""

from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

_DOUBLINGS = 64
"""More of them change nothing: no bound is 2⁶⁴ times a wait that anyone begins with."""


def backoff(attempt: int, *, first_s: float, most_s: float, share: float) -> float:
    """Seconds to wait before another attempt: exponential with full jitter, share · min(most, first · 2^attempt).

    A share drawn evenly from [0, 1) keeps clients that failed together from coming back together.

    Args:
        attempt: failed ones before this wait, less one: from 0.
        first_s: bound of the first wait.
        most_s: bound of every wait.
        share: 0 to 1.

    Examples:
        >>> [backoff(k, first_s=0.5, most_s=3.0, share=0.5) for k in range(4)]
        [0.25, 0.5, 1.0, 1.5]
    """
    return share * min(most_s, first_s * 2.0 ** min(attempt, _DOUBLINGS))


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number of them, or until a date; None where it says neither.

    Args:
        header: its value.
        now: seconds since 1970.

    Examples:
        >>> retry_after("120", now=0.0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=20.0)
        (120.0, 40.0)
    """
    text = "" if header is None else header.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:18])  # longer is for ever either way
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, date.timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Circuit:
    """Whether requests are sent at all: closed they are, open they are not, half-open a single one is."""

    failures: int = 0
    """Failed requests in a row."""
    opened: float | None = None
    """When it opened; None: it is closed."""
    probing: bool = False
    """Whether the single request of a half-open circuit is out."""


def admit(circuit: Circuit, now: float, *, cool_down_s: float) -> Circuit | None:
    """The circuit with one more request let through; None where that is refused.

    Args:
        circuit: as it is.
        now: the time.
        cool_down_s: how long an open circuit refuses; then one request is the probe.

    Examples:
        >>> shut = Circuit(failures=3, opened=10.0)
        >>> admit(shut, 12.0, cool_down_s=5.0)
        >>> admit(shut, 15.0, cool_down_s=5.0)
        Circuit(failures=3, opened=10.0, probing=True)
    """
    if circuit.opened is None:
        return circuit
    if circuit.probing or now - circuit.opened < cool_down_s:
        return None
    return replace(circuit, probing=True)


def settle(circuit: Circuit, now: float, *, answered: bool, trip_after: int) -> Circuit:
    """The circuit after a request: an answer closes it, the probe's failure or one too many in a row opens it.

    Where requests overlap, one that was sent before the circuit opened may fail while the probe is out; it counts as
    the probe's failure, and the answer to the probe still closes the circuit.

    Args:
        circuit: as it is.
        now: the time.
        answered: whether the request was.
        trip_after: failures in a row that open it.

    Examples:
        >>> settle(Circuit(failures=2), 10.0, answered=False, trip_after=3)
        Circuit(failures=3, opened=10.0, probing=False)
    """
    if answered:
        return Circuit()
    failures = circuit.failures + 1
    if circuit.probing or (circuit.opened is None and failures >= trip_after):
        return Circuit(failures=failures, opened=now)
    return replace(circuit, failures=failures)


def withdraw(circuit: Circuit) -> Circuit:
    """The circuit after a request that we broke off ourselves, which says nothing of the server."""
    return replace(circuit, probing=False)
