"""What the guard makes of a step that limits alone don't decide: what repeats itself, what is spent, what rings.

    state = start(config, steps)
    decision = decide(config, state, step, evidence, observed, checkpoint_every)   # once a step
    decision.verdict, decision.state, decision.raise_by

Pure, and from nothing but what is recorded: so that every verdict can be made again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import nan
from typing import Any, NamedTuple

from kleash.errors import InputError
from kleash.guard.budget import Budget, Drift, plan_budget, reconcile, refusals, spend
from kleash.guard.config import AlarmAction, GuardConfig
from kleash.guard.detectors import Detector, observe, start_detector
from kleash.guard.judge import judge, unfit
from kleash.guard.limits import SHRINKING, Evidence, broken
from kleash.guard.stored import stored_fault
from kleash.records import Action, Distance, Signals, Verdict

SPENT = 0.01
"""Of an equal share of a budget, less than which is nothing left: no update worth making fits into it."""
SEVERITY: tuple[AlarmAction, ...] = ("warn", "raise", "rollback", "halt")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardState:
    """A guard between two steps."""

    refused: tuple[int, ...] = ()
    """Steps of the last `rollback_window` whose updates were undone."""
    rollbacks: int = 0
    good: int | None = None
    """Steps behind the newest checkpoint whose policy was found within its limits; None: there is none."""
    budget: Budget | None = None
    detectors: Mapping[str, Detector] = field(default_factory=dict[str, Detector])

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger and the checkpoint store it: all but what the configuration says."""
        budget = self.budget
        return {
            "refused": list(self.refused),
            "rollbacks": self.rollbacks,
            "good": self.good,
            "budget": None
            if budget is None
            else {
                "spent": asdict(budget.spent),
                "updates": budget.updates,
                "measured": asdict(budget.measured),
            },
            "detectors": {name: each.to_json() for name, each in self.detectors.items()},
        }


class Decision(NamedTuple):
    """What becomes of an update."""

    verdict: Verdict
    state: GuardState
    raise_by: float = 1.0
    """What β is multiplied by after this step."""


class Breach(NamedTuple):
    """What speaks against an update, a sentence each."""

    unfit: list[str]
    """However short it is made."""
    too_far: list[str]
    """As long as it is."""


def start(config: GuardConfig, steps: int) -> GuardState:
    """The state before the first step.

    Args:
        config: of the run.
        steps: that a budget is planned for.
    """
    total = Drift(
        sup_log_ratio=config.max_path_log_ratio, total_variation=config.max_path_variation
    )
    limited = total != Drift()
    return GuardState(
        budget=plan_budget(total, steps, burst=min(config.burst, float(steps)))
        if limited
        else None,
        detectors={name: start_detector(plan) for name, (_, plan) in config.alarms.plans().items()},
    )


def from_json(data: Mapping[str, Any], config: GuardConfig, steps: int) -> GuardState:
    """The state that `to_json` wrote, under the configuration that it was made with.

    Raises:
        InputError: it is not such a state: a field is missing, unknown or of another type.
    """
    fresh, plans = start(config, steps), config.alarms.plans()
    if why := stored_fault(data, plans, budget=fresh.budget is not None):
        raise InputError(
            "the stored guard state cannot be used",
            expected="a state of this configuration's guard",
            got=why,
        )
    budget, stored = fresh.budget, data["budget"]
    if budget is not None:
        budget = replace(
            budget,
            spent=_stored_drift(stored["spent"]),
            updates=stored["updates"],
            measured=_stored_drift(stored["measured"]),
        )
    return GuardState(
        refused=tuple(data["refused"]),
        rollbacks=data["rollbacks"],
        good=data["good"],
        budget=budget,
        detectors={
            name: Detector.from_json(data["detectors"][name], plan)
            for name, (_, plan) in plans.items()
        },
    )


def _stored_drift(amounts: Mapping[str, Any]) -> Drift:
    # A measurement that is not finite is stored as the string for it.
    return Drift(**{name: None if x is None else float(x) for name, x in amounts.items()})


def observed(
    evidence: Evidence, signals: Signals, concordance: float | None
) -> dict[str, float | None]:
    """What alarms watch, of one step; None: not measured."""
    moved = evidence.facts.kl_new_old
    return {
        "kl": evidence.kl.value,
        "kl_new_old": None if moved is None else moved.value,
        "entropy": evidence.facts.entropy,
        "length": signals.response_length,
        "concordance": concordance,
    }


def check(config: GuardConfig, state: GuardState, evidence: Evidence) -> Breach:
    """What speaks against an update as it was measured: limits and budget.

    Raises:
        ConfigError: a KL has another unit or direction than the limit set on it.
    """
    too_far = broken(SHRINKING, config, evidence)
    return Breach(unfit(config, evidence), [*too_far, *_overdrawn(state.budget, evidence)])


def decide(
    config: GuardConfig,
    state: GuardState,
    step: int,
    evidence: Evidence,
    observed: Mapping[str, float | None],
    checkpoint_every: int | None,
) -> Decision:
    """The verdict on a step, and the guard after it.

    Args:
        config: limits, budget, alarms.
        state: from `start` or the last decision.
        step: 1-based.
        evidence: what was measured.
        observed: what alarms watch; None where there was nothing to observe (`concordance`) or it was not measured.
        checkpoint_every: steps between checkpoints that can be gone back to; None: there are none.

    Raises:
        ConfigError: a KL has another unit or direction than the limit set on it.
    """
    verdict = judge(config, evidence.kl, evidence.facts, evidence.origin, evidence.sampler)
    why = _overdrawn(state.budget, evidence)
    # Nothing but that it is not finite is known of an update that isn't.
    if why and (verdict.keeps or evidence.facts.canary is not None):
        said = () if verdict.keeps else verdict.reasons
        action = verdict.action if verdict.action == "halt" else "reject"
        verdict = Verdict(action=action, reasons=(*said, *why))
    ended = bool(why) and state.budget is not None and _is_spent(state.budget)
    detectors, rung = _observe(config, state, step, observed)
    state = replace(state, detectors=detectors)
    if (
        verdict.action != "halt"
        and checkpoint_every
        and step > 1
        and not (step - 1) % checkpoint_every
    ):
        state = replace(state, good=step - 1)
    action, reasons = (
        ("halt", verdict.reasons)  # going back refunds nothing
        if ended
        else _escalated(config, state, step, verdict, [action for _, action in rung])
    )
    verdict = Verdict(action=action, reasons=reasons, alarms=tuple(text for text, _ in rung))
    raises = action == "rollback" or any(a == "raise" for _, a in rung)
    return Decision(
        verdict,
        _after(config, state, step, verdict, evidence),
        config.raise_coef if raises else 1.0,
    )


def _overdrawn(budget: Budget | None, evidence: Evidence) -> list[str]:
    """What the budget has against an update."""
    if budget is None:
        return []
    canary = evidence.facts.canary
    if canary is None:
        return list(refusals(budget, Drift()))
    return list(refusals(budget, _drift(canary.moved)))


def _is_spent(budget: Budget) -> bool:
    """Whether there is nothing left in a currency that is limited."""
    pairs = (
        (budget.remaining.sup_log_ratio, budget.total.sup_log_ratio),
        (budget.remaining.total_variation, budget.total.total_variation),
    )
    return any(
        left <= SPENT * total / budget.steps
        for left, total in pairs
        if left is not None and total is not None
    )


def _observe(
    config: GuardConfig, state: GuardState, step: int, observed: Mapping[str, float | None]
) -> tuple[dict[str, Detector], list[tuple[str, AlarmAction]]]:
    """The detectors after a step, and what rang: a sentence and what is to be done."""
    detectors: dict[str, Detector] = {}
    rung: list[tuple[str, AlarmAction]] = []
    for name, (alarm, plan) in config.alarms.plans().items():
        value, detector = observed.get(name), state.detectors[name]
        # Where the reward preferred nothing, there was nothing to observe.
        if step < alarm.from_step or (name == "concordance" and value is None):
            detectors[name] = detector
            continue
        if name == "concordance" and value is not None:
            value += 1.0
        detectors[name] = observe(detector, plan, nan if value is None else value)
        if detectors[name].rings:
            side = "over" if plan.side == "upper" else "under"
            text = (
                f"{name} has a mean {side} {alarm.mean:g}: evidence {detectors[name].statistic:.3g}, "
                f"which a run within its plan reaches once in {alarm.mean_time:g} steps at most"
            )
            rung.append((text, alarm.action))
    return detectors, rung


def _escalated(
    config: GuardConfig,
    state: GuardState,
    step: int,
    verdict: Verdict,
    alarms: list[AlarmAction],
) -> tuple[Action, tuple[str, ...]]:
    """What is done: the worst of what limits and alarms ask for, as far as it can be had."""
    worst = max(alarms, key=SEVERITY.index, default="warn")
    if worst == "halt":
        return "halt", (*verdict.reasons, "an alarm ends the run")
    count = sum(s > step - config.rollback_window for s in state.refused) + 1
    again = verdict.action == "reject" and count >= config.rollback_after
    if not (verdict.action == "halt" or again or worst == "rollback"):
        return verdict.action, verdict.reasons
    said = f"{count} of the last {config.rollback_window} updates were refused" if again else ""
    said = "an alarm asks to go back" if worst == "rollback" else said
    reasons = (*verdict.reasons, said) if said else verdict.reasons
    if state.good is not None and state.rollbacks < config.max_rollbacks:
        return "rollback", (*reasons, f"back to the checkpoint after step {state.good}")
    if verdict.action == "reject" and state.good is None and worst != "rollback":
        return "reject", verdict.reasons  # there is nothing to go back to yet
    return "halt", reasons


def _after(
    config: GuardConfig, state: GuardState, step: int, verdict: Verdict, evidence: Evidence
) -> GuardState:
    """The guard once a verdict is acted on."""
    refused = tuple(s for s in state.refused if s > step - config.rollback_window)
    if verdict.action == "rollback":
        return replace(state, refused=(), rollbacks=state.rollbacks + 1)
    if not verdict.keeps:
        return replace(state, refused=(*refused, step))
    budget, canary = state.budget, evidence.facts.canary
    if budget is not None and canary is not None:
        budget = reconcile(spend(budget, [_drift(canary.moved)]), _drift(canary.away))
    return replace(state, refused=refused, budget=budget)


def _drift(distance: Distance) -> Drift:
    return Drift(sup_log_ratio=distance.sup_log_ratio, total_variation=distance.total_variation)
