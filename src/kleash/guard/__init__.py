"""The guard: limits on drift that hold whatever β is. Pure; floats only; no torch.

Three tiers, and none is taken for another: limits and the budget *refuse*, deterministically and before an update is
applied; detectors *alarm*, with a bound on how often falsely; charts *hint*, and bound nothing.
"""

from kleash.guard.amend import amend, carry, limits_of
from kleash.guard.budget import (
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
from kleash.guard.config import AlarmConfig, AlarmsConfig, GuardConfig
from kleash.guard.detectors import (
    Detector,
    DetectorPlan,
    Hint,
    concordance,
    hint,
    observe,
    start_detector,
)
from kleash.guard.judge import judge, judge_policy
from kleash.guard.limits import Evidence
from kleash.guard.state import (
    Breach,
    Decision,
    GuardState,
    check,
    decide,
    from_json,
    observed,
    start,
)

__all__ = [
    "AlarmConfig",
    "AlarmsConfig",
    "Breach",
    "Budget",
    "Decision",
    "Detector",
    "DetectorPlan",
    "Drift",
    "Evidence",
    "GuardConfig",
    "GuardState",
    "Hint",
    "allowance",
    "amend",
    "carry",
    "check",
    "concordance",
    "cost_of_update",
    "decide",
    "from_json",
    "hint",
    "judge",
    "judge_policy",
    "limits_of",
    "observe",
    "observed",
    "plan_budget",
    "reconcile",
    "refusals",
    "spend",
    "start",
    "start_detector",
    "unaccounted",
]
