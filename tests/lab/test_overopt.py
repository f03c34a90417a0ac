"""The over-optimisation study: what its findings say of curves whose answer is known, and the whole of it, tiny."""

import math
import random
from collections.abc import Callable
from statistics import fmean

import pytest

from kleash.config import build
from kleash.lab.arms.outcomes import Arms, Ends, best_of_n
from kleash.lab.studies.overopt import study as overopt
from kleash.lab.studies.overopt.findings import conclude
from kleash.lab.study.curves import Curve
from kleash.lab.study.findings import Claim, Findings

D = tuple(0.1 * i for i in range(1, 61))
KIND = (0, 0)


def noisy(draw: random.Random, value: Callable[[float], float], *, spread: float = 0.02) -> Curve:
    return Curve(D, tuple(value(d) + draw.gauss(0, spread) for d in D))


def arms(
    draw: random.Random,
    gold: Callable[[float], float],
    seeds: int,
    *,
    spread: float = 0.02,
) -> Arms:
    """Seeds whose proxy reward is d, and whose gold reward is as said; they end where their curves do."""
    proxy, golds = (
        [noisy(draw, value, spread=spread) for _ in range(seeds)] for value in (lambda d: d, gold)
    )
    ends = [
        Ends(*(noisy(draw, value, spread=spread).end for value in (lambda d: d, gold)), kl=36.0)
        for _ in range(seeds)
    ]
    return Arms(proxy, golds, ends)


def pool(seeds: int) -> dict:
    """A hundred responses to each of four prompts, of mean 0; the proxies rank as gold does."""
    draw = random.Random(3)
    drawn = [[draw.gauss(0, 1) for _ in range(100)] for _ in range(4)]
    gold = [[x - fmean(row) for x in row] for row in drawn]
    logprobs = [[-30.0] * 100 for _ in range(4)]
    return {"gold": gold, "rewards": [gold] * seeds, "logprobs": logprobs}


def found(
    gold: Callable[[float], float], *, seeds: int = 5, held: Callable[[float], float] | None = None
) -> Findings:
    draw = random.Random(1)
    free = arms(draw, gold, seeds)
    others = {} if held is None else {0.1: arms(draw, held, seeds)}
    return conclude(
        {KIND: free}, others, pool(seeds), names={KIND: "300 pairs"}, accuracy={KIND: [0.6] * seeds}
    )


def claim(findings: Findings, name: str) -> Claim:
    (one,) = [each for each in findings.claims if each.name == name]
    return one


def turning(d: float) -> float:
    """Peak 0.5 at e^{α/β − 1} = 1.65, α = 0.75, β = 0.5; at d = 6 it is −0.87."""
    return d * (0.75 - 0.5 * math.log(d))


def test_a_gold_reward_that_turns_is_said_to() -> None:
    said = claim(found(turning), "gold ends below its peak")
    assert said.holds is True
    assert said.estimate is not None
    assert said.estimate.value == pytest.approx(0.5 * math.exp(0.5) - turning(6.0), abs=0.1)
    assert claim(found(turning), "the proxy goes on rising").holds is True


def test_one_that_only_falls_was_never_higher() -> None:
    """It ends below where it was highest, which is where it began: that is no over-optimisation."""
    findings = found(lambda d: -0.3 * d)
    assert claim(findings, "gold rises").holds is not True
    assert "over-optimised" not in findings.answer
    assert "over-optimised" in found(turning).answer


def test_one_that_only_rises_is_not_said_to() -> None:
    assert claim(found(lambda d: 0.3 * d), "gold ends below its peak").holds is not True


def test_three_noisy_seeds_settle_nothing() -> None:
    draw = random.Random(5)
    free = arms(draw, lambda d: 0.0, 3, spread=2.0)
    findings = conclude({KIND: free}, {}, pool(3), names={KIND: "p"}, accuracy={KIND: [None] * 3})
    assert claim(findings, "gold ends below its peak").holds is None
    assert "is open" in findings.answer
    assert "over-optimised" not in findings.answer


@pytest.mark.parametrize(("shift", "holds"), [(0.3, True), (-0.3, False)])
def test_arms_are_compared_at_equal_kl(shift: float, holds: bool) -> None:
    findings = found(turning, held=lambda d: turning(d) + shift)
    said = claim(findings, "gold at equal KL, β = 0.1")
    assert said.holds is holds
    assert said.estimate is not None
    assert said.estimate.value == pytest.approx(shift, abs=0.02)


def test_it_is_where_an_arm_comes_to_that_counts_and_not_its_way() -> None:
    """Far better on the way, a little worse over the last third."""
    findings = found(turning, held=lambda d: turning(d) + (2.0 if d < 4.0 else -0.2))
    said = claim(findings, "gold at equal KL, β = 0.1")
    assert said.holds is False
    assert said.estimate is not None
    assert said.estimate.value == pytest.approx(-0.2, abs=0.02)


def test_the_forms_are_in_the_table_with_the_peak_they_tell() -> None:
    _, fits = found(turning).tables
    log = next(row for row in fits.rows if row[0] == "trained, 300 pairs" and "log" in str(row[1]))
    told = dict(zip(fits.columns, log, strict=True))
    # The floor is the pool's mean gold, 0: α and β come out nearly as they went in.
    assert told["α"] == pytest.approx(0.75, abs=0.15)
    assert told["predicted peak, nats"] == pytest.approx(math.exp(2 * (0.75 / 0.5 - 1)), rel=0.3)
    assert float(told["R² held out"] or 0.0) > 0.9


def test_best_of_n_by_gold_itself_gains_what_order_statistics_say() -> None:
    """The expected largest of n standard normals: 1.1630 of 5, 2.5076 of 100; at n = 1 the mean."""
    chosen = best_of_n(pool(1))
    gold = chosen.gold[0]
    assert gold.d[0] == 0.0
    assert gold.value[-1] == pytest.approx(2.5, abs=0.4)
    # Responses so rare that no two are alike: KL is log n − (n−1)/n.
    assert gold.d[-1] ** 2 == pytest.approx(math.log(100) - 0.99, abs=1e-6)
    assert list(gold.value) == sorted(gold.value)


def test_pieces_are_shared_between_arms_of_a_seed() -> None:
    config = build(overopt.Config, overopt.QUICK, "quick")
    plan = overopt.plan(config)
    (free,) = plan.free.values()
    assert [arm.rewards[0] for arm in free] == plan.proxies
    assert {arm.seed for arm in free} == set(range(5))
    assert all(a.rewards == b.rewards for a, b in zip(plan.held[0.1], free, strict=True))


def test_the_quick_one_is_within_six_minutes_of_two_cores() -> None:
    assert overopt.cost(build(overopt.Config, overopt.QUICK, "quick")) < 2 * 360


def turned(*, end: float = 2.5, top: float = 2.0) -> Arms:
    """Three seeds alike: gold from 1 to its peak at √KL = 1, where the proxy is 0.5; they end at 0.4 and at `end`."""
    gold, proxy = Curve((0.0, 1.0, 3.0), (1.0, top, 1.0)), Curve((0.0, 1.0, 3.0), (0.0, 0.5, 2.0))
    return Arms([proxy] * 3, [gold] * 3, [Ends(proxy=end, gold=0.4, kl=9.0)] * 3)


def worth(count: int, mean: float) -> dict:
    """A pool whose responses have that mean gold."""
    made = pool(count)
    gold = [[x + mean for x in row] for row in made["gold"]]
    return {**made, "gold": gold, "rewards": [gold] * count}


def by_hand(free: dict[tuple[int, int], Arms], chosen: dict) -> dict[str, Claim]:
    names = {kind: f"kind {kind[1]}" for kind in free}
    accuracy = {kind: [0.6] * 3 for kind in free}
    findings = conclude(free, {}, chosen, names=names, accuracy=accuracy)
    return {claim.name: claim for claim in findings.claims}


def value(said: Claim) -> float:
    assert said.estimate is not None
    return said.estimate.value


@pytest.mark.parametrize(("mean", "holds"), [(1.3, True), (-1.0, True), (2.4, False)])
def test_a_rise_is_over_what_the_reference_is_worth(mean: float, holds: bool) -> None:
    """The peak is 2, whatever the zero of gold is."""
    said = by_hand({KIND: turned()}, worth(3, mean))["gold rises"]
    assert said.holds is holds
    assert value(said) == pytest.approx(2.0 - mean)


@pytest.mark.parametrize(("end", "holds"), [(2.5, True), (0.3, False)])
def test_the_proxy_rises_from_the_gold_peak_on_and_not_from_0(end: float, holds: bool) -> None:
    """It is 0.5 there: an arm that ends at 0.3 has lost 0.2 of it."""
    said = by_hand({KIND: turned(end=end)}, worth(3, 0.0))
    assert said["the proxy goes on rising"].holds is holds
    assert value(said["the proxy goes on rising"]) == pytest.approx(end - 0.5)
    assert value(said["gold ends below its peak"]) == pytest.approx(2.0 - 0.4)


@pytest.mark.parametrize(("late", "holds"), [(5.0, False), (-5.0, True)])
def test_best_of_n_is_compared_at_the_largest_kl_that_it_comes_to(late: float, holds: bool) -> None:
    """Of 100 samples that is √3.62 = 1.90; the policy's gold is another before 1.8, to either side."""
    gold = Curve((0.0, 1.5, 1.8, 4.0), (-late, -late, late, late))
    free = turned()._replace(gold=[gold] * 3)
    said = by_hand({KIND: free}, pool(3))["best-of-n spends KL better"]
    assert said.holds is holds
    assert value(said) == pytest.approx(best_of_n(pool(1)).gold[0].end - late)
    assert "At 3.6 nats" in said.says


@pytest.mark.parametrize(("top", "holds"), [(2.25, True), (1.75, False)])
def test_another_proxys_peak_is_against_that_of_the_first(top: float, holds: bool) -> None:
    said = by_hand({KIND: turned(), (0, 1): turned(top=top)}, pool(3))
    assert said["a higher peak: kind 1"].holds is holds
    assert value(said["a higher peak: kind 1"]) == pytest.approx(top - 2.0)
