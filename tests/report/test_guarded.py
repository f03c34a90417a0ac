"""What the guard did, on the page: from a record that was verified, and from no other."""

from pathlib import Path
from typing import Any

import pytest

from kleash.report import load_run, render_run
from kleash.report.guarded import EVENTS, guard_charts, guarded
from tests.report.conftest import CONFIG, METRICS, MakeRun

ALARM: dict[str, Any] = {
    "alarm": "kl",
    "mean": 5.0,
    "mean_time": 1e4,
    "action": "warn",
    "evidence": 12_500.0,
    "rang": list(range(1, 11)),
}
FOUND: dict[str, Any] = {
    "verdicts": {"accept": 3, "shrink": 1},
    "limits": [
        {"limit": "max_kl", "bound": 8.0, "unit": "nats", "is_floor": False}
        | {"worst": 6.0, "step": 3},
        {"limit": "min_entropy", "bound": 0.5, "unit": "nats", "is_floor": True}
        | {"worst": None, "step": None},
        {"limit": "max_kl_new_old", "bound": 0.5, "unit": "nats", "is_floor": False}
        | {"worst": float("nan"), "step": 1},
    ],
    "budgets": [{"limit": "max_path_log_ratio", "total": 10.0, "spent": 2.5, "measured": 1.25}],
    "alarms": [ALARM],
    "events": [
        {"step": step, "action": "shrink", "reasons": ["<b>too far</b>"], "alarms": ["kl"]}
        for step in range(1, EVENTS + 3)
    ],
    "overrides": ["overridden after step 3: <i>why</i>"],
}
GUARD = {
    "max_kl": 8.0,
    "max_path_log_ratio": 10.0,
    "alarms": {"kl": {"mean_time": 1e4}, "entropy": {"mean_time": 1e4}},
}


def verified(**more: Any) -> dict[str, Any]:
    return {"ok": True, "head": "a" * 64, "keys": ["kleash-1+2+3"], "guard": FOUND, **more}


def test_limits_say_how_near_the_run_came() -> None:
    found = guarded(FOUND)
    assert found is not None
    rows = [(row.name, row.worst, row.bound, row.share, row.where) for row in found.limits]
    assert rows == [
        ("max_kl", "6", "≤ 8", 0.75, "step 3"),
        ("min_entropy", "–", "≥ 0.50", None, ""),
        ("max_kl_new_old", "nan", "≤ 0.50", 1.0, "step 1"),
        ("max_path_log_ratio", "2.50", "≤ 10", 0.25, "1.25 measured"),
    ]
    assert found.brief == "3 accepted, 1 shortened; 10 alarms"
    assert not found.is_empty


def test_alarms_and_events_are_told_up_to_a_number() -> None:
    found = guarded(FOUND)
    assert found is not None
    assert found.alarms[0].rang == "step 1, 2, 3, 4, 5, 6, 7, 8 and 2 more: warn"
    assert (len(found.events), found.more) == (EVENTS, 2)
    assert found.events[0].said == ("<b>too far</b>", "alarm: kl")


def test_a_guard_that_had_nothing_to_do_says_so(make_run: MakeRun) -> None:
    nothing = {
        "verdicts": {"accept": 4},
        "limits": [],
        "budgets": [],
        "alarms": [],
        "events": [],
        "overrides": [],
    }
    assert guarded(None) is None
    page = render_run(load_run(make_run()), verified(guard=nothing))
    assert "No limit and no alarm was set" in page


def test_the_page_shows_what_a_verified_record_says_and_escapes_it(make_run: MakeRun) -> None:
    run = load_run(make_run())
    page = render_run(run, verified())
    assert "&lt;b&gt;too far" in page
    assert "<b>too far" not in page
    assert "overridden after step 3: &lt;i&gt;why" in page
    assert "Signed by <code>kleash-1+2+3</code>" in page
    for none in (None, verified(ok=False, problems=["no"])):
        assert "too far" not in render_run(run, none)
    assert "It is not signed." in render_run(run, verified(keys=[]))


def shapes(figure: dict[str, Any] | None) -> list[float]:
    """Where lines are drawn across a chart."""
    assert figure is not None
    return [shape["y0"] for shape in figure["layout"]["shapes"] if shape["y0"] == shape["y1"]]


def guarded_run(make_run: MakeRun, guard: dict[str, Any]) -> Path:
    more = {"budget_log_ratio_spent": 3.0, "canary_sup_log_ratio": 2.0}
    rung = {"alarm/kl": 100.0, "alarm/entropy": 2.0}
    return make_run(
        config={**CONFIG, "guard": guard}, metrics=[row | more | rung for row in METRICS]
    )


def test_budget_and_alarms_are_drawn_against_their_lines(make_run: MakeRun) -> None:
    budget, alarms = guard_charts(load_run(guarded_run(make_run, GUARD)), "#000000")
    assert shapes(budget.figure) == [10.0]
    assert shapes(alarms.figure) == [1e4]
    assert alarms.figure is not None
    notes = alarms.figure["layout"]["annotations"]
    assert [note["y"] for note in notes if note["text"] == "rings at 10000"] == [4.0]


def test_a_line_is_drawn_only_where_it_is_one_and_near(make_run: MakeRun) -> None:
    """Alarms that ring at different evidence have no line in common, and a far budget would leave no room."""
    mixed = {"alarms": {"kl": {"mean_time": 1e4}, "entropy": {"mean_time": "soon"}}}
    budget, alarms = guard_charts(
        load_run(guarded_run(make_run, {"max_path_log_ratio": 99.0, **mixed})), "#000000"
    )
    assert shapes(budget.figure) == []
    assert shapes(alarms.figure) == []
    assert guard_charts(load_run(make_run("none")), "#000000") == []


def test_hints_are_of_the_planned_mean_and_say_that_they_are_hints(make_run: MakeRun) -> None:
    """At twice the planned mean log 2/0.3 = 2.31 standard deviations, of which CUSUM forgives a half each."""
    guard = {"alarms": {"kl_new_old": {"mean": 0.01, "mean_time": 1e4}}}
    moved = [row | {"kl_new_old_per_token": 0.02} for row in METRICS]
    run = load_run(make_run(config={**CONFIG, "guard": guard}, metrics=moved))
    [chart] = guard_charts(run, "#000000")
    assert "no guarantee" in chart.title
    assert chart.figure is not None
    cusum, ewma = (trace["y"] for trace in chart.figure["data"])
    assert cusum == pytest.approx([1.8105 * step for step in (1, 2, 3, 4)], abs=1e-4)
    assert ewma[0] == pytest.approx(0.2 * 2.3105 / (0.2 / 1.8) ** 0.5, abs=1e-4)
