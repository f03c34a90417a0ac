"""The scaling study, on steps that were made up so that its answers are known."""

import math
from typing import Any

import pytest

from kleash.config import build
from kleash.lab.studies.scaling import study as scaling
from kleash.lab.studies.scaling.findings import (
    Level,
    Rung,
    Steps,
    conclude,
    figures_of,
    holding,
    slopes,
)
from kleash.lab.study.statistics import estimate

SIZES = (1e5, 1e6, 1e7)


def arm(drift: float, *, beta: float = 0.1, lost: float = 0.0) -> Steps:
    """Thirty steps to √KL = drift; gold rises to 1 half way and then loses so much."""
    steps: list[dict[str, Any]] = []
    for i in range(30):
        done = (i + 1) / 30
        gold = 2 * done if done <= 0.5 else 1 - lost * (done - 0.5) * 2
        steps.append({"kl": (drift * done) ** 2, "reward": done, "gold": gold, "kl_coef": beta})
    return steps


def level(size: float, drift: float, beta: float = 0.1, axis: str = "policy") -> Level:
    free = [ended(arm(drift + 0.01 * seed, lost=0.5)) for seed in range(4)]
    held = [[{**row, "kl": 6.0 + 0.1 * seed} for row in arm(1.0, beta=beta)] for seed in range(4)]
    began = [{"gold": 0.0}] * 4
    return Level(axis, f"{size:g}", size, began, free, [ended(steps) for steps in held])


def ended(steps: Steps) -> dict:
    return {"steps": steps, "end": {"kl": steps[-1]["kl"], "gold": steps[-1]["gold"]}}


def test_what_grows_with_size_is_said_to_and_what_does_not_is_not() -> None:
    levels = [level(size, 2.0 + i, 0.1 * 10.0**-i) for i, size in enumerate(SIZES)]
    claims = {claim.name: claim for claim in conclude(levels, 6.0, 0.5).claims}
    drift, beta = claims["policy: drift at equal steps"], claims["policy: β that holds the target"]
    assert (drift.holds, beta.holds) == (True, False)
    assert drift.estimate is not None
    assert beta.estimate is not None
    assert drift.estimate.value == pytest.approx(1.0, abs=1e-9)
    assert beta.estimate.value == pytest.approx(-1.0, abs=1e-9)
    assert claims["policy: gold lost without a penalty"].holds is not True


def test_what_one_question_alone_would_settle_is_open_among_five() -> None:
    """Slopes of 0.2, 0.9, 0.5 and 0.6 per decade: t = 3.81 of 3 degrees, p = 0.032, against 0.05/5."""
    levels = [level(size, 2.0) for size in SIZES]
    for i, each in enumerate(levels):
        runs = [ended(arm(2.0 + slope * i, lost=0.5)) for slope in (0.2, 0.9, 0.5, 0.6)]
        levels[i] = each._replace(free=runs)
    found = conclude(levels, 6.0, 0.5)
    (drift,) = (claim for claim in found.claims if claim.name == "policy: drift at equal steps")
    alone = estimate(slopes([Rung(each, figures_of(each, 6.0, 0.5)) for each in levels], "drift"))
    assert alone is not None
    assert alone.is_above(0.0) is True
    assert drift.holds is None
    assert drift.estimate is not None
    assert drift.estimate.level == pytest.approx(0.99)
    assert found.answer.startswith(
        "5 questions were asked at once, of which 0 are settled and 5 open"
    )


def test_where_nothing_is_settled_the_surest_is_told_with_its_interval() -> None:
    levels = [level(size, 2.0) for size in SIZES]
    for i, each in enumerate(levels):
        runs = [ended(arm(2.0 + slope * i, lost=0.5)) for slope in (0.2, 0.9, 0.5, 0.6)]
        levels[i] = each._replace(free=runs)
    answer = conclude(levels, 6.0, 0.5).answer
    assert "The nearest to being settled is policy: drift at equal steps, 0.55 [" in answer
    assert answer.endswith("] √nats per decade.")


def test_gold_on_the_leash_is_over_what_that_policy_began_with() -> None:
    """Two policies end with the same gold; the one that began 0.4 lower gained 0.4 more."""
    high = level(1e5, 2.0)
    low = high._replace(reference=[{"gold": -0.4}] * 4)
    gained = [figures_of(each, 6.0, 0.5).leashed_gold for each in (low, high)]
    assert [a - b for a, b in zip(*gained, strict=True) if a is not None and b is not None] == (
        pytest.approx([0.4] * 4)
    )


def test_the_answer_says_how_many_were_looked_at() -> None:
    levels = [level(size, 2.0 + i, 0.1 * 10.0**-i) for i, size in enumerate(SIZES)]
    found = conclude(levels, 6.0, 0.5)
    settled = [claim.says for claim in found.claims if claim.holds is not None]
    assert f"of which {len(settled)} are settled and {5 - len(settled)} open" in found.answer
    assert all(says in found.answer for says in settled)
    assert any("One student was taught for every size" in limit for limit in found.limits)


def test_an_exact_line_tells_the_largest_rung() -> None:
    levels = [level(size, 2.0 + i) for i, size in enumerate(SIZES)]
    table = conclude(levels, 6.0, 0.5).tables[1]
    row = dict(
        zip(
            table.columns,
            next(r for r in table.rows if r[1] == "drift at equal steps"),
            strict=True,
        )
    )
    assert row["off by"] == pytest.approx(0.0, abs=1e-9)


def test_two_rungs_foretell_nothing() -> None:
    table = conclude([level(1e5, 2.0), level(1e6, 3.0)], 6.0, 0.5).tables[1]
    assert all(row[3:] == (None, None, None) for row in table.rows)


def test_a_beta_counts_only_where_the_target_was_held() -> None:
    assert holding([{"kl": 6.5, "kl_coef": 0.1}] * 9, 6.0) == pytest.approx(math.log10(0.1))
    assert holding([{"kl": 9.0, "kl_coef": 0.1}] * 9, 6.0) is None
    assert holding([{"kl": 6.0, "kl_coef": 0.0}] * 9, 6.0) is None


def test_a_size_that_is_not_known_is_left_out() -> None:
    levels = [level(size, 2.0 + i) for i, size in enumerate(SIZES)]
    levels.append(levels[0]._replace(size=None))
    rungs = [Rung(each, figures_of(each, 6.0, 0.5)) for each in levels]
    assert slopes(rungs, "drift") == pytest.approx(slopes(rungs[:3], "drift"))


def test_the_quick_one_is_within_six_minutes_of_two_cores() -> None:
    assert scaling.cost(build(scaling.Config, scaling.QUICK, "quick")) < 2 * 360


def test_the_default_rung_is_made_once_for_all_axes() -> None:
    config = build(scaling.Config, scaling.QUICK, "quick")
    on_axes = [rung.free for rung in scaling.rungs(config)]
    same = [arms for arms in on_axes if arms == on_axes[1]]
    assert len(same) == 3  # the embedded policy, the embedded trunk, and 300 pairs


def test_what_is_sure_leaves_more_room_for_what_is_less_so() -> None:
    """Holm: t = 5.196 of 3 degrees, p = 0.0138, is over 0.05/5 and under the 0.05/3 that two sure ones leave."""
    levels = [level(size, 2.0 + i) for i, size in enumerate(SIZES)]
    for i, each in enumerate(levels):
        betas = [10.0 ** (-slope * i) for slope in (2 / 3, 2 / 3, 4 / 3, 4 / 3)]
        levels[i] = each._replace(leashed=[_held(beta) for beta in betas])
    claims = {claim.name: claim for claim in conclude(levels, 6.0, 0.5).claims}
    beta = claims["policy: β that holds the target"]
    assert beta.holds is False
    assert beta.estimate is not None
    assert beta.estimate.value == pytest.approx(-1.0)
    assert beta.estimate.level == pytest.approx(1 - 0.05 / 3)
    assert beta.estimate.high is not None
    assert beta.estimate.high < 0


def _held(beta: float) -> dict:
    return ended([{**row, "kl": 6.0} for row in arm(1.0, beta=beta)])
