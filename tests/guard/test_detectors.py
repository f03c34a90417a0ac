"""The detectors: the theorem's one step by enumeration, numbers by hand, closed when in doubt, exact to store."""

import json
import math
import random
from dataclasses import replace
from fractions import Fraction
from itertools import product
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import ConfigError, InputError
from kleash.guard import Detector, DetectorPlan, Hint, concordance, hint, observe, start_detector
from kleash.guard.detectors import CAP, FRACTIONS

PLAN = DetectorPlan(bound=1.0, mean=0.5, mean_time=10.0)
LONG = DetectorPlan(bound=0.2, mean=0.0125, mean_time=1e4)
FLOOR = DetectorPlan(bound=1.0, mean=0.75, mean_time=1e9, side="lower")
BAD = [math.nan, math.inf, -math.inf, -1.0]


def after(values: list[float], plan: DetectorPlan = PLAN) -> Detector:
    state = start_detector(plan)
    for value in values:
        state = observe(state, plan, value)
    return state


def exact(state: Detector) -> Fraction:
    """M, without rounding."""
    return sum(map(Fraction, state.values), Fraction(0)) / len(FRACTIONS)


# The theorem.

QUARTERS = [0.0, 0.25, 0.5, 0.75, 1.0]


def two_points(mean: float) -> list[tuple[float, float, Fraction]]:
    """Every distribution on two quarters with this mean: low, high, P(high)."""
    return [
        (low, high, (Fraction(mean) - Fraction(low)) / (Fraction(high) - Fraction(low)))
        for low, high in product(QUARTERS, QUARTERS)
        if low <= mean <= high and low < high
    ]


def expected(state: Detector, plan: DetectorPlan, low: float, high: float, p: Fraction) -> Fraction:
    """E[M after one more] of a two-point distribution of the statistic."""
    good, bad = observe(state, plan, low), observe(state, plan, high)
    return (1 - p) * exact(good) + p * exact(bad)


@pytest.mark.parametrize("past", [[], [0.0], [1.0], [1.0, 0.25], [0.25, 0.5, 0.75]])
def test_at_the_planned_mean_the_evidence_gains_exactly_1_an_update(past: list[float]) -> None:
    # m = ½ and quarters: every number here is a short binary fraction, so that floats are exact.
    plan = replace(PLAN, mean_time=1e9)
    state = after(past, plan)
    for low, high, p in two_points(0.5):
        assert expected(state, plan, low, high, p) == exact(state) + 1


@pytest.mark.parametrize("past", [[], [0.0], [1.0], [1.0, 0.25], [0.25, 0.5, 0.75]])
def test_below_the_planned_mean_it_gains_less(past: list[float]) -> None:
    plan = replace(PLAN, mean_time=1e9)
    state = after(past, plan)
    for low, high, p in two_points(0.25):
        assert expected(state, plan, low, high, p) < exact(state) + 1


def test_on_the_lower_side_the_identity_is_the_same() -> None:
    # m = 1 − ¾: a floor under the mean of x is a bound on the mean of 1 − x.
    state = after([1.0, 0.5], FLOOR)
    for low, high, p in two_points(0.75):
        assert expected(state, FLOOR, low, high, p) == exact(state) + 1


def mean_time_to_alarm(plan: DetectorPlan, horizon: int, shapes: list[tuple]) -> Fraction:
    """E[min(time to alarm, horizon)] under the sequence of distributions that makes it least."""

    def rest(state: Detector, left: int) -> Fraction:
        if state.rings or left == 0:
            return Fraction(0)
        times = {x: rest(observe(state, plan, x), left - 1) for x in QUARTERS}
        return 1 + min((1 - p) * times[low] + p * times[high] for low, high, p in shapes)

    return rest(start_detector(plan), horizon)


@pytest.mark.parametrize("mean_time", [1.5, 2.0, 2.5, 3.0])
def test_an_adversary_who_keeps_the_mean_cannot_make_it_ring_sooner(mean_time: float) -> None:
    """By enumeration: at each update, knowing all, the worst of the distributions of the planned mean."""
    plan = replace(PLAN, mean_time=mean_time)

    # What lies beyond the horizon only adds to the mean.
    assert mean_time_to_alarm(plan, 6, two_points(0.5)) >= mean_time


def test_an_adversary_who_breaks_the_mean_can() -> None:
    plan = replace(PLAN, mean_time=3.0)

    assert mean_time_to_alarm(plan, 6, two_points(0.75)) < 3.0


# Numbers.


def test_the_first_updates_by_hand() -> None:
    # X = 1, m = ½: M_λ = 1 + f, then (2 + f)(1 + f). Mean f = ½, mean f² = 0.3515625.
    assert after([1.0]).values == (1.9375, 1.75, 1.5, 1.25, 1.0625)
    assert after([1.0]).statistic == 1.5
    assert after([1.0, 1.0]).statistic == 2 + 3 * 0.5 + 0.3515625


def test_at_the_mean_itself_it_counts_the_updates() -> None:
    assert after([0.5] * 9).statistic == 9.0
    assert not after([0.5] * 9).rings
    assert after([0.5] * 10).rings  # at A itself


def test_what_is_not_bet_is_exact() -> None:
    assert all(0.0 < f < 1.0 and Fraction(f) == 1 - Fraction(1.0 - f) for f in FRACTIONS)


def test_after_an_alarm_it_starts_from_nothing() -> None:
    rung = after([1.0] * 4)
    assert (rung.rings, rung.count, rung.last_alarm) == (True, 4, 4)

    again = observe(rung, PLAN, 1.0)
    assert again.values == after([1.0]).values
    assert (again.rings, again.count, again.last_alarm) == (False, 5, 4)


def test_a_start_does_not_ring() -> None:
    assert not start_detector(PLAN).rings


@given(
    st.lists(st.floats(0.0, 1.0), max_size=20),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from(["upper", "lower"]),
)
def test_a_worse_reading_is_never_less_evidence(
    past: list[float], one: float, other: float, side: Any
) -> None:
    plan = replace(PLAN, mean_time=1e9, side=side)
    state = after(past, plan)
    better, worse = sorted((one, other), reverse=side == "lower")

    assert observe(state, plan, better).statistic <= observe(state, plan, worse).statistic


@given(st.lists(st.floats(), max_size=60), st.floats(1e-6, 0.99), st.floats(1.0, 1e12))
def test_whatever_it_is_shown_its_numbers_are_finite_and_not_negative(
    values: list[float], mean: float, mean_time: float
) -> None:
    plan = replace(PLAN, mean=mean, mean_time=mean_time)
    state = after(values, plan)

    assert all(0.0 <= value <= CAP * mean_time for value in state.values)
    assert state.rings == (state.statistic >= mean_time)
    assert state.count == len(values)


def test_a_value_at_its_cap_is_an_alarm() -> None:
    plan = DetectorPlan(bound=1.0, mean=1e-6, mean_time=1.0)
    state = after([1.0], replace(plan, mean_time=1e12))
    assert not state.rings

    capped = observe(replace(state, last_alarm=None), plan, 1.0)
    assert max(capped.values) == CAP
    assert capped.rings


# Closed when in doubt.


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("side", ["upper", "lower"])
def test_what_is_no_value_counts_as_the_worst(value: float, side: Any) -> None:
    plan = replace(PLAN, side=side)

    assert plan.score(value) == 1.0
    assert after([value] * 4, plan).rings


def test_rounding_below_zero_is_zero() -> None:
    assert PLAN.score(-1e-4) == 0.0
    assert replace(PLAN, side="lower").score(-1e-4) == 1.0


def test_beyond_its_bound_a_value_counts_as_the_bound() -> None:
    assert LONG.score(7.0) == 1.0
    assert replace(LONG, side="lower").score(7.0) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": 0.0},
        {"mean": 1.0},
        {"mean": math.nan},
        {"bound": math.inf},
        {"bound": math.nan},
        {"mean": 1e-7},
        {"mean": 1e-20, "side": "lower"},
        {"mean_time": 0.5},
        {"mean_time": 1e13},
        {"mean_time": math.nan},
        {"side": "both"},
    ],
)
def test_a_plan_that_plans_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        replace(PLAN, **wrong)


# Stored.


@given(st.lists(st.floats(), max_size=30))
def test_a_state_comes_back_to_the_last_bit(values: list[float]) -> None:
    state = after(values, LONG)

    assert Detector.from_json(json.loads(json.dumps(state.to_json())), LONG) == state


GOOD = after([1.0, 1.0]).to_json()
RUNG = after([1.0] * 4).to_json()


@pytest.mark.parametrize(
    ("good", "change"),
    [
        (GOOD, {"extra": 1}),
        (GOOD, {"values": (1.0,) * 5}),
        (GOOD, {"values": [1.0] * 4}),
        (GOOD, {"values": [1.0] * 4 + [1]}),
        (GOOD, {"values": [1.0] * 4 + [True]}),
        (GOOD, {"values": [1.0] * 4 + ["1.0"]}),
        (GOOD, {"values": [1.0] * 4 + [-1.0]}),
        (GOOD, {"values": [1.0] * 4 + [math.nan]}),
        (GOOD, {"values": [1.0] * 4 + [math.inf]}),
        (GOOD, {"values": [1.0] * 4 + [1e8]}),
        (GOOD, {"values": [20.0] * 5}),  # evidence enough, and no alarm
        (GOOD, {"count": 0}),
        (GOOD, {"count": -1}),
        (GOOD, {"count": True}),
        (GOOD, {"count": 2.0}),
        (GOOD, {"last_alarm": 0}),
        (GOOD, {"last_alarm": 3}),
        (GOOD, {"last_alarm": 2}),  # an alarm, and no evidence
        (GOOD, {"last_alarm": True}),
        (GOOD, {"last_alarm": "2"}),
        (RUNG, {"last_alarm": None}),
        (start_detector(PLAN).to_json(), {"last_alarm": 1}),
    ],
    ids=str,
)
def test_a_state_that_cannot_have_been_left_is_refused(good: dict, change: dict) -> None:
    assert Detector.from_json(good, PLAN).to_json() == good
    with pytest.raises(InputError, match="stored detector state"):
        Detector.from_json({**good, **change}, PLAN)


@pytest.mark.parametrize("name", GOOD)
def test_a_state_with_a_field_missing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Detector.from_json({k: v for k, v in GOOD.items() if k != name}, PLAN)


# What it finds, and when: the targets, on a few seeds (`benchmarks/detectors.py` has more).


def readings(generator: random.Random, count: int) -> list[float]:
    """Of mean 0.01, with 30 % lognormal noise that carries over by 0.6."""
    level, values = generator.gauss(0.0, 0.3), []
    for _ in range(count):
        level = 0.6 * level + 0.8 * generator.gauss(0.0, 0.3)
        values.append(0.01 * math.exp(level - 0.045))
    return values


@pytest.mark.parametrize(
    ("factor", "target"),
    [
        (lambda age: 2.0, 25),
        (lambda age: 1.5, 60),
        (lambda age: 1.02**age, 50),
        (lambda age: math.nan, 4),
    ],
    ids=["doubled", "half as much again", "2 % an update", "not a number"],
)
def test_faults_are_found_in_time(factor: Any, target: int) -> None:
    delays = []
    for seed in range(21):
        values, state = readings(random.Random(seed), 600), start_detector(LONG)
        for update, value in enumerate(values):
            age = update - 99
            state = observe(state, LONG, value * factor(age) if age > 0 else value)
            if state.rings:
                delays.append(age)
                break
    assert len(delays) == 21
    assert min(delays) > 0
    assert median(delays) <= target


def test_a_sound_run_does_not_ring() -> None:
    assert after(readings(random.Random(0), 20_000), LONG).last_alarm is None


# Two rewards.


def test_concordance_by_hand() -> None:
    assert concordance([1.0, 2.0], [5.0, 6.0], [0, 0]) == 1.0
    assert concordance([1.0, 2.0], [6.0, 5.0], [0, 0]) == -1.0
    # Prompt 0 agrees once; prompt 1 agrees twice and disagrees once. Across prompts nothing is compared.
    assert concordance([1.0, 2.0, 9.0, 1.0, 5.0], [1.0, 2.0, 0.3, 0.2, 0.1], [0, 0, 1, 1, 1]) == 0.5
    assert concordance([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [7, 7, 7]) == 1 / 3


def test_a_tie_of_the_proxy_is_no_pair_and_one_of_the_other_is_a_pair_of_nothing() -> None:
    assert concordance([1.0, 1.0], [1.0, 2.0], [0, 0]) is None
    assert concordance([1.0, 2.0], [1.0, 1.0], [0, 0]) == 0.0
    assert concordance([1.0, 2.0], [1.0, 2.0], [0, 1]) is None
    assert concordance([], [], []) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_counts_as_the_worst(value: float) -> None:
    plan = DetectorPlan(bound=2.0, mean=1.0, mean_time=100.0, side="lower")
    for proxy, held_out in (([value, 1.0], [1.0, 2.0]), ([1.0, 2.0], [value, 1.0])):
        found = concordance(proxy, held_out, [0, 0])
        assert found is not None
        assert plan.score(1.0 + found) == 1.0


def test_rewards_of_other_responses_are_refused() -> None:
    with pytest.raises(InputError, match="got: 1, 2 and 1"):
        concordance([1.0], [1.0, 2.0], [0])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_concordance_is_its_slow_twin(rows: list[tuple[int, int, int]]) -> None:
    pairs = [
        (p - q) * (h - k)
        for i, (p, h, g) in enumerate(rows)
        for j, (q, k, f) in enumerate(rows)
        if i < j and g == f and p != q
    ]
    proxy, held_out = [float(p) for p, _, _ in rows], [float(h) for _, h, _ in rows]
    groups = [g for _, _, g in rows]
    found = concordance(proxy, held_out, groups)

    if found is None:
        assert not pairs
    else:
        assert found == sum((x > 0) - (x < 0) for x in pairs) / len(pairs)
        # Turned round, it is the negative; it turns on order alone.
        assert concordance(proxy, [-x for x in held_out], groups) == -found
        assert concordance([x**3 for x in proxy], held_out, groups) == found


# Hints.


def test_charts_by_hand() -> None:
    one = hint(Hint(), math.e, log_mean=0.0, log_sd=1.0)  # z = 1
    assert one.cusum == 0.5
    assert one.ewma == pytest.approx(0.2 / math.sqrt(0.2 / 1.8))

    two = hint(one, 1.0, log_mean=0.0, log_sd=1.0)  # z = 0
    assert two.cusum == 0.0
    assert two.ewma == pytest.approx(0.8 * one.ewma)


@pytest.mark.parametrize("value", [*BAD, 1e300])
def test_what_is_no_value_hints_as_much_as_one_can(value: float) -> None:
    assert hint(Hint(), value, log_mean=0.0, log_sd=0.3).cusum == 9.5


def test_none_at_all_is_as_low_as_it_gets() -> None:
    assert hint(Hint(), 0.0, log_mean=0.0, log_sd=0.3) == hint(
        Hint(), 1e-300, log_mean=0.0, log_sd=0.3
    )
