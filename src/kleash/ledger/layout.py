"""Where the parts of a ledger lie, and what its first file says: which ledger it is, and whose keys sign it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleash.errors import KleashError, TamperError
from kleash.ledger.entry import VERSION, encode, parse_object
from kleash.ledger.keys import PublicKey, parse_vkey
from kleash.ledger.note import Checkpoint, open_checkpoint
from kleash.ledger.paths import open_regular, refusal

GENESIS_FILE = "genesis.json"
"""Written last as a ledger is made: where it is, the others are."""
HEAD_NOTE = "head"
SEGMENT_DIRECTORY = "segments"
NOTE_DIRECTORY = "checkpoints"
LOCK_FILE = "lock"
SEGMENT_ENTRIES = 4096
"""Entries of a full segment, which is never written to again."""
NOTE_EVERY = 64
"""Entries between two checkpoints that are kept."""
MAX_KEYS = 16
KEPT_AFTER = {"checkpoint.saved", "run.finished", "run.interrupted", "run.failed"}
"""Types of entries after which the checkpoint is kept, however many lie before."""

_ORIGIN = re.compile(r"kleash/[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Genesis:
    """What holds for a ledger from before its first entry to its last."""

    origin: str
    """Its name, drawn at random: a checkpoint of one ledger is none of another."""
    keys: tuple[PublicKey, ...]
    """Each of them signs every checkpoint."""

    def to_bytes(self) -> bytes:
        """The content of genesis.json."""
        keys = [key.vkey for key in self.keys]
        return encode({"keys": keys, "origin": self.origin, "v": VERSION}) + b"\n"

    def open(self, note: bytes) -> Checkpoint:
        """The checkpoint in a note of this ledger.

        Raises:
            TamperError: it is none, or one of the keys did not sign it.
        """
        opened = [open_checkpoint(note, [key], origin=self.origin) for key in self.keys]
        return opened[0]


def parse_genesis(content: bytes) -> Genesis:
    """The genesis in the bytes of its file.

    Raises:
        TamperError: they are none.
    """
    data = parse_object(content.removesuffix(b"\n"))
    if data.get("v") != VERSION:
        raise TamperError("of a version that is not known here", expected=f"v {VERSION}")
    origin, keys = data.get("origin"), data.get("keys")
    if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
        raise TamperError("the origin has another form", expected="kleash/ and 16 hex digits")
    if not isinstance(keys, list) or not 1 <= len(keys) <= MAX_KEYS:
        raise TamperError("no list of keys", expected=f"1 to {MAX_KEYS}")
    try:
        public = tuple(parse_vkey(str(key)) for key in keys)
    except KleashError as error:
        raise TamperError(f"a key is none: {error}") from error
    genesis = Genesis(origin=origin, keys=public)
    if genesis.to_bytes() != content or len(set(public)) != len(public):
        raise TamperError("not a genesis", expected="keys, origin and v, and a line feed")
    return genesis


def segment_name(index: int) -> str:
    """A segment's file.

    Examples:
        >>> segment_name(1)
        'segments/000001.jsonl'
    """
    return f"{SEGMENT_DIRECTORY}/{index:06d}.jsonl"


def note_name(size: int) -> str:
    """The file of a checkpoint that is kept.

    Examples:
        >>> note_name(64)
        'checkpoints/64.note'
    """
    return f"{NOTE_DIRECTORY}/{size}.note"


def place_of(seq: int) -> str:
    """Where an entry stands, for a person.

    Examples:
        >>> place_of(4097)
        'segments/000001.jsonl line 2'
    """
    index, line = divmod(seq, SEGMENT_ENTRIES)
    return f"{segment_name(index)} line {line + 1}"


def is_kept(size: int, type: str, body: Mapping[str, Any]) -> bool:
    """Whether the checkpoint after an entry is kept: now and then, and wherever something was decided."""
    verdict: Any = body.get("verdict")
    refused = isinstance(verdict, Mapping) and verdict.get("action") != "accept"  # pyright: ignore[reportUnknownMemberType]
    return size % NOTE_EVERY == 0 or type in KEPT_AFTER or refused


def read_bounded(directory: Path, name: str, limit: int) -> bytes:
    """The bytes of a file of the ledger, one more than `limit` at most.

    Raises:
        TamperError: it is missing, not a regular file, or leads out of the ledger.
    """
    path = directory / name
    if what := refusal(directory, path):
        raise TamperError(what)
    try:
        with open_regular(path) as file:
            return file.read(limit + 1)
    except OSError as error:
        raise TamperError("missing, or it cannot be read") from error
