"""A study's page and its figure, from documents that are as they should be and from hostile ones."""

import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kleash.report.findings import chapter_of, render_book, render_study
from kleash.report.plot import draw

PANEL = {
    "title": "Gold",
    "x": "√KL",
    "y": "reward",
    "series": [
        {
            "name": "line",
            "x": [0, 1, 2],
            "y": [0.0, None, 2.0],
            "low": [0, 0, 1],
            "high": [1, 1, 3],
        },
        {"name": "dots", "x": [1], "y": [1.0], "low": [0.5], "high": [1.5], "mark": "points"},
        {"name": "bars", "x": [1], "y": [1.0], "low": [None], "high": [None], "mark": "bars"},
    ],
    "at": [[1.0, "peak"]],
    "level": [[0.5, "reference"]],
}
DOCUMENT: dict[str, Any] = {
    "study": "overopt",
    "title": "Over-optimisation",
    "question": "Does it?",
    "command": "kleash lab overopt",
    "config": {"seeds": 5},
    "findings": {
        "answer": "It does.",
        "claims": [
            {
                "name": "gold falls",
                "says": "It falls.",
                "holds": True,
                "unit": "gold reward",
                "estimate": {
                    "value": 0.5,
                    "low": 0.25,
                    "high": 0.75,
                    "level": 0.95,
                    "n": 5,
                    "of": "seeds",
                },
            },
            {"name": "open", "says": "Nobody knows.", "holds": None, "estimate": None},
        ],
        "tables": [
            {"title": "Arms", "columns": ["arm", "KL"], "rows": [["free", 9.5], ["held", None]]}
        ],
        "figure": {"caption": "Two curves.", "panels": [PANEL]},
        "limits": ["One family of models."],
    },
}


def changed(**findings: object) -> dict:
    return {**DOCUMENT, "findings": {**DOCUMENT["findings"], **findings}}


def test_every_column_of_the_claims_has_its_heading() -> None:
    heads = re.findall(r"<thead>(.*?)</thead>", render_study(DOCUMENT), re.S)
    assert heads
    for head in heads:
        assert all(re.findall(r"<th[^>]*>(.*?)</th>", head))


def test_what_the_page_says() -> None:
    page = render_study(DOCUMENT)
    for text in (
        *("It does.", "gold falls", "0.50 [0.25, 0.75] gold reward", "95 % interval, 5 seeds"),
        *("One family of models.", "kleash lab overopt", "Two curves.", "does not show"),
    ):
        assert text in page
    assert chapter_of(DOCUMENT).claims[1].value == "–"
    assert [claim.verdict for claim in chapter_of(DOCUMENT).claims] == ["holds", "open"]


def test_the_page_runs_nothing_and_loads_nothing() -> None:
    page = render_study(DOCUMENT)
    assert "<script" not in page
    assert "script-src &#39;none&#39;" in page or "script-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert len(page) < 400_000


def test_the_book_has_a_table_of_contents() -> None:
    second = {**DOCUMENT, "study": "collapse", "title": "Collapse"}
    page = render_book([DOCUMENT, second], "The book")
    assert re.findall(r'<li><a href="#([a-z-]+)">', page) == ["overopt", "collapse"]
    assert re.findall(r'<section class="study" id="([a-z-]+)"', page) == ["overopt", "collapse"]
    assert "contents" not in re.findall(r"<nav class=\"(\w+)\"", render_study(DOCUMENT))


HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e$x^2$ {{7*7}}"


def test_text_in_a_document_is_only_shown() -> None:
    panel = {
        **PANEL,
        "title": HOSTILE,
        "x": HOSTILE,
        "series": [{"name": HOSTILE, "x": [1], "y": [2]}],
    }
    document = changed(
        answer=HOSTILE,
        limits=[HOSTILE],
        tables=[{"title": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]]}],
        claims=[{"name": HOSTILE, "says": HOSTILE, "holds": "yes"}],
        figure={"caption": HOSTILE, "panels": [panel]},
    )
    page = render_study({**document, "title": HOSTILE, "study": '"><script>'})
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "49" not in re.findall(r"\b49\b", page)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"findings": None},
        {"findings": []},
        changed(claims="none", tables={"rows": 1}, figure=None, limits=7),
        changed(
            claims=[1, None], tables=[None, {"rows": [1, [None, True]]}], figure={"panels": [{}]}
        ),
        changed(
            figure={"panels": [{"series": [{"x": ["a"], "y": [10**400]}], "at": [[None, 1], 3]}]}
        ),
        changed(figure={"panels": [{"x_log": True, "series": [{"x": [-1, 0], "y": [1, 2]}]}]}),
    ],
)
def test_what_is_missing_or_odd_is_left_out(document: dict) -> None:
    assert "<h1" in render_study(document)


def test_the_figure_in_three_formats_and_the_same_again() -> None:
    drawn = draw({"panels": [PANEL, PANEL, PANEL]})
    assert drawn["svg"].lstrip().startswith(b"<?xml")
    assert drawn["pdf"].startswith(b"%PDF")
    width, height = struct.unpack(">II", drawn["png"][16:24])
    assert width > 1000
    assert height > 700  # two rows
    assert draw({"panels": [PANEL, PANEL, PANEL]}) == drawn
    assert drawn["svg"].count(b'id="matplotlib.axis_') == 2 * 3  # the fourth place is empty


def test_a_log_axis_of_few_places_names_them() -> None:
    from matplotlib.figure import Figure

    from kleash.report.plot import _panel

    axis = Figure().subplots()
    ladder = {"name": "a", "x": [359744, 4212992], "y": [1.0, 2.0], "mark": "both"}
    _panel(axis, {"x_log": True, "series": [ladder, {**ladder, "x": [359744], "y": [0.0]}]})
    assert [text.get_text() for text in axis.get_xticklabels()] == ["360k", "4.2M"]
    assert not axis.get_xticks(minor=True).size

    crowded = Figure().subplots()
    _panel(crowded, {"x_log": True, "series": [{**ladder, "x": [6.36, 7.85], "y": [1.0, 2.0]}]})
    assert 6.36 not in crowded.get_xticks()


def test_a_gap_is_a_gap() -> None:
    """What was not measured is left out, and not drawn at 0."""
    from matplotlib.figure import Figure

    from kleash.report.plot import _panel

    axis = Figure().subplots()
    _panel(axis, {"series": [{"name": "a", "x": [0, 1, 2], "y": [1.0, None, 3.0]}]})
    (line,) = axis.get_lines()
    assert [str(y) for y in np.asarray(line.get_ydata())] == ["1.0", "nan", "3.0"]


@pytest.mark.parametrize(("curves", "below"), [(3, False), (4, True)])
def test_a_legend_of_many_curves_is_below_the_axes_and_covers_none(
    curves: int, below: bool
) -> None:
    from matplotlib.figure import Figure

    from kleash.report.plot import _panel

    figure = Figure(layout="constrained")
    axis = figure.subplots()
    lines = [{"name": f"{i}", "x": [0, 1], "y": [0, i]} for i in range(curves)]
    _panel(axis, {"x": "step", "series": lines})
    figure.draw_without_rendering()
    drawn = axis.get_legend()
    assert drawn is not None
    legend, inside = drawn.get_window_extent(), axis.get_window_extent()
    assert bool(legend.y1 < inside.y0) is below
    assert legend.y0 >= 0  # of the page


def test_a_document_from_disk_is_one_from_memory(tmp_path: Path) -> None:
    again = json.loads(io.StringIO(json.dumps(DOCUMENT)).getvalue())
    assert render_study(again) == render_study(DOCUMENT)
