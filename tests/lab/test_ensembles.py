"""The ensembles study: combinations by best-of-n, disagreement, and claims about arms whose worth is known."""

import random
from functools import cache

import pytest
import torch

from kleash.config import build
from kleash.lab.arms.outcomes import Arms, Ends
from kleash.lab.studies.ensembles import study as ensembles
from kleash.lab.studies.ensembles.findings import (
    Made,
    best_of_ensembles,
    conclude,
    gaussian,
)
from kleash.lab.studies.hacking.alarms import ALARMS
from kleash.lab.study.curves import Curve
from kleash.lab.study.findings import Claim
from kleash.lab.study.followed import UNIT, disagreement, had

D = tuple(0.2 * i for i in range(1, 31))
SEEDS, MEMBERS = 3, 4


def arms(top: float, end: float) -> Arms:
    """Gold that peaks at √KL = 3 and ends as said."""
    draw = random.Random(2)
    gold = [
        Curve(D, tuple(top - 0.05 * (d - 3.0) ** 2 + draw.gauss(0, 0.005) for d in D))
        for _ in range(SEEDS)
    ]
    ends = [Ends(proxy=2.0, gold=end + draw.gauss(0, 0.01), kl=36.0) for _ in range(SEEDS)]
    return Arms([Curve(D, D)] * SEEDS, gold, ends)


def watched(rise: float) -> list[dict]:
    """Three members, of which the one that is trained on gains and one loses as much as is said."""
    steps = [
        {
            "reward": 5.0 + 2 * i,
            "reward_std": 2.0,
            "monitor/0": -2.0 + i,
            "monitor/1": 3.0 + i - rise * i,
        }
        for i in range(20)
    ]
    return [{"steps": steps}] * SEEDS


def pool() -> dict:
    """Members are gold and an error of their own: the mean of four is nearer to gold than one."""
    generator = torch.Generator().manual_seed(5)
    gold = torch.randn(40, 200, generator=generator)
    errors = torch.randn(SEEDS * MEMBERS, 40, 200, generator=generator)
    return {
        "gold": gold.tolist(),
        "rewards": (gold + 1.5 * errors).tolist(),
        "logprobs": torch.full((40, 200), -30.0).tolist(),
    }


def made(top: float = 1.5, rise: float = 0.5) -> Made:
    both = {"single": arms(1.0, 0.2), "ensemble mean, own data": arms(top, top - 0.5)}
    return Made(both, watched(rise), pool(), MEMBERS, 0.5)


@cache
def found(top: float = 1.5, rise: float = 0.5) -> dict[str, Claim]:
    """The claims by name."""
    return {claim.name: claim for claim in conclude(made(top, rise)).claims}


def test_a_higher_peak_and_more_left_are_said() -> None:
    said = found()
    peak = said["ensemble mean, own data: a higher gold peak"]
    assert peak.holds is True
    assert peak.estimate is not None
    assert peak.estimate.value == pytest.approx(0.5, abs=0.02)
    assert said["ensemble mean, own data: more gold left at the end"].holds is True
    assert found(top=0.5)["ensemble mean, own data: a higher gold peak"].holds is False


def test_best_of_n_by_the_mean_of_members_with_errors_of_their_own_is_better() -> None:
    chosen = best_of_ensembles(made())
    assert list(chosen) == ["single", "mean", "worst", "uncertainty"]
    single, mean = (sum(each.gold for each in chosen[name].ends) for name in ("single", "mean"))
    assert mean > 1.3 * single
    assert found()["best-of-n by the mean"].holds is True


def test_disagreement_is_of_gains_and_not_of_levels() -> None:
    """The reward is in its own standard deviations: two of it a step are one, as of the member that follows."""
    assert disagreement(watched(0.0)[0]["steps"]) == pytest.approx([0.0] * 20)
    apart = disagreement(watched(1.0)[0]["steps"])
    # Gains 18, 18 and 0 over the mean of the first three steps.
    assert apart[-1] == pytest.approx((2 / 9) ** 0.5 * 18)


def test_both_studies_call_the_same_thing_disagreement() -> None:
    run = watched(1.0)[0]["steps"]
    claim = found(rise=1.0)["members come to disagree"]
    assert ALARMS["disagreement"](run) == disagreement(run)
    assert claim.unit == UNIT == "standard deviations at the reference"
    late, early = (sum(had(disagreement(run)[part])) / 4 for part in (slice(-4, None), slice(4, 8)))
    assert claim.estimate is not None
    assert claim.estimate.value == pytest.approx(late - early)


@pytest.mark.parametrize(("rise", "holds"), [(0.5, True), (0.0, None)])
def test_members_come_to_disagree_or_not(rise: float, holds: bool | None) -> None:
    """Where they never do in any seed, how far that differs from seed to seed isn't shown either."""
    assert found(rise=rise)["members come to disagree"].holds is holds


def test_the_closed_form_of_a_mean_of_members() -> None:
    (claim,) = gaussian()
    assert claim.holds is True


def test_members_differ_by_their_data_or_by_their_fit_alone() -> None:
    plan = ensembles.plan(ensembles.Config(seeds=2, members=3))
    by_data, by_fit = plan.members["data"][1], plan.members["fit"][1]
    assert by_data[0] == by_fit[0] == ensembles.Config().setting.proxy(1)
    assert len({each.data_seed for each in by_data}) == 3
    assert {each.data_seed for each in by_fit} == {1}
    assert len({each.seed for each in by_fit}) == 3
    assert len(plan.proxies) == 2 * (3 + 2)


def test_the_single_arms_ensemble_looks_on() -> None:
    plan = ensembles.plan(build(ensembles.Config, ensembles.QUICK, "quick"))
    for arm, own in zip(plan.single, plan.members["data"], strict=True):
        assert (arm.rewards, arm.monitors) == (own[:1], own[1:])


def test_no_member_counts_for_more_by_the_size_of_its_unit() -> None:
    """The first member of every seed in a unit a thousand times smaller: the same responses are chosen."""
    usual = made()
    rewards = [
        [[x * (1.0 if i % MEMBERS else 1000.0) for x in row] for row in rows]
        for i, rows in enumerate(usual.pool["rewards"])
    ]
    before, after = (
        best_of_ensembles(each)
        for each in (usual, usual._replace(pool={**usual.pool, "rewards": rewards}))
    )
    for name in ("mean", "worst", "uncertainty"):
        golds = [[each.gold for each in chosen[name].ends] for chosen in (before, after)]
        assert golds[0] == pytest.approx(golds[1], abs=1e-3)
