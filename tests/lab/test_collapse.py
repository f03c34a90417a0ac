"""Collapse: the optimum's entropy to the last digit, and what is claimed of arms where the answer is known."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kleash.lab.arms.setting import Setting
from kleash.lab.arms.settings import EvaluationSettings
from kleash.lab.arms.sweep import Hold
from kleash.lab.arms.untrained import examine_untrained
from kleash.lab.mdp import golden
from kleash.lab.studies.collapse import study as collapse
from kleash.lab.studies.collapse.exact import (
    entropy,
    equal_at,
    exact_claims,
    log_law,
    modes_error,
    points,
    reference_entropy,
    two_modes,
)
from kleash.lab.studies.collapse.findings import (
    VARIETY,
    answer,
    kept_claims,
    lost_claims,
    monotone_claim,
    variety_table,
)
from kleash.lab.study.work import Desk

A1 = {
    2.0: 6.598215,
    1.0: 6.409146,
    0.5: 5.915286,
    0.3: 5.351226,
    0.2: 4.814787,
    0.1: 3.563641,
    0.05: 2.237462,
}
"""Entropy of the golden problem's optimum, by β, nats."""


def test_the_entropy_of_optima_is_what_was_reckoned_before() -> None:
    assert [each.entropy for each in points(list(A1))] == pytest.approx(list(A1.values()), abs=5e-7)
    assert reference_entropy() == pytest.approx(6.6701449873, abs=1e-10)
    assert entropy(log_law(golden(), 1e6)) == pytest.approx(reference_entropy(), abs=1e-5)


def test_every_exact_claim_holds_but_a_point_mass_before_its_time() -> None:
    assert [claim.holds for claim in exact_claims(collapse.Config().golden_betas)] == [True] * 5
    broken = [claim.name for claim in exact_claims([1.0, 0.05]) if not claim.holds]

    assert broken == ["golden problem: a point mass"]


def test_two_best_responses_share_the_mass_by_the_odds_of_the_reference() -> None:
    """A29. However small β is: the likelier of the two has as much of it as it always had."""
    problem, first, second = two_modes()
    reference = problem.logprobs(problem.ref_logits).sum(-1)
    law = log_law(problem, 1e-4).exp()

    assert modes_error([2.0, 0.1, 1e-4]) <= 1e-10
    assert float(law[first] + law[second]) == pytest.approx(1.0, abs=1e-9)
    share = 1 / (1 + math.exp(float(reference[second] - reference[first])))
    assert float(law[first]) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("odds", [2.0, 1000.0, 1e6])
def test_odds_are_made_up_for_at_one_over_their_logarithm(odds: float) -> None:
    assert equal_at(odds) == pytest.approx(1 / math.log(odds), rel=1e-10)


def ends(spread: Sequence[float], kl: float = 1.0) -> list[dict[str, Any]]:
    """Of as many seeds; every measure of variety moves with entropy, self-BLEU against it."""
    return [
        {
            "entropy": x,
            "distinct_1": x / 10,
            "distinct_2": x / 5,
            "self_bleu": 1 - x / 5,
            "unique_share": x / 4,
            "length": 20.0,
            "gold": 0.0,
            "kl": kl,
        }
        for x in spread
    ]


REFERENCE = ends([3.0, 3.1, 2.9], 0.0)
COLLAPSED, LESS, MOST = (
    ends([0.4, 0.5, 0.3], 90.0),
    ends([2.0, 2.1, 2.2], 8.0),
    ends([2.95, 3.0, 2.88], 0.5),
)


def test_variety_that_is_lost_is_said_to_be_by_every_measure() -> None:
    arms = {Hold(beta=0.0): COLLAPSED, Hold(beta=0.1): LESS, Hold(beta=0.5): MOST}
    claims = lost_claims(arms)

    assert len(claims) == len(VARIETY)
    assert all(claim.holds for claim in claims)
    other = {Hold(beta=0.0): MOST, Hold(beta=0.5): COLLAPSED}
    assert all(claim.holds is False for claim in lost_claims(other))
    assert lost_claims({Hold(beta=0.0): MOST}) == []


@pytest.mark.parametrize(
    ("middle", "holds"),
    [(LESS, True), (ends([3.5, 3.6, 3.4]), False), (ends([0.2, 0.9, 0.5]), None)],
)
def test_step_by_step(middle: list[dict[str, Any]], holds: bool | None) -> None:
    """The order of the arms does not matter; a target is no β."""
    arms = {
        Hold(beta=0.5): MOST,
        Hold(beta=0.0): COLLAPSED,
        Hold(beta=0.1): middle,
        Hold(kl_target=2.0): COLLAPSED,
    }
    claim = monotone_claim(arms)

    assert claim is not None
    assert claim.holds is holds
    assert monotone_claim({Hold(beta=0.5): MOST}) is None


def test_the_step_that_is_shown_is_the_one_that_leaves_it_open() -> None:
    """The smaller step is sure, the larger is not: an interval above 0 is not told beside "open"."""
    middle = ends([2.4, 2.5, 2.38], 8.0)
    arms = {Hold(beta=0.5): MOST, Hold(beta=0.1): middle, Hold(beta=0.0): ends([0.2, 2.9, 0.1])}
    claim = monotone_claim(arms)

    assert claim is not None
    assert claim.holds is None
    assert claim.estimate is not None
    assert claim.estimate.low is not None
    assert claim.estimate.low < 0
    assert claim.estimate.value > 0.6  # of the second step; the first is of 0.52


def test_what_keeps_variety_is_told_from_what_does_not() -> None:
    arms = {
        Hold(beta=0.0): COLLAPSED,
        Hold(beta=0.1): LESS,
        Hold(beta=0.5): MOST,
        Hold(kl_target=2.0): ends([2.9, 2.2, 3.0]),
    }
    claims = kept_claims(arms, REFERENCE)
    said = answer(arms, [*lost_claims(arms), *claims])

    assert [claim.holds for claim in claims] == [False, True, None]
    assert "There is less entropy per token with β = 0 than with β = 0.5." in said
    assert "90 % of the reference's entropy is kept by β = 0.5. It is not by β = 0.1." in said
    assert "target" not in said
    (first, *rest) = variety_table(arms, REFERENCE).rows
    assert first[:3] == ("the reference", 0.0, pytest.approx(3.0))
    assert [row[5] for row in rest] == pytest.approx([0.1329, 0.7003, 0.9811, 0.9036], abs=1e-3)


def test_what_an_arm_begins_as_has_no_kl(tmp_path: Path) -> None:
    few = EvaluationSettings(num_prompts=2, group_size=2)
    gold = Setting().gold
    told = Setting(evaluation=few, max_new_tokens=6).arm({"rewards": (gold,), "kl_coef": 0.1})
    found = examine_untrained(told, tmp_path, Desk(tmp_path, "", lambda event: None))

    assert found["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["reward"] == pytest.approx(found["gold"])
    assert found["entropy"] > 1.0
    assert len(found["responses"]) == 2


def test_that_all_steps_fall_takes_more_than_each_by_itself() -> None:
    """Steps of 0.654, 1 and 1.346: t = 5.0 of 2 degrees, p = 0.038, which is under 0.05 and over 0.05/2."""
    largest, middle = ends([4.0, 4.0, 4.0]), ends([3.0, 3.0, 3.0])
    smallest = ends([3.0 - 0.654, 3.0 - 1.0, 3.0 - 1.346])
    alone = monotone_claim({Hold(beta=0.1): middle, Hold(beta=0.0): smallest})
    both = monotone_claim(
        {Hold(beta=0.5): largest, Hold(beta=0.1): middle, Hold(beta=0.0): smallest}
    )
    assert alone is not None
    assert both is not None
    assert (alone.holds, both.holds) == (True, None)
    assert both.estimate is not None
    assert both.estimate.level == pytest.approx(0.975)
