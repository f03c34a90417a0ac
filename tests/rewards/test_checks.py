"""What may pass for a score, and how the first that may not is named."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import count, repeat
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import RewardError
from kleash.rewards.checks import checked, shown

RESPONSES = ["first", "second", "third"]


@pytest.mark.parametrize(
    "scores",
    [
        [1, 2.5, True],
        (1.0, 2.5, 1.0),
        np.array([1, 2.5, 1], dtype=np.float32),
        torch.tensor([1, 2.5, 1]),
        [torch.tensor(1.0), np.float64(2.5), 1],
    ],
)
def test_numbers_of_any_make_become_plain_floats(scores: Any) -> None:
    result = checked("f", scores, RESPONSES)
    assert result == [1.0, 2.5, 1.0]
    assert {type(value) for value in result} == {float}


@pytest.mark.parametrize(
    ("bad", "name"),
    [(math.nan, "nan"), (math.inf, "inf"), (None, "None"), ("1.0", "'1.0'"), ([1.0], "[1.0]")],
)
def test_the_first_response_without_a_finite_number_is_named(bad: Any, name: str) -> None:
    with pytest.raises(RewardError) as error:
        checked("mine:reward", [0.0, bad, bad], RESPONSES)
    assert "mine:reward" in error.value.what
    assert error.value.got == f"{name} for response 1, 'second'"
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    "scores",
    [
        *([1.0], [], [1.0] * 4, None, 3.0, "abc", {"a": 1.0}),
        *(Counter("abc"), {0.1, 0.2, 0.3}, frozenset([0.1, 0.2, 0.3])),  # in whose order?
    ],
)
def test_a_wrong_count_is_refused(scores: Any) -> None:
    with pytest.raises(RewardError, match="one score per response"):
        checked("f", scores, RESPONSES)


class Endless:
    """As long as one likes."""

    def __iter__(self) -> Iterator[float]:
        return repeat(0.5)


@pytest.mark.parametrize("scores", [count(), repeat(0.5), Endless()])
def test_what_has_no_end_is_not_read_to_it(scores: Any) -> None:
    with pytest.raises(RewardError) as error:
        checked("f", scores, RESPONSES)
    assert error.value.got == "more than 3"


class Broken:
    """Fails as it is read."""

    def __iter__(self) -> Iterator[float]:
        yield 0.5
        raise OSError("gone")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([torch.zeros(2)] * 3, "a list that cannot be read, RuntimeError"),
        ([np.zeros(2)] * 3, "a list that cannot be read, ValueError"),
        (Broken(), "a Broken that cannot be read, OSError"),
    ],
)
def test_what_cannot_be_read_is_refused_as_the_rewards_fault(scores: Any, said: str) -> None:
    with pytest.raises(RewardError, match="one score per response") as error:
        checked("f", scores, RESPONSES)
    assert (error.value.got, error.value.exit_code) == (said, 5)


def test_huge_integers_are_refused_not_crashed_on() -> None:
    with pytest.raises(RewardError):
        checked("f", [10**400, 0, 0], RESPONSES)


@pytest.mark.parametrize("score", [1e300, -1e39, 10**39, 3.4028236e38, np.float64(1e300)])
def test_a_score_that_is_infinite_in_float32_is_refused(score: Any) -> None:
    assert torch.tensor(float(score), dtype=torch.float32).isinf()
    with pytest.raises(RewardError, match="response 1, 'second'") as error:
        checked("f", [0.0, score, 0.0], RESPONSES)
    assert "3.4e38" in error.value.expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_passes_is_what_float32_holds(score: float) -> None:
    held = bool(torch.tensor(score, dtype=torch.float32).isfinite())
    try:
        assert checked("f", [score], ["r"]) == [score]
        passed = True
    except RewardError:
        passed = False
    assert passed == held


@given(st.text())
def test_shown_text_is_short_and_printable(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) <= 10 * 60 + 3


def test_terminal_escapes_of_a_response_never_reach_the_message() -> None:
    with pytest.raises(RewardError) as error:
        checked("f", [math.nan], ["\x1b]0;owned\x07\u202e"])
    assert str(error.value).isprintable()
