"""From run directories and comparisons to one self-contained, offline HTML file."""

from kleash.report.comparison import render_comparison
from kleash.report.html import render_run, render_runs, write_report
from kleash.report.model_card import drift_card
from kleash.report.view import Drift, RunView, Sample, load_run

__all__ = [
    "Drift",
    "RunView",
    "Sample",
    "drift_card",
    "load_run",
    "render_comparison",
    "render_run",
    "render_runs",
    "write_report",
]
