"""What the guard did, as a table in the terminal."""

from collections.abc import Iterator

from rich.console import JustifyMethod

from kleash.cli.console import Screen
from kleash.replay import Governed, Watched
from kleash.report.text import number, steps_told, verdict_counts

COLUMNS: dict[str, JustifyMethod] = {
    "guard": "left",
    "came to": "right",
    "limit": "right",
    "": "left",
}


def show_guard(screen: Screen, found: Governed | None) -> None:
    """Limits, budgets and alarms with how near the run came; nothing where none was set and nothing was undone."""
    if found is None:
        return
    rows = [*_limits(found), *_budgets(found), *_alarms(found)]
    if rows:
        screen.table(COLUMNS, rows)
    if rows or found.events:
        screen.say(f"updates  {verdict_counts(found.verdicts)}")


def guard_line(found: Governed) -> str:
    """The same in a line.

    Examples:
        >>> guard_line(Governed(verdicts={"accept": 49, "shrink": 1}))
        '49 accepted, 1 shortened'
    """
    rung = [f"alarm {alarm.alarm} {_rang(alarm)}" for alarm in found.alarms if alarm.rang]
    quiet = ["no alarm rang"] if found.alarms and not rung else []
    return "; ".join([verdict_counts(found.verdicts), *rung, *quiet])


def _limits(found: Governed) -> Iterator[list[str]]:
    for held in found.limits:
        sign = "≥" if held.is_floor else "≤"
        where = "" if held.step is None else f"step {held.step}"
        limit = f"{sign} {number(held.bound)} {held.unit}".strip()
        yield [held.limit, number(held.worst), limit, where]


def _budgets(found: Governed) -> Iterator[list[str]]:
    for budget in found.budgets:
        measured = f"spent, by law; {number(budget.measured)} measured"
        yield [budget.limit, number(budget.spent), f"≤ {number(budget.total)}", measured]


def _alarms(found: Governed) -> Iterator[list[str]]:
    for alarm in found.alarms:
        rang = f"{_rang(alarm)}: {alarm.action}" if alarm.rang else "did not ring"
        yield [f"alarm {alarm.alarm}", number(alarm.evidence), f"< {number(alarm.mean_time)}", rang]


def _rang(alarm: Watched) -> str:
    return f"rang at step {steps_told(alarm.rang)}"
