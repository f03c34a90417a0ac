"""One HTML file that holds everything it needs: no request leaves it, no text in it runs.

Every string on the page passes through `visible` and Jinja's autoescape. The figures travel as escaped JSON in a
script element that is data, not code. A content security policy admits our two scripts by their digest, nothing else.
"""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import kleash
from kleash.errors import ConfigError, ResourceError
from kleash.report.charts import Chart, arm_charts, run_charts
from kleash.report.samples import HOTTEST, exchanges
from kleash.report.text import interval, number, visible
from kleash.report.theme import TEMPLATES, run_colour
from kleash.report.view import RunView

Verification = Mapping[str, Any]
"""What checking a run's ledger found: `ok` (bool), `head` (hash of the last entry), `problems` (sentences)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One run as the page shows it: its head, its charts, its settings."""

    run: RunView
    colour: str
    facts: tuple[tuple[str, str, str], ...]
    """Name, value, note."""
    verdict: str
    """`verified`, `failed` or `unknown`."""
    head: str
    """The ledger's head hash; empty unless verified."""
    problems: tuple[str, ...]
    charts: tuple[tuple[int, Chart], ...]
    """Each with its number among the page's figures."""


def render_run(run: RunView, verification: Verification | None = None) -> str:
    """The report of one run.

    Args:
        run: the run.
        verification: what checking its ledger found just now; the page says "verified" only if `ok` is True in it.
    """
    page = _Page()
    panel = page.panel(run, run_colour(0), verification)
    return page.html(title=run.name, lead=(), panels=(panel,), summary=())


def render_runs(
    runs: Sequence[RunView],
    *,
    title: str,
    summary: Sequence[Mapping[str, Any]] | None = None,
    verifications: Sequence[Verification | None] | None = None,
) -> str:
    """The report of several runs (the arms of one experiment) against each other.

    Args:
        runs: at least one; their order gives their colours.
        title: the page's heading.
        summary: rows of the table: `name`, `proxy_reward`, `gold_reward`, `kl_policy_ref_per_response`, `kl_low`,
            `kl_high`, `distinct_2`, `mean_length`, `run`. None means not measured.
        verifications: one for each run, None for a run that was not checked.

    Raises:
        ConfigError: no run, or not one verification for each.
    """
    checks = [None] * len(runs) if verifications is None else list(verifications)
    if not runs or len(checks) != len(runs):
        raise ConfigError(
            "the report cannot be laid out",
            expected="at least one run, and one verification (or None) for each",
            got=f"{len(runs)} runs, {len(checks)} verifications",
        )
    page = _Page()
    colours = [run_colour(index) for index in range(len(runs))]
    lead = page.number(arm_charts(runs, colours))
    panels = tuple(
        page.panel(run, colour, check) for run, colour, check in zip(runs, colours, checks, strict=True)
    )
    return page.html(title=title, lead=lead, panels=panels, summary=_rows(summary or (), runs, colours))


def write_report(html: str, path: str | Path) -> None:
    """Write the page in one move: a reader finds the old file or the whole new one.

    Raises:
        ResourceError: the file cannot be written.
    """
    target = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".report-", delete=False) as file:
            temporary = Path(file.name)
            file.write(html.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ResourceError(
            f"the report cannot be written to {target}",
            got=error.strerror or str(error),
            do="free some space, or choose another place with --out",
        ) from error
