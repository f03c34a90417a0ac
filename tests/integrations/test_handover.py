"""A loop that calls back is iterated: in order, never ahead, and ended from outside."""

import threading
from collections.abc import Callable

import pytest

from kleash.integrations.trl.handover import handed_over


def test_the_work_waits_until_the_next_is_asked_for() -> None:
    seen: list[str] = []

    def work(give: Callable[[int], None]) -> None:
        for i in range(3):
            seen.append(f"made {i}")
            give(i)

    for i in handed_over(work):
        seen.append(f"got {i}")
    assert seen == ["made 0", "got 0", "made 1", "got 1", "made 2", "got 2"]


def test_what_the_work_raises_is_raised_where_it_is_iterated() -> None:
    def work(give: Callable[[int], None]) -> None:
        give(1)
        raise KeyError("lost")

    items = handed_over(work)
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)


def test_closing_ends_the_work_though_it_catches_every_exception() -> None:
    before, ended = threading.active_count(), threading.Event()

    def work(give: Callable[[int], None]) -> None:
        try:
            while True:
                try:
                    give(1)
                except Exception:  # as some libraries do
                    continue
        finally:
            ended.set()

    items = handed_over(work)
    next(items)
    items.close()
    assert ended.is_set()
    assert threading.active_count() == before
