"""Tasks in processes of their own: what they say, return and raise arrives, and a dead one is noticed."""

import os
from collections.abc import Callable

import pytest

from kleash.errors import ResourceError, RewardError
from kleash.lab.processes import side_by_side


def counts(observer: Callable[[int], None]) -> int:
    for i in range(5):
        observer(i)
    return os.getpid()


def refuses(observer: Callable[[int], None]) -> int:
    raise RewardError("the reward failed", got="nan", expected="a number")


class UnportableError(Exception):
    """Its message does not make it again."""

    def __init__(self, number: int, word: str) -> None:
        super().__init__(f"{word} {number}")


def breaks(observer: Callable[[int], None]) -> int:
    raise ZeroDivisionError("by nothing")


def breaks_unportably(observer: Callable[[int], None]) -> int:
    raise UnportableError(7, "seven")


def dies(observer: Callable[[int], None]) -> int:
    os._exit(9)


def test_each_task_has_a_process_of_its_own() -> None:
    seen: list[int] = []
    results = side_by_side({"b": counts, "a": counts}, seen.append)
    assert list(results) == ["b", "a"]
    assert len({*results.values(), os.getpid()}) == 3
    assert sorted(seen) == sorted([0, 1, 2, 3, 4] * 2)


@pytest.mark.parametrize(
    ("task", "kind", "got"), [(refuses, RewardError, "nan"), (dies, ResourceError, "9")]
)
def test_a_task_that_fails_ends_all(task: Callable, kind: type[RewardError], got: str) -> None:
    with pytest.raises(kind) as caught:
        side_by_side({"good": counts, "bad": task}, lambda _: None)
    assert got in str(caught.value.got)


@pytest.mark.parametrize(
    ("task", "kind", "said"),
    [(breaks, ZeroDivisionError, "by nothing"), (breaks_unportably, RuntimeError, "seven 7")],
)
def test_what_nobody_foresaw_arrives_with_its_traceback(
    task: Callable, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        side_by_side({"bad": task}, lambda _: None)
    assert f"in {task.__name__}" in caught.value.__notes__[0]


def test_a_task_that_cannot_be_started_is_told_as_it_is() -> None:
    with pytest.raises(Exception, match="pickle"):
        side_by_side({"bad": lambda observer: 1}, lambda _: None)
