"""The retention study: what it says of arms whose losses are known."""

import pytest

from kleash.config import build
from kleash.lab.studies.retention import study as retention
from kleash.lab.studies.retention.findings import conclude, ended, kept_share


def end(lost: float, kl: float, reward: float = 1.0) -> dict:
    told = {"kl": kl, "reward": reward, "gold": 0.5, "lost_task": lost / 2, "lost_other": lost}
    return {**told, "gain": reward + 0.5}


def ends(small: float = 0.38, large: float = 0.1, coef: float = 0.02) -> dict:
    """Three seeds: without a penalty 0.4 nats per token are lost, 0.01 a nat of KL."""
    spread = (0.99, 1.0, 1.01)
    return {
        "β = 0": [end(0.4 * s, 40.0 * s, 2.0) for s in spread],
        "β = 0.01": [end(small * s, 100 * small * s, 1.9) for s in spread],
        "β = 1": [end(large * s, 100 * large * s, 0.5) for s in spread],
        "γ = 1": [end(coef * s, 30.0, 1.8) for s in spread],
    }


def verdicts(**lost: float) -> dict:
    return {claim.name: claim.holds for claim in conclude(ends(**lost)).claims}


def test_what_keeps_is_told_from_what_does_not() -> None:
    said = verdicts()
    assert said["β = 0.01 keeps more than half"] is False
    assert said["β = 1 keeps more than half"] is True
    assert said["γ = 1 keeps more than half"] is True
    assert said["β = 1 over β = 0.01"] is True


def test_that_something_is_lost_is_measured_and_not_claimed() -> None:
    """A KL is never below 0, so that the claim could not fail."""
    found = conclude(ends())
    assert not [claim.name for claim in found.claims if "lost" in claim.name]
    assert "become 0.40 [0.39, 0.41] nats per token less likely" in found.answer
    assert "gains 2.50 [2.50, 2.50] of proxy reward" in found.answer


def test_what_keeps_says_what_it_learnt() -> None:
    """β = 1 keeps three quarters and gains 1.0 of 2.5; the pretraining loss keeps as much and gains 2.3."""
    claims = {claim.name: claim for claim in conclude(ends()).claims}
    assert claims["β = 1 keeps more than half"].says.endswith(
        "it gained 1.00 [1.00, 1.00] of proxy reward."
    )
    assert claims["β = 1 learns more than half"].holds is False
    assert claims["γ = 1 learns more than half"].holds is True
    found = claims["β = 1 learns more than half"].estimate
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert claims["β = 1 keeps more than half"].says in conclude(ends()).answer


def test_of_an_arm_that_may_have_learnt_nothing_it_is_said() -> None:
    told = ends()
    told["β = 1"] = [
        {**each, "gain": x} for each, x in zip(told["β = 1"], (-0.1, 0.1, 0.3), strict=True)
    ]
    (claim,) = (c for c in conclude(told).claims if c.name == "β = 1 keeps more than half")
    assert claim.says.endswith(
        "it gained 0.10 [−0.40, 0.60] of proxy reward, and may have learnt nothing."
    )


def test_a_gain_is_over_the_reference_on_the_same_prompts() -> None:
    found = ended({"reward": 2.0, "kl": 1.0}, {"reward": -0.5, "kl": 0.0})
    assert found == {"reward": 2.0, "kl": 1.0, "gain": 2.5}


def test_a_pretraining_loss_is_held_against_the_penalty_that_learns_as_much() -> None:
    """By reward β = 0.01 is the nearer one, though β = 1 keeps more."""
    claims = {claim.name: claim for claim in conclude(ends()).claims}
    assert claims["γ = 1 against β = 0.01"].holds is True
    assert "−0.10 apart" in claims["γ = 1 against β = 0.01"].says.replace(" [−0.10, −0.10]", "")
    assert verdicts(coef=0.39)["γ = 1 against β = 0.01"] is False


def test_shares_are_seed_by_seed_and_none_where_nothing_was_lost() -> None:
    assert kept_share(ends(), "β = 1") == pytest.approx([0.25] * 3)
    free = ends()
    free["β = 0"][0]["lost_other"] = 0.0
    assert kept_share(free, "β = 1")[0] is None


def test_the_line_through_all_arms_of_a_penalty() -> None:
    line = conclude(ends()).figure.panels[0].series[-1]
    assert line.name == "fit, R² = 1.00"
    assert line.y[-1] == pytest.approx(0.01 * (line.x[-1] or 0.0))


def test_the_largest_beta_is_a_hundred_times_the_smallest() -> None:
    for config in (retention.Config(), build(retention.Config, retention.QUICK, "quick")):
        assert config.betas[-1] / config.betas[0] == pytest.approx(100)
