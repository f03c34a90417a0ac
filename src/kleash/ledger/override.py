"""The body of a `plan.override` entry: what changes in a committed plan, why, and by whose second key."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from kleash.errors import InputError, KleashError
from kleash.ledger.body import read_body
from kleash.ledger.entry import Entry, encode
from kleash.ledger.keys import ED25519, PublicKey, from_base64, parse_vkey
from kleash.ledger.note import Signer

OVERRIDE = "plan.override"
"""Type of the entry."""
TAG = b"kleash/plan.override/v1\n"
"""What is signed begins with it, so that it is nothing else that a key may sign: no checkpoint, no other format."""
MAX_REASON = 2000
"""Characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One limit before and after."""

    old: Any
    new: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class OverrideEntry:
    """A change of a committed plan, signed by a key that is none of the ledger's."""

    origin: str
    """The ledger that it is for."""
    seq: int
    """Its own place there: how many entries it builds upon."""
    prev: str
    """Hash of the last of them."""
    step: int
    """Updates behind it; those after it are under the new limits."""
    until: int | None
    """The last update under them; None: all that follow."""
    changes: Mapping[str, Change]
    """By the names of the settings."""
    reason: str
    key: str
    """The second key, as a vkey."""
    signature: str = ""
    """By it, over all the others, in base64."""

    def to_json(self) -> dict[str, Any]:
        """The entry's body."""
        changes = {name: {"old": x.old, "new": x.new} for name, x in self.changes.items()}
        return {
            "origin": self.origin,
            "seq": self.seq,
            "prev": self.prev,
            "step": self.step,
            "until": self.until,
            "changes": changes,
            "reason": self.reason,
            "key": self.key,
            "signature": self.signature,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "OverrideEntry":
        """The override that `to_json` wrote.

        Raises:
            TamperError: it is not such a body: a field is missing, unknown or of another type.
        """
        return read_body(_ADAPTER, body, "an override")

    @property
    def message(self) -> bytes:
        """What the second key signs."""
        body = self.to_json()
        del body["signature"]
        return TAG + encode(body)

    @property
    def values(self) -> dict[str, Any]:
        """The new limits."""
        return {name: change.new for name, change in self.changes.items()}

    def holds_at(self, step: int) -> bool:
        """Whether an update is under it."""
        return self.step < step and (self.until is None or step <= self.until)

    def __str__(self) -> str:
        changes = ", ".join(
            f"{name} {_shown(x.old)} to {_shown(x.new)}" for name, x in self.changes.items()
        )
        end = "" if self.until is None else f" up to step {self.until}"
        return f"overridden after step {self.step}{end}: {changes}; {self.reason}; by {self.key}"


def sign_override(
    override: OverrideEntry, second: Signer, keys: Iterable[PublicKey]
) -> OverrideEntry:
    """The override with the second key's signature.

    Args:
        override: whose `key` and `signature` are not looked at.
        second: who vouches for it.
        keys: the ledger's.

    Raises:
        InputError: the second key is one of the ledger's, or not Ed25519; or something in it is not as it must be.
    """
    named = replace(override, key=second.public.vkey, signature="")
    if what := _unfit(named, second.public, keys):
        raise InputError(f"this override can't be signed: {what}")
    signature = base64.b64encode(second.sign(named.message)).decode()
    return replace(named, signature=signature)


def wrong_override(entry: Entry, origin: str, keys: Iterable[PublicKey]) -> str:
    """What is wrong with an override that a ledger has; empty where nothing is.

    Args:
        entry: of it.
        origin: the ledger's.
        keys: the ledger's.
    """
    try:
        override = OverrideEntry.from_json(entry.body)
        key = parse_vkey(override.key)
        signature = from_base64(override.signature)
    except (KleashError, ValueError) as error:
        return f"not an override that somebody signed: {error}"
    if (override.origin, override.seq, override.prev) != (origin, entry.seq, entry.prev):
        return "the override was signed for another place, or another ledger"
    if what := _unfit(override, key, keys):
        return what
    return "" if key.verifies(override.message, signature) else "its second signature does not hold"


def _unfit(override: OverrideEntry, key: PublicKey, keys: Iterable[PublicKey]) -> str:
    """What an override lacks, whoever signs it."""
    if key.kind != ED25519:
        return "the second key is not Ed25519"
    if any((key.kind, key.raw) == (other.kind, other.raw) for other in keys):
        return "its key is the ledger's own: it takes a second"
    if not override.reason.strip() or len(override.reason) > MAX_REASON:
        return f"it takes a reason, of at most {MAX_REASON} characters"
    if not override.changes or any(x.old == x.new for x in override.changes.values()):
        return "it changes nothing, or something to what it was"
    if override.until is not None and override.until <= override.step:
        return "it ends before it begins"
    return ""


def _shown(value: Any) -> str:
    return "none" if value is None else encode(value).decode()


_ADAPTER = TypeAdapter(OverrideEntry)
