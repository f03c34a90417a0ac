"""Where the KL is: the page shows what drift.jsonl says, and nothing where there is none."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plotly.graph_objects import Figure as PlotlyFigure

from kleash.report import RunView, load_run, render_run
from kleash.report.charts import kl, run_charts
from kleash.report.drift import TOP, by_position, drift_charts, drift_tables, tails
from kleash.report.figures import Figure
from kleash.report.theme import PALETTE
from kleash.report.view import Place, Share

MakeRun = Callable[..., Path]

TAILS = {
    "kl_policy_ref_per_token": (0.0, 0.125, 0.25, 0.5),
    "kl_policy_ref_per_token_p99": (0.0, 0.5, None, 2.0),
    "kl_policy_ref_per_token_max": (1e-9, 1.0, math.inf, 8.0),
}


@pytest.fixture
def run(make_run: MakeRun) -> RunView:
    return load_run(make_run())


def with_tails(run: RunView, tails: Mapping[str, tuple[float | None, ...]] = TAILS) -> RunView:
    return replace(run, metrics={**run.metrics, **tails})


def with_positions(run: RunView, *nats: float | None) -> RunView:
    places = tuple(Place(position=at, nats=value, count=1) for at, value in enumerate(nats))
    return replace(run, drift=(replace(run.drift[-1], by_position=places),))


def drawn(figure: Figure | None) -> list[dict[str, Any]]:
    assert figure is not None
    return figure["data"]


def test_the_last_line_is_drawn_over_the_first_that_had_drifted(run: RunView) -> None:
    chart = by_position(run, PALETTE[0])
    area, before, last = drawn(chart.figure)
    assert (before["x"], before["y"]) == ([0, 1, 2], [0.75, 0.25, 0.125])
    assert (last["x"], last["y"]) == ([0, 1, 2], [3.0, 1.0, 0.5])
    assert last["text"] == ["3 nats, 8 responses", "1 nats, 6 responses", "0.50 nats, 2 responses"]
    assert area["x"] == [0, 0, 0.5, 0.5, 1.5, 1.5, 2, 2, None]
    assert area["y"] == [0, 3, 3, 1, 1, 0.5, 0.5, 0, None]
    assert chart.reading.endswith("Drawn at step 4; faint, step 2.")


def test_a_line_without_drift_is_no_comparison(run: RunView) -> None:
    chart = by_position(replace(run, drift=(run.drift[0], run.drift[2])), PALETTE[0])
    assert len(drawn(chart.figure)) == 2
    assert chart.reading.endswith("Drawn at step 4.")


def test_a_drift_that_was_measured_as_none_is_drawn_at_zero(run: RunView) -> None:
    figure = by_position(replace(run, drift=run.drift[:1]), PALETTE[0]).figure
    assert drawn(figure)[-1]["y"] == [0, 0, 0]
    assert figure is not None
    assert figure["layout"]["yaxis"]["range"][0] == 0


def test_a_position_without_a_number_is_a_gap(run: RunView) -> None:
    figure = by_position(with_positions(run, 1.0, math.nan, 2.0, None, math.inf), PALETTE[0]).figure
    area, last = drawn(figure)
    assert last["y"] == [1.0, None, 2.0, None, None]
    assert last["text"][1:4] == [
        "nan nats, 1 responses",
        "2 nats, 1 responses",
        "– nats, 1 responses",
    ]
    assert area["y"] == [0, 1, 1, 0, None, 0, 2, 2, 0, None]
    assert figure is not None
    assert figure["layout"]["yaxis"]["range"] == pytest.approx([0, 2.12])


@pytest.mark.parametrize("nats", [(), (None,), (math.nan, math.inf)])
def test_positions_without_any_number_have_no_figure(
    run: RunView, nats: tuple[float | None, ...]
) -> None:
    assert by_position(with_positions(run, *nats), PALETTE[0]).figure is None


def test_the_tails_are_on_a_log_axis_above_rounding(run: RunView) -> None:
    chart = tails(with_tails(run), PALETTE[0])
    assert "log axis" in chart.title
    assert {trace["name"]: trace["y"] for trace in drawn(chart.figure)} == {
        "max": [None, 1.0, None, 8.0],
        "p99": [None, 0.5, None, 2.0],
        "mean": [None, 0.125, 0.25, 0.5],
    }
    assert chart.figure is not None
    axis = chart.figure["layout"]["yaxis"]
    assert axis["type"] == "log"
    assert axis["range"][0] < math.log10(0.125) < math.log10(8) < axis["range"][1]


def test_tails_of_a_policy_that_has_not_moved_are_drawn_at_zero(run: RunView) -> None:
    chart = tails(with_tails(run, dict.fromkeys(TAILS, (0.0,) * 4)), PALETTE[0])
    assert "log" not in chart.title
    assert [trace["y"] for trace in drawn(chart.figure)] == [[0.0] * 4] * 3


def test_plotly_knows_every_property(run: RunView) -> None:
    charts = drift_charts(with_tails(run), PALETTE[0])
    assert [PlotlyFigure(chart.figure).data != () for chart in charts] == [True, True]


def test_the_tables_show_the_numbers_of_the_last_line(run: RunView) -> None:
    prompts, tokens = drift_tables(run)
    assert [(row.text, row.nats, row.count, row.bar) for row in prompts.rows] == [
        ("It begins", "6", "4", 1.0),
        ("At first", "3", "3", 0.5),
    ]
    assert [(row.text, row.nats, row.count, row.bar) for row in tokens.rows] == [
        ("␣good", "+2", "5", 1.0),
        ("↵↵", "−1", "1", -0.5),
    ]
    html = render_run(run)
    table = html[html.index("Tokens that moved most") :]
    assert "at step 4" in table[:400]
    assert table.index("␣good") < table.index("+2") < table.index("↵↵") < table.index("−1")
    assert html.count('<i class="less" style="--w: -0.5">') == 1


def test_a_table_has_the_first_of_the_file_in_its_order(run: RunView) -> None:
    shares = tuple(Share(text=f"t{index}", nats=index / 16, count=1) for index in range(TOP + 3))
    line = replace(run.drift[-1], by_token=shares, by_prompt=())
    prompts, tokens = drift_tables(replace(run, drift=(line,)))
    assert prompts.rows == ()
    assert "drift.jsonl has more" not in prompts.reading
    assert [row.text for row in tokens.rows] == [f"t{index}" for index in range(TOP)]
    line = replace(run.drift[-1], by_prompt=shares)
    prompts, _ = drift_tables(replace(run, drift=(line,)))
    assert [row.text for row in prompts.rows] == [f"t{index}" for index in range(TOP)]
    assert "drift.jsonl has more" in prompts.reading


def test_a_share_without_a_number_has_no_bar(run: RunView) -> None:
    values = (math.inf, math.nan, None, 0.5)
    shares = tuple(Share(text="a", nats=nats, count=1) for nats in values)
    line = replace(run.drift[-1], by_prompt=shares, by_token=shares)
    for table in drift_tables(replace(run, drift=(line,))):
        assert [row.nats.lstrip("+") for row in table.rows] == ["inf", "nan", "–", "0.50"]
        assert [row.bar for row in table.rows] == [0.0, 0.0, 0.0, 1.0]


def test_hidden_and_long_text_is_made_visible_and_cut(run: RunView) -> None:
    share = Share(text=" \u202e\x1b[1m\u00a0" + "x" * 4000, nats=1.0, count=1)
    line = replace(run.drift[-1], by_prompt=(share,), by_token=(share,))
    prompt, token = (table.rows[0].text for table in drift_tables(replace(run, drift=(line,))))
    assert token.startswith("␣⟨U+202E⟩␛[1m⟨U+00A0⟩xxx")
    assert prompt.startswith(" ⟨U+202E⟩␛[1m")
    assert (len(prompt), len(token)) == (300, 60)


def test_a_run_without_the_file_shows_nothing_of_it(make_run: MakeRun) -> None:
    old = load_run(make_run("old", drift=None))
    shown = {
        "Where the KL is",
        "KL(π‖π_ref) per token",
        "Prompts that drifted",
        "Tokens that moved",
    }
    assert not [words for words in shown if words in render_run(old)]
    assert drift_tables(old) == []
    assert drift_charts(old, PALETTE[0]) == []
    new = render_run(load_run(make_run("new")))
    assert all(words in new for words in shown)


def test_tails_without_the_file_say_that_the_positions_are_missing(make_run: MakeRun) -> None:
    charts = drift_charts(with_tails(load_run(make_run(drift=None))), PALETTE[0])
    assert [chart.figure is None for chart in charts] == [True, False]


def test_both_charts_are_among_those_of_the_run(run: RunView) -> None:
    titles = [chart.title for chart in run_charts(with_tails(run), PALETTE[0])]
    assert titles[3:5] == [
        "Where the KL is, by position in the response",
        "KL(π‖π_ref) per token, nats (log axis)",
    ]


def trusted(run: RunView, *verdicts: float | None) -> RunView:
    return with_tails(run, {"kl_policy_ref_per_response_trusted": verdicts})


def test_the_kl_chart_says_where_its_interval_rests_on_one_response(run: RunView) -> None:
    reading = kl([trusted(run, 1, 0, 0, 1)], [PALETTE[0]]).reading
    assert "Don't rest on the interval at 2 of 4 steps: " in reading
    for sure in (run, trusted(run, 1, 1, 1, 1), trusted(run, None, None, None, 1)):
        assert "Don't rest" not in kl([sure], [PALETTE[0]]).reading


def test_several_runs_are_named_where_theirs_do(run: RunView) -> None:
    free = replace(trusted(run, 0, 0, 0, 1), name="free")
    runs = [free, trusted(run, 1, 1, 1, 1), replace(trusted(run, 1, 1, 1, 0), name="held")]
    reading = kl(runs, PALETTE[:3]).reading
    assert "at 3 of 4 steps of free, 1 of 4 steps of held: " in reading
