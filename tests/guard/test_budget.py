"""The drift account: the laws it rests on, on random chains; never overdrawn, never refunded, closed when in doubt."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kleash.errors import ConfigError, LimitError
from kleash.guard import (
    Budget,
    Drift,
    allowance,
    cost_of_update,
    plan_budget,
    reconcile,
    refusals,
    spend,
    unaccounted,
)
from kleash.guard.budget import CURRENCIES

BOTH = plan_budget(Drift(sup_log_ratio=8.0, total_variation=1.0), steps=8)
ONE = plan_budget(Drift(sup_log_ratio=8.0), steps=8)
SMALL = Drift(sup_log_ratio=0.5, total_variation=0.1)
BAD = [math.nan, math.inf, -math.inf, -1.0]


def number(amount: float | None) -> float:
    assert amount is not None
    return amount


# The laws, on chains of categorical policies.

Logs = list[list[float]]
"""log π[state][token]."""


class Move(NamedTuple):
    """What befalls a run: an update by these log-ratios, or a return to an earlier policy."""

    kind: str
    """`update`, `rollback`."""
    sizes: list[list[float]]
    back: int


@st.composite
def chains(draw: st.DrawFn) -> tuple[Logs, list[Move]]:
    states, tokens = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    logit = st.floats(-3.0, 3.0, width=16)
    table = st.lists(
        st.lists(logit, min_size=tokens, max_size=tokens), min_size=states, max_size=states
    )
    move = st.builds(
        Move,
        kind=st.sampled_from(["update", "update", "update", "rollback"]),
        sizes=table,
        back=st.integers(0, 5),
    )
    return normal(draw(table)), draw(st.lists(move, min_size=1, max_size=8))


def normal(logits: Logs) -> Logs:
    return [[x - math.log(math.fsum(map(math.exp, row))) for x in row] for row in logits]


def sup_log_ratio(new: Logs, old: Logs) -> float:
    return max(abs(a - b) for x, y in zip(new, old, strict=True) for a, b in zip(x, y, strict=True))


def total_variation(new: Logs, old: Logs) -> float:
    rows = [
        math.fsum(abs(math.exp(a) - math.exp(b)) for a, b in zip(x, y, strict=True)) / 2
        for x, y in zip(new, old, strict=True)
    ]
    return math.fsum(rows) / len(rows)


def kl(new: Logs, old: Logs) -> float:
    """Mean over the states; as a sum of terms that are none negative, so that small ones are not lost."""
    rows = [
        math.fsum(
            math.exp(a) * (a - b) - math.exp(a) + math.exp(b) for a, b in zip(x, y, strict=True)
        )
        for x, y in zip(new, old, strict=True)
    ]
    return max(math.fsum(rows) / len(rows), 0.0)


def check_chain(chain: tuple[Logs, list[Move]], most: float, most_tv: float, steps: int) -> None:
    """No chain drifts further than it spent, or spends more than it may; what is spent never falls."""
    start, moves = chain
    budget = plan_budget(Drift(sup_log_ratio=most, total_variation=most_tv), steps)
    policy, earlier, costs = start, [start], []
    for move in moves:
        before = budget
        if move.kind == "rollback":
            policy = earlier[-1 - move.back % len(earlier)]
        else:
            # Sizes from far over what is allowed to far under.
            proposed = normal(
                [
                    [a + d * 0.3**move.back for a, d in zip(x, y, strict=True)]
                    for x, y in zip(policy, move.sizes, strict=True)
                ]
            )
            cost = cost_of_update(
                sup_log_ratio=sup_log_ratio(proposed, policy), kl=kl(proposed, policy), error=1e-15
            )
            if not refusals(budget, cost):
                budget, policy = spend(budget, [cost]), proposed
                earlier.append(policy)
                costs.append(cost)
        measured = Drift(
            sup_log_ratio=sup_log_ratio(policy, start),
            total_variation=total_variation(policy, start),
        )
        assert number(measured.sup_log_ratio) <= number(budget.spent.sup_log_ratio)
        assert number(measured.total_variation) <= number(budget.spent.total_variation)
        assert not unaccounted(reconcile(budget, measured))
        for currency in CURRENCIES:
            spent = number(budget.spent.of(currency))
            assert number(before.spent.of(currency)) <= spent <= number(budget.total.of(currency))
    assert spend(plan_budget(budget.total, steps), costs) == budget


case = given(chains(), st.floats(0.5, 20.0), st.floats(0.1, 3.0), st.integers(1, 4))


@case
def test_no_chain_drifts_further_than_it_spent(
    chain: tuple[Logs, list[Move]], most: float, most_tv: float, steps: int
) -> None:
    check_chain(chain, most, most_tv, steps)


@pytest.mark.slow
@settings(max_examples=2_000)
@case
def test_nor_does_one_of_two_thousand(
    chain: tuple[Logs, list[Move]], most: float, most_tv: float, steps: int
) -> None:
    check_chain(chain, most, most_tv, steps)


def test_the_sum_of_kls_would_have_bounded_nothing() -> None:
    """Why KL itself is no currency: two steps go twice as far, and KL grows as the square."""
    policies = [normal([[x, 0.0]]) for x in (0.0, 0.5, 1.0)]

    steps = kl(policies[1], policies[0]) + kl(policies[2], policies[1])
    assert kl(policies[2], policies[0]) > 1.5 * steps


def test_the_costs_of_an_update_by_hand() -> None:
    # 0.02 nats are at most a total variation of √0.01.
    assert cost_of_update(sup_log_ratio=0.3, kl=0.02).total_variation == pytest.approx(0.1)
    assert number(cost_of_update(sup_log_ratio=0.3, kl=0.02).total_variation) > 0.1
    assert cost_of_update(sup_log_ratio=0.3, kl=None) == Drift(sup_log_ratio=0.3)
    assert cost_of_update(sup_log_ratio=0.0, kl=0.0) == Drift(sup_log_ratio=0.0, total_variation=0)


def test_a_kl_that_rounding_took_below_zero_costs_its_size_and_one_that_is_negative_is_none() -> (
    None
):
    rounded = cost_of_update(sup_log_ratio=None, kl=-2e-8)
    assert number(rounded.total_variation) == pytest.approx(1e-4)
    for value in BAD:
        assert refusals(BOTH, cost_of_update(sup_log_ratio=0.1, kl=value))
        assert refusals(BOTH, cost_of_update(sup_log_ratio=0.1, kl=0.01, error=value))


def test_an_error_of_the_kl_is_charged() -> None:
    exact = cost_of_update(sup_log_ratio=None, kl=0.02, error=0.06)
    assert number(exact.total_variation) == pytest.approx(0.2)


# Sums.


@given(st.lists(st.floats(0.0, 0.999), max_size=50))
def test_rounding_never_understates_what_was_spent(costs: list[float]) -> None:
    budget = plan_budget(Drift(sup_log_ratio=1000.0), steps=1000)
    budget = spend(budget, [Drift(sup_log_ratio=cost) for cost in costs])

    true = sum(map(Fraction, costs), Fraction(0))
    spent = number(budget.spent.sup_log_ratio)
    assert true <= Fraction(spent) <= true * (1 + Fraction(1, 10**13))
    assert (spent == 0.0) == (true == 0)


@given(st.lists(st.floats(0.0, 0.999), max_size=20), st.integers(0, 20))
def test_the_account_is_what_its_costs_make_it(costs: list[float], cut: int) -> None:
    drifts = [Drift(sup_log_ratio=cost, total_variation=cost / 10) for cost in costs]
    start = plan_budget(Drift(sup_log_ratio=1000.0, total_variation=100.0), steps=1000)

    assert spend(spend(start, drifts[:cut]), drifts[cut:]) == spend(start, drifts)


@given(st.floats(1e-6, 1e6), st.integers(1, 300))
@example(1.0, 10_000)
def test_shares_spent_to_the_full_come_out_within_the_total(total: float, steps: int) -> None:
    budget = plan_budget(Drift(sup_log_ratio=total), steps)
    share = number(budget.per_update.sup_log_ratio)
    assert Fraction(share) * steps <= Fraction(total)

    budget = spend(budget, [budget.per_update] * steps)
    left = number(budget.remaining.sup_log_ratio)
    assert 0.0 <= left < total * 1e-11
    assert number(budget.spent.sup_log_ratio) <= total


@given(st.floats(1e-3, 1e3), st.floats(1.0, 5.0), st.lists(st.floats(0.0, 1.0), max_size=30))
def test_an_update_may_cost_its_allowance_and_not_a_bit_more(
    total: float, burst: float, parts: list[float]
) -> None:
    budget = plan_budget(Drift(sup_log_ratio=total), steps=4, burst=burst)
    for part in parts:
        most = number(allowance(budget).sup_log_ratio)
        assert refusals(budget, Drift(sup_log_ratio=math.nextafter(most, math.inf)))
        assert not refusals(budget, Drift(sup_log_ratio=most))
        # All that is allowed, or a part of it.
        budget = spend(budget, [Drift(sup_log_ratio=most if part > 0.5 else part * most)])
        assert number(budget.spent.sup_log_ratio) <= total


def test_a_balance_by_hand() -> None:
    budget = spend(BOTH, [SMALL, SMALL])

    assert budget.updates == 2
    assert number(budget.spent.sup_log_ratio) == pytest.approx(1.0)
    assert number(budget.remaining.sup_log_ratio) == pytest.approx(7.0)
    assert number(budget.remaining.total_variation) == pytest.approx(0.8)
    assert number(allowance(budget).total_variation) == pytest.approx(0.125)


def test_when_little_is_left_that_is_what_an_update_may_cost() -> None:
    budget = plan_budget(Drift(sup_log_ratio=1.0), steps=2)
    budget = spend(budget, [Drift(sup_log_ratio=cost) for cost in (0.4, 0.4)])

    assert number(allowance(budget).sup_log_ratio) == pytest.approx(0.2)
    assert refusals(budget, Drift(sup_log_ratio=0.3)) == (
        "sup_log_ratio of the update is 0.3, over its allowance of 0.2 (0.2 remains of 1)",
    )


def test_a_burst_costs_several_shares_and_the_total_holds() -> None:
    budget = plan_budget(Drift(sup_log_ratio=1.0), steps=10, burst=4.0)
    assert number(budget.per_update.sup_log_ratio) == pytest.approx(0.4)

    budget = spend(budget, [budget.per_update] * 2)
    assert number(allowance(budget).sup_log_ratio) == pytest.approx(0.2)
    budget = spend(budget, [allowance(budget)])
    assert refusals(budget, Drift(sup_log_ratio=1e-9))


@pytest.mark.parametrize("burst", [0.5, math.nan, math.inf])
def test_a_burst_that_is_none_is_refused(burst: float) -> None:
    with pytest.raises(ConfigError, match="cannot be shared out"):
        plan_budget(Drift(sup_log_ratio=1.0), steps=10, burst=burst)


def test_when_nothing_is_left_an_update_is_refused_but_for_one_that_moves_nothing() -> None:
    budget = plan_budget(Drift(sup_log_ratio=1.0), steps=1)
    budget = spend(budget, [budget.per_update])

    assert refusals(budget, Drift(sup_log_ratio=1e-9))
    assert spend(budget, [Drift(sup_log_ratio=0.0)]).spent == budget.spent


# Refused.


@pytest.mark.parametrize("currency", CURRENCIES)
@pytest.mark.parametrize("value", [None, *BAD])
def test_what_is_not_an_amount_is_never_accepted(currency: str, value: float | None) -> None:
    cost = replace(SMALL, **{currency: value})

    assert len(refusals(BOTH, cost)) == 1
    assert refusals(BOTH, cost)[0].startswith(currency)
    with pytest.raises(LimitError, match=f"got: {currency}"):
        spend(BOTH, [SMALL, cost])


def test_both_currencies_are_held() -> None:
    assert len(refusals(BOTH, Drift(sup_log_ratio=1.5, total_variation=0.2))) == 2


@given(st.floats(0.0, 2.0), st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_a_larger_total_never_refuses_more(cost: float, one: float, other: float) -> None:
    narrow, wide = sorted((one, other))
    costs = Drift(sup_log_ratio=cost)

    if refusals(plan_budget(Drift(sup_log_ratio=wide), 4), costs):
        assert refusals(plan_budget(Drift(sup_log_ratio=narrow), 4), costs)


def test_what_is_not_limited_may_go_unmeasured_and_is_then_unknown_for_good() -> None:
    budget = spend(ONE, [SMALL])
    assert number(budget.spent.total_variation) == pytest.approx(0.1)
    assert budget.remaining.total_variation is None
    assert allowance(budget).total_variation is None

    budget = spend(budget, [Drift(sup_log_ratio=0.5), SMALL])
    assert budget.spent.total_variation is None
    assert number(budget.spent.sup_log_ratio) == pytest.approx(1.5)


@pytest.mark.parametrize("value", BAD)
def test_nor_is_what_is_not_an_amount_accepted_where_there_is_no_limit(value: float) -> None:
    assert refusals(ONE, replace(SMALL, total_variation=value))


@pytest.mark.parametrize(
    ("total", "steps"),
    [
        (Drift(), 8),
        (Drift(sup_log_ratio=0.0), 8),
        (Drift(sup_log_ratio=1.0, total_variation=-1.0), 8),
        (Drift(sup_log_ratio=math.nan), 8),
        (Drift(total_variation=math.inf), 8),
        (Drift(sup_log_ratio=1.0), 0),
        (Drift(sup_log_ratio=1.0), 10**10),
    ],
)
def test_a_plan_that_limits_nothing_or_everything_is_refused(total: Drift, steps: int) -> None:
    with pytest.raises(ConfigError, match="drift budget"):
        plan_budget(total, steps)


# Measured.


def account(measured: Drift, budget: Budget = ONE) -> tuple[str, ...]:
    return unaccounted(reconcile(budget, measured))


def test_a_policy_moved_off_the_books_stops_the_run() -> None:
    budget = reconcile(spend(BOTH, [SMALL]), Drift(sup_log_ratio=0.6, total_variation=0.05))

    assert len(unaccounted(budget)) == 1
    assert refusals(budget, SMALL) == unaccounted(budget)
    with pytest.raises(LimitError, match="something else moved the policy"):
        spend(budget, [SMALL])


def test_a_policy_nearer_than_its_path_is_as_it_should_be() -> None:
    assert not account(Drift(sup_log_ratio=0.4), spend(ONE, [SMALL]))
    assert not account(Drift(sup_log_ratio=0.0005))  # rounding
    assert not account(Drift())


@pytest.mark.parametrize("value", BAD)
def test_a_measurement_that_is_none_stops_the_run(value: float) -> None:
    unknown = spend(ONE, [Drift(sup_log_ratio=0.5)])

    assert account(Drift(sup_log_ratio=value))
    assert account(Drift(total_variation=value), unknown)
    assert not account(Drift(total_variation=0.9), unknown)
