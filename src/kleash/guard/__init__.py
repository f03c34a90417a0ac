"""The guard: limits on drift that hold whatever β is. Pure; floats only; no torch.

Three tiers, and none is taken for another: limits *refuse*, deterministically and before an update is
applied; detectors *alarm*, with a bound on how often falsely; charts *hint*, and bound nothing.
"""

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
    "Detector",
    "DetectorPlan",
    "GuardConfig",
    "Hint",
    "concordance",
    "hint",
    "judge",
    "judge_policy",
    "observe",
    "start_detector",
]
