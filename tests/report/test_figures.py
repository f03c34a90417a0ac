"""Figures are valid, their gaps stay gaps, and their labels and colours can be told apart."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.graph_objects import Figure as PlotlyFigure

from kleash.report import RunView, load_run
from kleash.report.charts import arm_charts, kl, kl_coef, reward, run_charts
from kleash.report.figures import segments, spread
from kleash.report.overoptimisation import overoptimisation
from kleash.report.theme import CARDS, PALETTE, TEMPLATES, run_colour

MakeRun = Callable[..., Path]
Metric = tuple[float | None, ...]


@pytest.fixture
def run(make_run: MakeRun) -> RunView:
    return load_run(make_run())


def with_metrics(run: RunView, metrics: dict[str, Metric]) -> RunView:
    return replace(run, metrics=dict(run.metrics) | metrics)


def test_plotly_knows_every_property(run: RunView) -> None:
    charts = [*run_charts(run, PALETTE[0]), *arm_charts([run, run], PALETTE[:2])]
    drawn = [chart.figure for chart in charts if chart.figure is not None]
    assert len(drawn) > 8
    for figure in drawn:
        PlotlyFigure(figure)
    for template in TEMPLATES.values():
        PlotlyFigure(layout={"template": template})


def test_a_metric_that_was_never_measured_has_no_figure(run: RunView) -> None:
    by_title = {chart.title: chart.figure for chart in run_charts(run, PALETTE[0])}
    assert by_title["Value loss"] is None
    assert by_title["Entropy, nats per token"] is not None


def test_an_unmeasured_step_is_a_gap(run: RunView) -> None:
    figure = kl([run], [PALETTE[0]]).figure
    assert figure is not None
    ribbon, line, crosses = figure["data"]
    assert line["y"] == [0.25, None, 9.0, 4.0]
    assert line["text"] == ["0.25 [0, 0.50]", "–", "9 [8.75, 9.25]", "4 [3.75, 4.25]"]
    assert ribbon["x"] == [1, 1, None, 3, 4, 4, 3, None]
    assert ribbon["y"] == [0.5, 0.0, None, 9.25, 4.25, 3.75, 8.75, None]
    assert crosses["y"] == [None, None, 9.0, None]


def test_values_that_are_not_finite_are_gaps(run: RunView) -> None:
    odd = with_metrics(run, {"kl_coef": (0.1, math.nan, math.inf, 0.2)})
    figure = kl_coef([odd], [PALETTE[0]]).figure
    assert figure is not None
    assert figure["data"][0]["y"] == [0.1, None, None, 0.2]


def test_the_target_is_drawn_with_its_band(run: RunView) -> None:
    figure = kl([run], [PALETTE[0]]).figure
    assert figure is not None
    band, line = figure["layout"]["shapes"]
    assert (band["y0"], band["y1"]) == pytest.approx((3.2, 4.8))
    assert (line["y0"], line["y1"]) == (4.0, 4.0)


def test_a_target_per_token_is_drawn_on_the_kl_per_token(run: RunView) -> None:
    config = {"rl": {"kl_unit": "token"}}
    token = replace(
        run, config=config, metrics=dict(run.metrics) | {"kl_policy_ref_per_token": (1.0,) * 4}
    )
    chart = kl([token], [PALETTE[0]])
    assert chart.title == "KL(π‖π_ref), nats per token"
    assert chart.figure is not None
    assert chart.figure["data"][0]["y"] == [1.0] * 4
    picture = overoptimisation([token], [PALETTE[0]]).figure
    assert picture is not None
    assert picture["layout"]["shapes"] == []


@pytest.mark.parametrize(
    ("values", "log"),
    [((0.1, 0.4, 1.6, 6.4), True), ((0.1, 0.2, 0.3, 0.9), False), ((0.0, 0.1, 1.0, 9.0), False)],
)
def test_kl_coef_is_on_a_log_axis_beyond_a_decade(
    run: RunView, values: tuple[float, ...], log: bool
) -> None:
    chart = kl_coef([with_metrics(run, {"kl_coef": values})], [PALETTE[0]])
    assert chart.figure is not None
    assert (chart.figure["layout"]["yaxis"].get("type") == "log") is log
    assert ("log axis" in chart.title) is log
    low, high = chart.figure["layout"]["yaxis"]["range"]
    drawn = [math.log10(value) if log else value for value in values]
    assert low < min(drawn) < max(drawn) < high


def test_the_proxy_is_dashed_and_gold_solid(run: RunView) -> None:
    figure = reward(run, PALETTE[0]).figure
    assert figure is not None
    assert [(trace["name"], trace["line"]["dash"] == "solid") for trace in figure["data"]] == [
        ("proxy", False),
        ("gold", True),
    ]


def test_overoptimisation_is_against_the_root_of_kl(run: RunView) -> None:
    figure = overoptimisation([run], [PALETTE[0]]).figure
    assert figure is not None
    proxy, _, gold, _ = figure["data"]
    assert proxy["x"] == [0.5, None, 3.0, 2.0]
    assert proxy["y"] == [0.5, None, 1.5, 2.0]
    assert gold["x"] == [0.5, None, None, 2.0]  # gold was not measured at step 3
    leash = figure["layout"]["shapes"][0]
    assert leash["x0"] == leash["x1"] == 2.0
    ticks = figure["layout"]["xaxis"]
    assert ticks["tickvals"][2] ** 2 == pytest.approx(float(ticks["ticktext"][2]))


def test_trend_lines_begin_where_the_run_did_and_keep_gaps(run: RunView) -> None:
    figure = overoptimisation([run], [PALETTE[0]]).figure
    assert figure is not None
    line = figure["data"][1]
    assert line["y"] == pytest.approx([0.5, None, (0.5 + 1.5 + 2.0) / 3, (1.5 + 2.0) / 2])


def test_a_negative_kl_estimate_has_no_root(run: RunView) -> None:
    odd = with_metrics(run, {"kl_policy_ref_per_response": (-0.1, 1.0, 4.0, 9.0)})
    figure = overoptimisation([odd], [PALETTE[0]]).figure
    assert figure is not None
    assert figure["data"][0]["x"] == [None, 1.0, 2.0, 3.0]


@given(st.lists(st.floats(-1e3, 1e3), max_size=12).map(sorted))
def test_labels_keep_their_distance_and_their_order(positions: list[float]) -> None:
    moved = [at + move for at, move in zip(positions, spread(positions, gap=17), strict=True)]
    assert all(b - a >= 17 - 1e-6 for a, b in itertools.pairwise(moved))
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1))))
def test_segments_hold_every_measured_row_once(values: list[float | None]) -> None:
    covered = [index for part in segments(values) for index in range(part.start, part.stop)]
    assert covered == [index for index, value in enumerate(values) if value is not None]


Rgb = tuple[float, float, float]
Matrix = tuple[Rgb, Rgb, Rgb]


def linear(colour: str) -> Rgb:
    """Linear light of a hex colour."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return r, g, b


def times(matrix: Matrix, rgb: Rgb) -> Rgb:
    a, b, c = (sum(w * v for w, v in zip(row, rgb, strict=True)) for row in matrix)
    return a, b, c


XYZ: Matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))

# Machado, Oliveira and Fernandes 2009, severity 1.
EYES: dict[str, Matrix] = {
    "trichromat": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanope": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranope": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanope": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def lab(colour: str, eye: Matrix) -> Rgb:
    """CIELAB coordinates of a colour as this eye sees it."""
    r, g, b = (min(1.0, max(0.0, v)) for v in times(eye, linear(colour)))
    xyz = zip(times(XYZ, (r, g, b)), (0.9505, 1.0, 1.089), strict=True)
    x, y, z = ((v / w) ** (1 / 3) if v / w > 0.008856 else 7.787 * v / w + 16 / 116 for v, w in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(a: str, b: str) -> float:
    """The contrast ratio of WCAG 2."""
    dark, light = sorted(times(XYZ, linear(colour))[1] for colour in (a, b))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_run_colours_stand_out_from_both_cards(card: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert min(contrast(colour, card) for colour in PALETTE) >= 3.0


@pytest.mark.parametrize("eye", EYES.values(), ids=EYES)
def test_run_colours_differ_to_every_eye(eye: Matrix) -> None:
    seen = [lab(colour, eye) for colour in PALETTE]
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen[:3], 2)) >= 30
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) >= 10


def test_colours_repeat_beyond_the_palette() -> None:
    assert run_colour(len(PALETTE) + 1) == PALETTE[1]
