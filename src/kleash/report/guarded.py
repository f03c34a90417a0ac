"""What the guard did in a run: limits, budget, alarms, and the steps at which it did more than accept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kleash.guard import Hint, hint
from kleash.report.figures import DASHED, Chart, Curve, Limit, by_step
from kleash.report.text import number, steps_told, verdict_counts
from kleash.report.theme import PALETTE
from kleash.report.view import RunView

EVENTS = 12
"""Steps that are told one by one; the ledger has all."""

LIMITS = {
    "max_kl": "KL(π‖π_ref), nats per response",
    "max_kl_new_old": "KL(new‖old) of an update, nats per token",
    "max_kl_new_old_p99": "the same, of a token in a hundred",
    "max_kl_new_old_token": "the same, of any token",
    "max_log_ratio": "log new/old of any token drawn, nats",
    "min_entropy": "entropy after an update, nats per token",
    "max_raw_grad_norm": "norm of the gradient, unclipped",
    "max_mismatch": "KL(sampler‖policy), nats per token",
    "max_kl_canary": "KL(π‖π_ref) on the canary set, nats per response",
    "max_kl_slice": "the same on the worst slice of it",
    "max_path_log_ratio": "budget: sum of the updates' largest log-ratios, nats",
    "max_path_variation": "budget: sum of the updates' total variation",
}
"""What each setting of `[guard]` is about."""

ALARMS = {
    "kl": "KL(π‖π_ref) has a mean over",
    "kl_new_old": "KL(new‖old) has a mean over",
    "entropy": "entropy has a mean under",
    "length": "responses have a mean length under",
    "concordance": "agreement of reward and monitor has a mean under",
}
"""What each alarm says."""

SPREAD = 0.3
"""Standard deviation of a KL's logarithm that the hints take for usual."""

BUDGETS = {
    "max_path_log_ratio": ("budget_log_ratio_spent", "canary_sup_log_ratio", "nats"),
    "max_path_variation": ("budget_variation_spent", "canary_total_variation", ""),
}
"""Of each budget: the metric of what was spent, that of what was measured, and their unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitRow:
    """One limit or budget; texts."""

    name: str
    what: str
    worst: str
    bound: str
    share: float | None
    """Of the limit that was used, 0 to 1; None where nothing was measured, or it is a floor."""
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmRow:
    """One alarm; texts."""

    name: str
    what: str
    evidence: str
    threshold: str
    rang: str
    """Where, and what was done; empty where it did not ring."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventRow:
    """One step at which the guard did more than accept."""

    step: int
    action: str
    said: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guarded:
    """What the guard did, ready to be shown."""

    brief: str
    """In a few words."""
    limits: tuple[LimitRow, ...]
    alarms: tuple[AlarmRow, ...]
    events: tuple[EventRow, ...]
    more: int
    """Events that are not shown."""
    overrides: tuple[str, ...]
    """What a second key changed of the plan."""

    @property
    def is_empty(self) -> bool:
        """Whether no limit and no alarm was set, and nothing was undone."""
        return not (self.limits or self.alarms or self.events or self.overrides)


def guarded(found: Mapping[str, Any] | None) -> Guarded | None:
    """The guard's work as verification found it (`kleash.replay.Governed.to_json`)."""
    if found is None:
        return None
    events, alarms = found["events"], found["alarms"]
    rung = sum(len(alarm["rang"]) for alarm in alarms)
    counts = verdict_counts(found["verdicts"])
    return Guarded(
        brief=f"{counts}; {rung} alarm{'' if rung == 1 else 's'}" if alarms else counts,
        limits=(
            *(_limit(row) for row in found["limits"]),
            *(_budget(row) for row in found["budgets"]),
        ),
        alarms=tuple(_alarm(row) for row in alarms),
        events=tuple(_event(row) for row in events[:EVENTS]),
        more=max(0, len(events) - EVENTS),
        overrides=tuple(str(text) for text in found["overrides"]),
    )


def guard_charts(run: RunView, colour: str) -> list[Chart]:
    """Budget and alarms by step; none of what was not set."""
    budgets = [_budget_chart(run, colour, name) for name in BUDGETS if run.limit(name) is not None]
    names = [key for key in run.metrics if key.startswith("alarm/")]
    planned = _number(_alarm_of(run, "kl_new_old").get("mean"))
    return [
        *budgets,
        *([_alarm_chart(run, names)] if names else []),
        *([_hint_chart(run, colour, planned)] if planned else []),
    ]


def _budget_chart(run: RunView, colour: str, name: str) -> Chart:
    spent, measured, unit = BUDGETS[name]
    total = run.limit(name) or 0.0
    curves = [
        Curve(run=run, metric=spent, label="spent", colour=colour),
        Curve(run=run, metric=measured, label="measured", colour=colour, dash=DASHED),
    ]
    kind = "largest log-ratio" if name == "max_path_log_ratio" else "total variation"
    limit = Limit(value=total, text=f"budget {total:g} {unit}".strip())
    reading = (
        "On states that never change. The policy is no further from where it began than what its updates spent, by the "
        "triangle inequality; dashed, how far it was found to be. What is spent never comes back."
    )
    return Chart(
        title=f"Drift budget, {kind}" + (f", {unit}" if unit else ""),
        reading=reading,
        figure=by_step(curves, limit=limit, zero=True),
        size="medium",
    )


def _alarm_chart(run: RunView, names: Sequence[str]) -> Chart:
    curves = [
        Curve(
            run=run,
            metric=metric,
            label=metric.removeprefix("alarm/"),
            colour=PALETTE[index % len(PALETTE)],
            above=0.0,
        )
        for index, metric in enumerate(names)
    ]
    times = {_number(_alarm_of(run, curve.label).get("mean_time")) for curve in curves}
    time = times.pop() if len(times) == 1 else None
    limit = None if time is None else Limit(value=time, text=f"rings at {time:g}")
    reading = (
        "What speaks against the plan. A run within its plan comes to the line once in as many steps, on average, at "
        "most; after an alarm it starts again from 0."
    )
    return Chart(
        title="Evidence of the alarms (log axis)",
        reading=reading,
        figure=by_step(curves, limit=limit, log=True),
        size="medium",
    )


def _hint_chart(run: RunView, colour: str, planned: float) -> Chart:
    """Both classic charts of KL(new‖old), from its planned mean on."""
    state, states = Hint(), list[Hint]()
    for value in run.series("kl_new_old_per_token"):
        seen = math.nan if value is None else value
        state = hint(state, seen, log_mean=math.log(planned), log_sd=SPREAD)
        states.append(state)
    derived = {"cusum": tuple(x.cusum for x in states), "ewma": tuple(x.ewma for x in states)}
    shown = replace(run, metrics=derived)
    curves = [
        Curve(run=shown, metric="cusum", label="CUSUM", colour=colour),
        Curve(run=shown, metric="ewma", label="EWMA", colour=colour, dash=DASHED),
    ]
    reading = (
        f"Of the logarithm of KL(new‖old), in standard deviations of {SPREAD:g} from the planned mean. A CUSUM of 12 "
        "or an EWMA of 3 is much. How often they are wrong nobody can say: no verdict rests on them."
    )
    return Chart(
        title="Hints, no guarantee: CUSUM and EWMA",
        reading=reading,
        figure=by_step(curves),
        size="medium",
    )


def _alarm_of(run: RunView, name: str) -> Mapping[str, Any]:
    """The configuration of an alarm; empty where there is none."""
    alarms = run.setting("guard", "alarms")
    alarm: Any = alarms.get(name) if isinstance(alarms, Mapping) else None
    return alarm if isinstance(alarm, Mapping) else {}


def _number(value: Any) -> float | None:
    """A positive number, or None."""
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _limit(row: Mapping[str, Any]) -> LimitRow:
    worst, bound, floor = row["worst"], row["bound"], row["is_floor"]
    return LimitRow(
        name=row["limit"],
        what=LIMITS.get(row["limit"], ""),
        worst=number(worst),
        bound=f"{'≥' if floor else '≤'} {number(bound)}",
        share=None if floor or worst is None else _share(worst, bound),
        where="" if row["step"] is None else f"step {row['step']}",
    )


def _budget(row: Mapping[str, Any]) -> LimitRow:
    spent, total = row["spent"], row["total"]
    return LimitRow(
        name=row["limit"],
        what=LIMITS.get(row["limit"], ""),
        worst=number(spent),
        bound=f"≤ {number(total)}",
        share=None if spent is None else _share(spent, total),
        where=f"{number(row['measured'])} measured",
    )


def _share(worst: float, bound: float) -> float:
    """How much of a limit was used, 0 to 1; what is no number is all of it."""
    share = worst / bound
    return round(min(max(share, 0.0), 1.0), 3) if share == share else 1.0


def _alarm(row: Mapping[str, Any]) -> AlarmRow:
    rang = row["rang"]
    return AlarmRow(
        name=row["alarm"],
        what=f"{ALARMS.get(row['alarm'], '')} {number(row['mean'])}",
        evidence=number(row["evidence"]),
        threshold=number(row["mean_time"]),
        rang=f"step {steps_told(rang)}: {row['action']}" if rang else "",
    )


def _event(row: Mapping[str, Any]) -> EventRow:
    said = (*row["reasons"], *(f"alarm: {text}" for text in row["alarms"]))
    return EventRow(step=row["step"], action=row["action"], said=said)
