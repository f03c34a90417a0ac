"""Tasks side by side, each in a process of its own.

A task gives all its memory back when it ends, and three of them use three cores.
"""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from queue import Empty
from typing import Any, TypeVar

from kleash.errors import KleashError, ResourceError

PATIENCE = 5.0
"""Seconds that a task is given to end by itself when another has failed."""

E = TypeVar("E")  # what a task says while it runs
T = TypeVar("T")  # what it returns
Observer = Callable[[E], None]
Task = Callable[[Observer[E]], T]


def side_by_side(
    tasks: dict[str, Task[E, T]], observer: Observer[E], *, at_once: int | None = None
) -> dict[str, T]:
    """Runs every task in a fresh process and returns what each returned.

    Args:
        tasks: by name; a task must pickle, and so must what it says and returns.
        observer: told, in this process, what the tasks tell theirs.
        at_once: how many run side by side; None: all.

    Raises:
        Exception: a task raised it; the others are stopped.
        ResourceError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = {
        name: context.Process(target=_work, args=(name, task, queue), daemon=True)
        for name, task in tasks.items()
    }
    waiting = list(workers.values())
    results: dict[str, T] = {}
    try:
        for _ in range(len(tasks) if at_once is None else at_once):
            _start_next(waiting)
        for kind, name, value in _messages(queue, workers, results):
            if kind == "event":
                observer(value)
            elif kind == "result":
                results[name] = value
                _start_next(waiting)
            else:
                raise value
        for worker in workers.values():
            worker.join()
    except BaseException:
        for worker in (worker for worker in workers.values() if worker not in waiting):
            # An interrupted run is saving what it has; one that goes on must be stopped.
            worker.join(PATIENCE)
            worker.terminate()
        raise
    return {name: results[name] for name in tasks}


def _start_next(waiting: list[Any]) -> None:
    if waiting:
        waiting[0].start()
        del waiting[0]  # one that could not be started is none to be waited for


def _messages(
    queue: Any, workers: dict[str, Any], results: dict[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    """What the workers say, until each has delivered its result."""
    while len(results) < len(workers):
        try:
            yield queue.get(timeout=1.0)
        except Empty:
            for name, worker in workers.items():
                if name not in results and worker.exitcode is not None:
                    raise _died(name, worker.exitcode) from None


def _died(name: str, exit_code: int) -> ResourceError:
    return ResourceError(
        f"the process of {name!r} died",
        expected="its result",
        got=f"exit code {exit_code}",
        do="look above for what it said; is there enough memory?",
    )


def portable(error: Exception) -> Exception:
    """The exception as another process can raise it, with its traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    # A class of somebody else's may not be made again from its message.
    if type(error).__module__ != "builtins":
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error


def _work(name: str, task: Task[Any, Any], queue: Any) -> None:
    """One task from start to result. Runs in its own process."""
    try:
        queue.put(("result", name, task(lambda event: queue.put(("event", name, event)))))
    except KleashError as error:
        queue.put(("error", name, error))
    except Exception as error:
        queue.put(("error", name, portable(error)))
    except KeyboardInterrupt:
        # A run has recorded the interruption; the parent, which got it too, tells the user.
        return
