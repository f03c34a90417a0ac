"""The guard: limits on drift that hold whatever β is. Pure; floats only; no torch.

Three tiers, and none is taken for another: limits and the budget *refuse*, deterministically and before an update is
applied; detectors *alarm*, with a bound on how often falsely; charts *hint*, and bound nothing.
"""

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
from kleash.guard.config import GuardConfig
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

__all__ = [
    "Budget",
    "Detector",
    "DetectorPlan",
    "Drift",
    "GuardConfig",
    "Hint",
    "allowance",
    "concordance",
    "cost_of_update",
    "hint",
    "judge",
    "judge_policy",
    "observe",
    "plan_budget",
    "reconcile",
    "refusals",
    "spend",
    "start_detector",
    "unaccounted",
]
