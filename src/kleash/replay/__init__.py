"""Verification of a run from its own record: every β and verdict recomputed, without torch."""

from kleash.replay.decisions import SKIPPED, replay
from kleash.replay.overrides import Plan, check_overrides, override
from kleash.replay.sequence import ENDINGS, Status, check_sequence
from kleash.replay.verify import Verification, verify_run

__all__ = [
    "ENDINGS",
    "SKIPPED",
    "Plan",
    "Status",
    "Verification",
    "check_overrides",
    "check_sequence",
    "override",
    "replay",
    "verify_run",
]
