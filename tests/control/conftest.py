"""Readings as the meter gives them."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from kleash.records import KLReading

Z95 = 1.959963984540054


@pytest.fixture(scope="session")
def reading() -> Callable[..., KLReading]:
    """KL(π‖π_ref) of a value, with a 95 % interval of ± 1.96 standard errors where one is given."""
    plain = KLReading(
        value=0.0,
        low=None,
        high=None,
        n=512,
        clusters=512,
        unit="response",
        direction="policy_ref",
        estimator="exact",
        reference="base",
    )

    def make(value: float, error: float | None = None, **changes: object) -> KLReading:
        ends = {} if error is None else {"low": value - Z95 * error, "high": value + Z95 * error}
        return replace(plain, value=value, **ends, **changes)

    return make
