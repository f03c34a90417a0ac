"""From run views to one HTML file that holds everything it needs and sends nothing anywhere."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kleash
from kleash.errors import InputError, ResourceError
from kleash.report.charts import arm_charts, run_charts
from kleash.report.drift import Table, drift_tables
from kleash.report.figures import Chart
from kleash.report.guarded import Guarded, guarded
from kleash.report.page import render
from kleash.report.samples import HOTTEST, exchanges
from kleash.report.text import interval, number
from kleash.report.theme import ALONE, TEMPLATES, run_colour
from kleash.report.view import RunView


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One figure at the head of a run."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is known of the run's record at the time the page is made."""

    state: str
    """`verified`, `failed` or `unchecked`."""
    head: str = ""
    """Hash of the ledger's last entry, when verified."""
    keys: tuple[str, ...] = ()
    """That signed it."""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One run: its head, its charts, its settings."""

    run: RunView
    colour: str
    facts: tuple[Fact, ...]
    verdict: Verdict
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    guard: Guarded | None
    """None where the record was not verified: nobody's word for what the guard did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run in the summary table; a cell is a number's text."""

    name: str
    colour: str
    cells: tuple[str, ...]
    run: str
    verdict: Verdict
    guard: str
    """What the guard did, in a few words."""


def render_run(run: RunView, verification: Mapping[str, Any] | None = None) -> str:
    """The report of one run.

    Args:
        run: the run.
        verification: what verifying its ledger found just now, as `Verification.to_json()`: `ok`, `head`,
            `problems`. The page says "verified" only if `ok` is True in it.
    """
    panel = _panel(run, ALONE, verification)
    return _page(title=run.name, lead=(), panels=(panel,), summary=())


def render_runs(
    runs: Sequence[RunView],
    *,
    title: str,
    summary: Sequence[Mapping[str, Any]] | None = None,
    verifications: Sequence[Mapping[str, Any] | None] | None = None,
) -> str:
    """The report of several runs, the arms of one experiment, against each other.

    Args:
        runs: at least one; their order gives their colours.
        title: the page's heading.
        summary: rows of the table with the keys `name`, `proxy_reward`, `gold_reward`,
            `kl_policy_ref_per_response`, `kl_low`, `kl_high`, `distinct_2`, `mean_length`, `run`; None: not measured.
        verifications: one for each run, as in `render_run`; None for a run that was not verified.

    Raises:
        InputError: no run, or not one verification for each.
    """
    checks = [None] * len(runs) if verifications is None else verifications
    if not runs or len(checks) != len(runs):
        raise InputError(
            "there is nothing to compare",
            expected="at least one run, and one verification (or None) for each",
            got=f"{len(runs)} runs, {len(checks)} verifications",
        )
    colours = [run_colour(index) for index in range(len(runs))]
    panels = [_panel(*arm) for arm in zip(runs, colours, checks, strict=True)]
    rows = [_row(row, index, panels) for index, row in enumerate(summary or ())]
    return _page(title=title, lead=arm_charts(runs, colours), panels=panels, summary=rows)


def render_charts(charts: Sequence[Chart], *, title: str) -> str:
    """A page of charts alone, of what is no run."""
    return _page(title=title, lead=charts, panels=(), summary=())


def write_report(html: str, path: str | Path) -> None:
    """Write the page in one move: whoever opens it finds the old file or the whole new one.

    Raises:
        ResourceError: the file cannot be written.
    """
    target = Path(path)
    part: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=".report-", delete=False
        ) as file:
            part = Path(file.name)
            file.write(html.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(target)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise ResourceError(
            f"the report cannot be written to {target}",
            got=error.strerror or str(error),
            do="free some space, or choose a directory that can be written",
        ) from error


def _page(
    *, title: str, lead: Sequence[Chart], panels: Sequence[Panel], summary: Sequence[Row]
) -> str:
    runs, colours = [panel.run for panel in panels], [panel.colour for panel in panels]
    return render(
        {
            "title": title,
            "lead": lead,
            "panels": panels,
            "summary": summary,
            "exchanges": exchanges(runs, colours),
            "hottest": HOTTEST,
            "templates": TEMPLATES,
            "version": kleash.__version__,
        }
    )


def _panel(run: RunView, colour: str, verification: Mapping[str, Any] | None) -> Panel:
    verdict = _verdict(verification)
    return Panel(
        run=run,
        colour=colour,
        facts=_facts(run),
        verdict=verdict,
        charts=tuple(run_charts(run, colour)),
        tables=tuple(drift_tables(run)),
        guard=guarded(verification.get("guard"))
        if verification is not None and verdict.state == "verified"
        else None,
    )


def _facts(run: RunView) -> tuple[Fact, ...]:
    controller, planned = run.setting("rl", "controller"), run.setting("train", "steps")
    reference, limit = run.setting("model", "reference"), run.limit("max_kl")
    kl = [run.last(f"kl_policy_ref_per_{run.unit}{end}") for end in ("", "_low", "_high")]
    steps = (
        f"{run.steps[-1] if run.steps else 0} of {planned} steps"
        if isinstance(planned, int)
        else f"{len(run.steps)} steps"
    )
    return (
        Fact(
            name="KL(π‖π_ref), last step",
            value=interval(*kl),
            note=f"nats per {run.unit}, 95 % interval",
        ),
        Fact(
            name="Target",
            value=number(run.target),
            note=f"nats per {run.unit}"
            + ("" if limit is None else f", hard limit {number(limit)}"),
        ),
        Fact(
            name="Updates",
            value="not judged one by one"
            if not run.is_judged
            else f"{number(run.accepted)} accepted · {number(run.rejected)} rejected",
            note=steps,
        ),
        Fact(
            name="Algorithm",
            value=run.method,
            note=f"{controller} β" if isinstance(controller, str) else "",
        ),
        Fact(
            name="Model",
            value=_words(run.setting("model", "policy")),
            note=f"against {reference}"
            if isinstance(reference, str)
            else "against its own frozen copy",
        ),
    )


def _verdict(verification: Mapping[str, Any] | None) -> Verdict:
    """Verified only if the verification says so in as many words."""
    if verification is None:
        return Verdict(state="unchecked")
    if verification.get("ok") is True:
        keys = tuple(str(key) for key in verification.get("keys", ()))
        return Verdict(state="verified", head=str(verification.get("head", "")), keys=keys)
    problems = verification.get("problems") or ("the verification did not pass",)
    return Verdict(state="failed", problems=tuple(_sentence(problem) for problem in problems))


def _sentence(problem: Any) -> str:
    if isinstance(problem, Mapping):
        return f"{problem.get('where', '')}: {problem.get('what', '')}"
    return str(problem)


def _row(row: Mapping[str, Any], index: int, panels: Sequence[Panel]) -> Row:
    """The row, beside the run it names (by place, when it names none)."""
    names = [panel.run.name for panel in panels]
    name, run = str(row.get("name", "")), str(row.get("run") or "")
    found = next((names.index(key) for key in (Path(run).name, name) if key in names), index)
    kl = interval(row.get("kl_policy_ref_per_response"), row.get("kl_low"), row.get("kl_high"))
    first, last = ("proxy_reward", "gold_reward"), ("distinct_2", "mean_length")
    panel = panels[found] if found < len(panels) else None
    return Row(
        name=name,
        colour=run_colour(found),
        cells=(
            *(number(row.get(key)) for key in first),
            kl,
            *(number(row.get(key)) for key in last),
        ),
        run=run,
        verdict=Verdict(state="unchecked") if panel is None else panel.verdict,
        guard=number(None) if panel is None or panel.guard is None else panel.guard.brief,
    )


def _words(value: Any) -> str:
    return value if isinstance(value, str) else number(None)
