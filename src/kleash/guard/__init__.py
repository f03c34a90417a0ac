"""The guard: limits on drift that hold whatever β is. Pure; floats only; no torch."""

from kleash.guard.config import GuardConfig
from kleash.guard.judge import judge, judge_policy

__all__ = ["GuardConfig", "judge", "judge_policy"]
