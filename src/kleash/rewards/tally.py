"""How often reward servers were asked and how that ended: for whoever watches, and nothing is decided by it."""

from threading import Lock
from typing import Literal

Outcome = Literal["answered", "failed"]


class Tally:
    """Counts that threads add to.

    Examples:
        >>> tally = Tally()
        >>> tally.add("host:80", "failed")
        >>> tally.counts()
        {('host:80', 'answered'): 0, ('host:80', 'failed'): 1}
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Outcome], int] = {}
        self._lock = Lock()

    def add(self, server: str, outcome: Outcome) -> None:
        """One more request that ended so."""
        with self._lock:
            for each in ("answered", "failed"):  # a count that begins at 1 has no increase
                self._counts.setdefault((server, each), 0)
            self._counts[server, outcome] += 1

    def counts(self) -> dict[tuple[str, Outcome], int]:
        """So far, by server and outcome."""
        with self._lock:
            return dict(self._counts)


REQUESTS = Tally()
"""Of this process, retries included."""
