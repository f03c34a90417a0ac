"""What a record says of the guard's work: how near its limits came, what was spent, what rang, what was undone."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kleash.guard import Evidence, GuardConfig, GuardState, from_json
from kleash.guard.budget import Currency
from kleash.guard.limits import HALTING, REFUSING, SHRINKING, Limit
from kleash.ledger import UpdateEntry
from kleash.records import KLReading
from kleash.replay.overrides import Plan

BUDGETS: dict[Currency, str] = {
    "sup_log_ratio": "max_path_log_ratio",
    "total_variation": "max_path_variation",
}
"""The setting of `[guard]` for each currency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One limit, and how near the run came to it."""

    limit: str
    """The setting of `[guard]`."""
    bound: float
    """As it was when the run came nearest to it."""
    unit: str
    """Empty where it has none."""
    is_floor: bool
    worst: float | None
    """Of the policies and updates that were kept; None: nothing was."""
    step: int | None
    """Of that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """A drift budget at the end of the record."""

    limit: str
    """The setting of `[guard]`."""
    total: float
    spent: float | None
    """By law, the policy is no further from where it began."""
    measured: float | None
    """How far it was last found to be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """One alarm, and when it rang."""

    alarm: str
    mean: float
    """As planned."""
    mean_time: float
    """Steps to a false alarm, on average, at least."""
    action: str
    evidence: float | None
    """The most there was against the plan; it rings at `mean_time`. None: nothing was observed."""
    rang: tuple[int, ...]
    """Steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A step at which the guard did more than accept."""

    step: int
    action: str
    reasons: tuple[str, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Governed:
    """What the guard did in a run."""

    verdicts: Mapping[str, int]
    """How often each was given."""
    limits: tuple[Held, ...] = ()
    budgets: tuple[Spent, ...] = ()
    alarms: tuple[Watched, ...] = ()
    events: tuple[Event, ...] = ()
    overrides: tuple[str, ...] = ()
    """What a second key changed of the plan, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**asdict(self), "verdicts": dict(self.verdicts)}


def governed(updates: Sequence[UpdateEntry], plan: Plan, steps: int) -> Governed:
    """The guard's work, from a record that was found to be what was written.

    Args:
        updates: in their order.
        plan: the limits that each was held to.
        steps: that a budget was planned for.
    """
    limits = {step: plan.at(step) for step in {len(updates), *(u.step for u in updates)}}
    states = {
        update.step: from_json(update.guard, limits[update.step], steps)
        for update in updates
        if update.guard is not None
    }
    return Governed(
        verdicts=Counter(update.verdict.action for update in updates),
        limits=tuple(_limits(updates, limits)),
        budgets=tuple(_budgets(states)),
        alarms=tuple(_alarms(states, limits[len(updates)])),
        overrides=tuple(str(each) for each in plan.overrides),
        events=tuple(
            Event(step=update.step, **asdict(update.verdict))
            for update in updates
            if update.verdict.action != "accept" or update.verdict.alarms
        ),
    )


def _limits(updates: Sequence[UpdateEntry], limits_at: Mapping[int, GuardConfig]) -> Iterator[Held]:
    by_setting: dict[str, list[Limit]] = {}
    for limit in (*HALTING, *SHRINKING, *REFUSING):
        by_setting.setdefault(limit.name, []).append(limit)
    for name, limits in by_setting.items():
        floor, unit = limits[0].is_floor, limits[0].unit.strip()
        readings = [pair for update in updates for pair in _readings(update, limits)]
        bounds: dict[int, float | None] = {
            step: getattr(limits_at[step], name)
            for step in (len(updates), *(s for s, _ in readings))
        }
        nearest: tuple[float, float | None, int] | None = None
        for step, value in readings:
            bound = bounds[step]
            if bound is None:
                continue
            used = _used(value, bound, floor=floor)
            if nearest is None or used > nearest[0]:
                nearest = used, value, step
        last = len(updates) if nearest is None else nearest[2]
        if (bound := bounds[last]) is not None:
            yield Held(
                limit=name,
                bound=bound,
                unit=unit,
                is_floor=floor,
                worst=None if nearest is None else nearest[1],
                step=None if nearest is None else last,
            )


def _readings(update: UpdateEntry, limits: Sequence[Limit]) -> Iterator[tuple[int, float]]:
    """What a limit was held against, of a policy that was there and of an update that was kept."""
    evidence = Evidence(
        kl=update.kl, facts=update.facts, origin=update.kl_origin, sampler=update.kl_sampler
    )
    for limit in limits:
        found = limit.find(evidence)
        if found is not None and (limit in HALTING or update.verdict.keeps):
            yield update.step, found.value if isinstance(found, KLReading) else found


def _used(value: float, bound: float, *, floor: bool) -> float:
    """How much of a limit a value uses: 1 at the limit, the more the worse; NaN is the worst.

    Examples:
        >>> _used(0.5, 2.0, floor=False), _used(4.0, 2.0, floor=True)
        (0.25, 0.5)
    """
    if value != value or (floor and value <= 0.0):
        return math.inf
    return bound / value if floor else value / bound


def _budgets(states: Mapping[int, GuardState]) -> Iterator[Spent]:
    budget = states[max(states)].budget if states else None
    if budget is None:
        return
    for currency, name in BUDGETS.items():
        total = budget.total.of(currency)
        if total is not None:
            spent, measured = budget.spent.of(currency), budget.measured.of(currency)
            yield Spent(limit=name, total=total, spent=spent, measured=measured)


def _alarms(states: Mapping[int, GuardState], config: GuardConfig) -> Iterator[Watched]:
    for name, (alarm, _) in config.alarms.plans().items():
        detectors = {s: x.detectors[name] for s, x in states.items() if name in x.detectors}
        # A detector that had nothing to observe stays as it was, its last alarm too.
        before = [None, *(each.last_alarm for each in detectors.values())]
        yield Watched(
            alarm=name,
            mean=alarm.mean,
            mean_time=alarm.mean_time,
            action=alarm.action,
            evidence=max((each.statistic for each in detectors.values()), default=None),
            rang=tuple(
                step
                for (step, each), last in zip(detectors.items(), before, strict=False)
                if each.last_alarm != last
            ),
        )
