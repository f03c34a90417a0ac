"""The drift account: what a run's updates can have moved the policy by, in two currencies in which steps add up.

The KLs of a run's updates do **not** bound the KL of the whole: a chain of small KLs can end far away, as KL knows no
triangle inequality. Two distances that have one do, on any fixed set of states:

    D∞ = max over states and tokens of |log π_n − log π_0|      D∞(n, 0) ≤ Σ D∞(i, i−1)       nats
    TV = ½ Σ |π_n − π_0|, averaged over the states               TV(n, 0) ≤ Σ √(KL_i/2)        Pinsker

A state is a prefix, and tokens follow; or a prompt, and whole responses do. **The states are the same at every
update**, chosen before the first: costs on whatever each rollout visited add up to a bound on nothing.

An account is opened with totals and a number of updates; each update is charged what it was measured to cost, and one
that would overdraw it is refused. It is a pure function of the recorded costs: nothing is stored but these, so that no
balance can be edited.

**No refund.** Rolling back to an earlier state keeps what was spent: the run has learnt from what it tried. Only a
run whose state equals an earlier one bit for bit, by digest, may be accounted for from that one's costs.

Sums are rounded up (`nextafter`), so that a balance never says less than was spent.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf, isfinite, nan, nextafter, sqrt
from typing import Literal

from kleash.errors import ConfigError, LimitError
from kleash.records import ROUNDING

Currency = Literal["sup_log_ratio", "total_variation"]
CURRENCIES: tuple[Currency, ...] = ("sup_log_ratio", "total_variation")

MOST_UPDATES = 10**9
LEFT_FOR_ROUNDING = 2.0**-50
"""Of the total, at each update: a sum that is rounded up gains at most 1.5 ulp, less than half of this. So a run that
spends its shares to the full comes out within its total, and so does one that spends all that remains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """An amount of drift in both currencies: a total, a cost, a balance. None: not measured, or not limited."""

    sup_log_ratio: float | None = None
    """max |log π/π′| over states and tokens, nats."""
    total_variation: float | None = None
    """Mean total variation over the states, 0 to 1; of a path, more: beyond 1 it bounds nothing."""

    def of(self, currency: Currency) -> float | None:
        """The amount in one currency."""
        return self.sup_log_ratio if currency == "sup_log_ratio" else self.total_variation


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """An account of drift between two updates; opened by `plan_budget`."""

    total: Drift
    """What may be spent in all; None where a currency isn't limited."""
    steps: int
    """Updates that it is planned for."""
    burst: float = 1.0
    """Equal shares of the total that one update may cost at most."""
    spent: Drift = Drift(sup_log_ratio=0.0, total_variation=0.0)
    """By law, the policy is no further than this from where the account was opened. It never falls. None: an update was
    applied whose cost in this currency, which isn't limited, was not measured."""
    updates: int = 0
    """Applied so far."""
    measured: Drift = Drift()
    """How far the policy was last found to be: at most `spent`, or it was moved off the books."""

    @property
    def per_update(self) -> Drift:
        """The planned cap: what one update may cost."""
        shares = self.burst / self.steps
        return _each(lambda currency: _share(self.total.of(currency), shares))

    @property
    def remaining(self) -> Drift:
        """What is left of the totals, never negative; None where that isn't limited."""
        return _each(lambda currency: _left(self.total.of(currency), self.spent.of(currency)))


def plan_budget(total: Drift, steps: int, *, burst: float = 1.0) -> Budget:
    """An account that nothing was spent from: the total, in equal shares for a number of updates.

    Args:
        total: at least one currency; the other may be unlimited.
        steps: updates planned. One more can follow as long as something remains.
        burst: shares that one update may cost at most. At 1 the total lasts for all of them; with more, updates may
            differ, and a run that always takes the most is refused before its end.

    Raises:
        ConfigError: a total is not a positive number, none is limited, there are no steps, or a burst is less than 1.

    Examples:
        >>> budget = plan_budget(Drift(sup_log_ratio=8.0), steps=100)
        >>> round(budget.per_update.sup_log_ratio, 12), budget.remaining.sup_log_ratio
        (0.08, 8.0)
    """
    amounts = [total.of(currency) for currency in CURRENCIES]
    limits = [amount for amount in amounts if amount is not None]
    if not limits or not all(isfinite(limit) and limit > 0.0 for limit in limits):
        raise ConfigError(
            "a drift budget needs a positive total in one currency at least",
            got=", ".join(f"{c} = {a}" for c, a in zip(CURRENCIES, amounts, strict=True)),
        )
    if not (1 <= steps <= MOST_UPDATES and 1.0 <= burst <= MOST_UPDATES):
        raise ConfigError(
            "a drift budget cannot be shared out",
            expected=f"1 to {MOST_UPDATES} updates, and a burst of as many shares",
            got=f"{steps} updates, a burst of {burst:g}",
        )
    return Budget(total=total, steps=steps, burst=burst)


def cost_of_update(*, sup_log_ratio: float | None, kl: float | None, error: float = 0.0) -> Drift:
    """What an update costs: D∞ as it is, total variation by Pinsker's inequality, √(KL/2), rounded up.

    The mean KL over the states will do: the mean of √(KL_s/2) is at most the root of the mean. Either direction of KL
    bounds the same total variation. A KL that rounding took below zero (`records.ROUNDING`) is charged at its size:
    a true one could be as large.

    Args:
        sup_log_ratio: max |log new/old| over the states and all tokens, nats; None: not measured.
        kl: KL(new‖old), mean over the states, nats; None: not measured.
        error: nats that arithmetic may have taken off the KL, added to it. The root makes much of little: 1e-8 nats,
            a rounding in single precision, hide a total variation of 7e-5. Where total variation itself was measured,
            charge that instead (`Drift(total_variation=…)`): it is smaller, and rounds as other numbers do.

    Examples:
        >>> cost_of_update(sup_log_ratio=0.3, kl=0.02)
        Drift(sup_log_ratio=0.3, total_variation=0.100000000000...)
        >>> cost_of_update(sup_log_ratio=None, kl=-1.0)  # not a KL: a cost that no account accepts
        Drift(sup_log_ratio=None, total_variation=nan)
    """
    if kl is None:
        return Drift(sup_log_ratio=sup_log_ratio)
    size = abs(kl) + error if kl >= -ROUNDING and error >= 0.0 else nan
    return Drift(sup_log_ratio=sup_log_ratio, total_variation=_up(sqrt(size / 2.0)))


def allowance(budget: Budget) -> Drift:
    """What the next update may cost at most: its share, or what remains where that is less; None: not limited.

    Where nothing remains it is 0: an update is refused then, but for one that moves nothing.

    What earlier updates saved is not saved up: a share is also a limit on how fast the policy may move (`burst`).

    Examples:
        >>> budget = spend(plan_budget(Drift(sup_log_ratio=1.0), steps=2), [Drift(sup_log_ratio=0.25)])
        >>> allowance(budget).sup_log_ratio  # half of 1, but for rounding
        0.4999999999999...
    """

    def least(currency: Currency) -> float | None:
        share, left = budget.per_update.of(currency), budget.remaining.of(currency)
        total = budget.total.of(currency)
        if share is None or left is None or total is None:
            return None
        return min(share, max(0.0, left - LEFT_FOR_ROUNDING * total))

    return _each(least)


def refusals(budget: Budget, cost: Drift) -> tuple[str, ...]:
    """Why an update of this cost may not be applied, one sentence each; empty where it may.

    What was not measured counts against the update where it is limited, and what is not a number always does.

    Examples:
        >>> budget = plan_budget(Drift(sup_log_ratio=1.0), steps=4)
        >>> refusals(budget, Drift(sup_log_ratio=0.2))
        ()
        >>> refusals(budget, Drift(sup_log_ratio=0.3))
        ('sup_log_ratio of the update is 0.3, over its allowance of 0.25 (1 remains of 1)',)
        >>> refusals(budget, Drift())
        ('sup_log_ratio of the update was not measured, and a budget of 1 limits it',)
    """
    allowed, left = allowance(budget), budget.remaining
    reasons: list[str] = []
    for currency in CURRENCIES:
        amount, limit = cost.of(currency), allowed.of(currency)
        total = budget.total.of(currency)
        if amount is None:
            if total is not None:
                reasons.append(
                    f"{currency} of the update was not measured, and a budget of {total:.6g} limits it"
                )
        elif not (isfinite(amount) and amount >= 0.0):
            reasons.append(f"{currency} of the update is {amount:.6g}: not a drift to account for")
        elif limit is not None and amount > limit:
            reasons.append(
                f"{currency} of the update is {amount:.6g}, over its allowance of {limit:.6g} "
                f"({left.of(currency):.6g} remains of {total:.6g})"
            )
    return (*reasons, *unaccounted(budget))


def spend(budget: Budget, costs: Iterable[Drift]) -> Budget:
    """The account after updates of these costs were applied, in their order.

    An update that was refused left the policy as it was and is not among them; a rollback adds nothing and takes
    nothing off. An account is recomputed from the recorded costs alone, so that `spend(spend(b, x), y)` is
    `spend(b, [*x, *y])` to the last bit.

    Raises:
        LimitError: an update is one that `refusals` speaks against: there is no way to overdraw.

    Examples:
        >>> budget = plan_budget(Drift(sup_log_ratio=8.0, total_variation=1.0), steps=8)
        >>> cost = cost_of_update(sup_log_ratio=0.5, kl=0.02)
        >>> budget = spend(budget, [cost, cost])
        >>> budget.updates, round(budget.spent.sup_log_ratio, 12), round(budget.remaining.total_variation, 12)
        (2, 1.0, 0.8)
    """
    for cost in costs:
        if reasons := refusals(budget, cost):
            raise LimitError("an update overdraws the drift budget", got="; ".join(reasons))
        budget = replace(budget, spent=_add(budget.spent, cost), updates=budget.updates + 1)
    return budget


def reconcile(budget: Budget, measured: Drift) -> Budget:
    """The account with how far the policy was found to be; what it can't account for, `unaccounted` says.

    Args:
        budget: the account.
        measured: from where the account was opened, on the same states: D∞, and total variation itself. No √(KL/2):
            Pinsker bounds each update's total variation, and the square root of a KL has no triangle inequality.
    """
    return replace(budget, measured=measured)


def unaccounted(budget: Budget) -> tuple[str, ...]:
    """What was measured and can't be, one sentence each: a drift further than its updates, or not a number.

    The policy was then moved by something that was not charged, or measured on other states. Until that is found, no
    update is accepted.

    Examples:
        >>> budget = plan_budget(Drift(sup_log_ratio=8.0), steps=8)
        >>> unaccounted(reconcile(budget, Drift(sup_log_ratio=0.7)))
        ('sup_log_ratio was measured as 0.7, and the updates account for 0: something else moved the policy',)
    """
    reasons: list[str] = []
    for currency in CURRENCIES:
        found, spent = budget.measured.of(currency), budget.spent.of(currency)
        if found is None:
            continue
        if not (isfinite(found) and found >= 0.0):
            reasons.append(f"{currency} was measured as {found:.6g}: not a drift")
        elif spent is not None and found > spent + ROUNDING:
            reasons.append(
                f"{currency} was measured as {found:.6g}, and the updates account for {spent:.6g}: "
                "something else moved the policy"
            )
    return tuple(reasons)


def _each(amount: Callable[[Currency], float | None]) -> Drift:
    return Drift(sup_log_ratio=amount("sup_log_ratio"), total_variation=amount("total_variation"))


def _share(total: float | None, share: float) -> float | None:
    return None if total is None else total * share - LEFT_FOR_ROUNDING * total


def _left(total: float | None, spent: float | None) -> float | None:
    # What is limited is never applied unmeasured: where `spent` is None, so is the total.
    return None if total is None or spent is None else max(0.0, total - spent)


def _add(spent: Drift, cost: Drift) -> Drift:
    def both(currency: Currency) -> float | None:
        before, more = spent.of(currency), cost.of(currency)
        if before is None or more is None:
            return None
        return before if more == 0.0 else _up(before + more)

    return _each(both)


def _up(amount: float) -> float:
    """The next float, but for 0, which was not rounded."""
    return nextafter(amount, inf) if amount > 0.0 else amount
