"""The record of a run: an append-only, hash-chained file that a third party can verify. No torch.

The bytes are fixed in docs/ledger-format.md.
"""

from kleash.ledger.chain import (
    HEAD_FILE,
    LEDGER_FILE,
    Chain,
    Head,
    Problem,
    read,
    verify_chain,
)
from kleash.ledger.entry import Entry, encode, hash_line
from kleash.ledger.evidence import (
    CHECKPOINT_DIRECTORY,
    check_checkpoints,
    check_config,
    check_files,
    check_metrics,
    checkpoint_name,
    digest_run,
    sha256_file,
)
from kleash.ledger.measurement import MeasurementEntry
from kleash.ledger.paths import refusal
from kleash.ledger.steps import Kind, kind_of, steps_due, steps_made
from kleash.ledger.store import Ledger
from kleash.ledger.update import UpdateEntry

__all__ = [
    "CHECKPOINT_DIRECTORY",
    "HEAD_FILE",
    "LEDGER_FILE",
    "Chain",
    "Entry",
    "Head",
    "Kind",
    "Ledger",
    "MeasurementEntry",
    "Problem",
    "UpdateEntry",
    "check_checkpoints",
    "check_config",
    "check_files",
    "check_metrics",
    "checkpoint_name",
    "digest_run",
    "encode",
    "hash_line",
    "kind_of",
    "read",
    "refusal",
    "sha256_file",
    "steps_due",
    "steps_made",
    "verify_chain",
]
