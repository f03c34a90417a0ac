"""A loop that calls back, turned into one that is iterated."""

from collections.abc import Callable, Generator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


class _Stopped(BaseException):
    """Ends the work at the place where it hands over. No `except Exception` of a library may keep it."""


class _End:
    """The work came to its end, or failed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def handed_over(work: Callable[[Callable[[T], None]], None]) -> Generator[T]:
    """What a function hands over while it runs, one by one.

    The work has a thread of its own, and the two never run at once: it waits where it handed something over until the
    next is asked for. Whoever closes the iterator, or interrupts it, ends the work at its next hand-over; what the work
    raises is raised here.

    Args:
        work: called with the function that hands over.

    Examples:
        >>> list(handed_over(lambda give: [give(i) for i in range(3)]))
        [0, 1, 2]
    """
    given: SimpleQueue[T | _End] = SimpleQueue()
    wanted: SimpleQueue[bool] = SimpleQueue()

    def give(item: T) -> None:
        given.put(item)
        if not wanted.get():
            raise _Stopped

    def run() -> None:
        end = _End()
        try:
            work(give)
        except _Stopped:
            pass
        except BaseException as error:
            end = _End(error)
        given.put(end)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while not isinstance(item := given.get(), _End):
            yield item
            wanted.put(True)
        if item.error is not None:
            raise item.error
    finally:
        wanted.put(False)
        thread.join()
