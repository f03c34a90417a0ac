"""Processes that do many tasks one after another: to start one takes seconds, most of them torch's.

with Workers(2).running() as workers:
for result in workers.results([(function, arguments), …], observer): …
"""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from kleash.errors import KleashError, ResourceError
from kleash.lab.processes import portable

Told = Callable[[Any], None]
Task = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments, behind which it is given whom to tell how far it is."""
LOOK_EVERY = 0.2
"""Seconds between two looks at what was told."""

_queue: Any = None
"""Of a worker: what it says goes in here."""


class Workers:
    """A few processes, started when there is first something to do.

    Args:
        count: how many; at 1 tasks are done in this process, one after another.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._told: Any = None

    @contextmanager
    def running(self) -> Generator["Workers"]:
        """Ends the processes: at once, where something was raised."""
        try:
            yield self
        except BaseException:
            self._stop()
            raise
        if self._pool is not None:
            self._pool.shutdown()

    def results(self, tasks: Sequence[Task], observer: Told) -> Generator[Any]:
        """What each task returned, as they end.

        Raises:
            Exception: a task raised it.
            ResourceError: a process died.
        """
        if self.count == 1:
            yield from (function(*arguments, observer) for function, arguments in tasks)
            return
        futures: set[Future[Any]] = set()
        try:
            futures = {self._started().submit(_run, *task) for task in tasks}
            while futures:
                done, futures = wait(futures, LOOK_EVERY, FIRST_COMPLETED)
                self._pass_on(observer)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise ResourceError(
                "a process of the study died",
                expected="its result",
                got=str(error)[:200],
                do="look above for what it said; --jobs 1 needs least memory. What is finished is kept",
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            # What is put into a simple queue is in it before the task goes on: nothing is told after a task's end.
            self._told = context.SimpleQueue()
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=context, initializer=_begin, initargs=(self._told,)
            )
        return self._pool

    def _pass_on(self, observer: Told) -> None:
        while not self._told.empty():
            observer(self._told.get())

    def _stop(self) -> None:
        if self._pool is None:
            return
        for process in list(getattr(self._pool, "_processes", {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _begin(queue: Any) -> None:
    """Runs first in each process. Ctrl-C is the parent's to answer, which ends the workers."""
    global _queue
    _queue = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """One task in a worker; what it raises can be raised by the parent."""
    try:
        return function(*arguments, _queue.put)
    except KleashError:
        raise
    except Exception as error:
        raise portable(error) from None
