"""Verification of a run from its own record: every β and verdict recomputed, without torch."""

from kleash.replay.decisions import SKIPPED, replay
from kleash.replay.governed import Governed, Watched, governed
from kleash.replay.overrides import Plan, check_overrides, override
from kleash.replay.sequence import ENDINGS, Status, check_sequence
from kleash.replay.verify import Verification, verify_run

__all__ = [
    "ENDINGS",
    "SKIPPED",
    "Governed",
    "Plan",
    "Status",
    "Verification",
    "Watched",
    "check_overrides",
    "check_sequence",
    "governed",
    "override",
    "replay",
    "verify_run",
]
