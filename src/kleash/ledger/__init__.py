"""The record of a run: an append-only, hash-chained and signed ledger that a third party can verify. No torch.

The bytes are fixed in docs/ledger-format.md.
"""

from kleash.ledger.chain import first_entry, has_ledger, kept_notes, read, verify_chain
from kleash.ledger.entry import VERSION, Entry, encode, hash_line
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
from kleash.ledger.found import Chain, Head, Problem
from kleash.ledger.keyfile import (
    create_signing_key,
    default_key_path,
    needs_passphrase,
    open_signing_key,
    read_public_key,
    read_signing_key,
    rewrite_signing_key,
)
from kleash.ledger.keys import ED25519, ML_DSA_44, PublicKey, SigningKey, parse_vkey
from kleash.ledger.layout import (
    GENESIS_FILE,
    HEAD_NOTE,
    Genesis,
    note_name,
    place_of,
    segment_name,
)
from kleash.ledger.measurement import MeasurementEntry
from kleash.ledger.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from kleash.ledger.note import (
    Checkpoint,
    Signer,
    note_text,
    open_checkpoint,
    open_note,
    parse_checkpoint,
    sign_checkpoint,
    sign_note,
)
from kleash.ledger.override import (
    OVERRIDE,
    Change,
    OverrideEntry,
    sign_override,
    wrong_override,
)
from kleash.ledger.paths import refusal
from kleash.ledger.proof import PROOF_SUFFIX, Proven, check_proof, prove
from kleash.ledger.steps import Kind, kind_of, steps_due, steps_made
from kleash.ledger.store import REPEATED, Ledger
from kleash.ledger.update import UpdateEntry
from kleash.ledger.version1 import HEAD_FILE, LEDGER_FILE

__all__ = [
    "CHECKPOINT_DIRECTORY",
    "ED25519",
    "GENESIS_FILE",
    "HEAD_FILE",
    "HEAD_NOTE",
    "LEDGER_FILE",
    "ML_DSA_44",
    "OVERRIDE",
    "PROOF_SUFFIX",
    "REPEATED",
    "VERSION",
    "Chain",
    "Change",
    "Checkpoint",
    "Entry",
    "Frontier",
    "Genesis",
    "Head",
    "Kind",
    "Ledger",
    "MeasurementEntry",
    "OverrideEntry",
    "Problem",
    "Proven",
    "PublicKey",
    "Signer",
    "SigningKey",
    "UpdateEntry",
    "check_checkpoints",
    "check_config",
    "check_files",
    "check_metrics",
    "check_proof",
    "checkpoint_name",
    "consistency_proof",
    "create_signing_key",
    "default_key_path",
    "digest_run",
    "encode",
    "first_entry",
    "has_ledger",
    "hash_line",
    "inclusion_proof",
    "kept_notes",
    "kind_of",
    "needs_passphrase",
    "note_name",
    "note_text",
    "open_checkpoint",
    "open_note",
    "open_signing_key",
    "parse_checkpoint",
    "parse_vkey",
    "place_of",
    "prove",
    "read",
    "read_public_key",
    "read_signing_key",
    "refusal",
    "rewrite_signing_key",
    "root_of",
    "segment_name",
    "sha256_file",
    "sign_checkpoint",
    "sign_note",
    "sign_override",
    "steps_due",
    "steps_made",
    "verify_chain",
    "verify_consistency",
    "verify_inclusion",
    "wrong_override",
]
