"""From run directories to one self-contained, offline HTML file."""

from kleash.report.html import render_run, render_runs, write_report
from kleash.report.view import Drift, RunView, Sample, load_run

__all__ = ["Drift", "RunView", "Sample", "load_run", "render_run", "render_runs", "write_report"]
