"""The endpoint of a run: a server, and the figures that it serves, fed by the records of the run's steps."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kleash.guard import GuardConfig
from kleash.integrations.prometheus.figures import Figures
from kleash.integrations.prometheus.server import PATH, PageServer
from kleash.ledger import has_ledger, read
from kleash.records import StepRecord
from kleash.replay import Plan
from kleash.replay.overrides import overrides_of

if TYPE_CHECKING:
    from kleash.train.config import RunConfig


class Endpoint:
    """Serves a run's figures while it is open. Anyone who can reach it can read them: nobody is asked who they are.

    Args:
        config: of the run.
        run: its directory, whose ledger says what became of the limits.
        host: name or address to listen at.
        port: 0: one that is free.

    Raises:
        InputError: it can't listen there.

    Examples:
        >>> from kleash.train.config import RunConfig
        >>> with Endpoint(RunConfig(), Path("runs/none"), port=0) as endpoint:
        ...     endpoint.url
        'http://127.0.0.1:.../metrics'
    """

    def __init__(
        self, config: "RunConfig", run: Path, *, host: str = "127.0.0.1", port: int = 9400
    ) -> None:
        self._run, self._guard, self._figures = run, config.guard, Figures(config)
        self._server = PageServer(self._figures.page, host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.port}{PATH}"

    def watch(self, records: Iterable[StepRecord]) -> Iterator[StepRecord]:
        """The records, each shown before it is handed on."""
        plan = None
        for record in records:
            plan = plan or _plan(self._run, self._guard)
            self._figures.observe(record, plan.at(record.step))
            yield record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()


def _plan(run: Path, guard: GuardConfig) -> Plan:
    """The limits step by step, as they were overridden before the run went on: while it runs its ledger is locked."""
    entries = read(run / "ledger") if has_ledger(run / "ledger") else []
    return Plan(guard, tuple(overrides_of(entries, guard)[0]))
