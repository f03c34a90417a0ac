"""Signed notes and checkpoints: a ledger's size and root in a text that its key signs and anyone's tool can read.

    <origin>
    <size>
    <root in base64>

    — <key name> <base64(key id || signature)>

Source: C2SP signed-note and tlog-checkpoint; the signatures of ML-DSA-44 are those of tlog-cosignature. What a note
says counts only once a signature by a key that the reader trusts has been checked: `open_note` and `open_checkpoint`
give it out no sooner.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kleash.errors import InputError, TamperError
from kleash.ledger.keys import (
    ED25519,
    MAX_NAME,
    SIGNATURE_SIZES,
    PublicKey,
    from_base64,
    is_name,
    is_plain,
)
from kleash.ledger.merkle import EMPTY_ROOT, HASH_SIZE

MAX_NOTE = 1 << 17
"""Bytes of the longest note that is read: room for far more than 16 signatures of ML-DSA-44."""
MAX_SIZE = (1 << 63) - 1
"""The largest tree."""
MAX_TIME = (1 << 63) - 1
"""The latest time of a signature by ML-DSA-44, in seconds since 1970."""

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_DASH = "— "  # what a signature line begins with: an em dash and a space


class Signer(Protocol):
    """Who signs: a key at hand, or a process that keeps one."""

    @property
    def public(self) -> PublicKey:
        """What its signatures are checked with."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The bare signature over `message`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Which ledger, how many entries, and the root of the tree over them: with it goes every entry up to there."""

    origin: str
    """Which ledger, of all that a key may sign."""
    size: int
    """Entries."""
    root: bytes
    """Root over their leaf hashes."""

    def to_text(self) -> str:
        r"""The text that is signed.

        Examples:
            >>> Checkpoint(origin="kleash/demo", size=0, root=EMPTY_ROOT).to_text()
            'kleash/demo\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n'
        """
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def sign_checkpoint(origin: str, size: int, root: bytes, signers: Iterable[Signer]) -> bytes:
    """The signed note of a checkpoint, one signature by each signer.

    Raises:
        InputError: it is not a checkpoint that a reader would take, or there is no signer.
    """
    checkpoint = Checkpoint(origin=origin, size=size, root=root)
    if not is_plain(origin) or len(origin.encode()) > MAX_NAME:
        raise InputError(
            "the origin cannot stand in a checkpoint",
            expected=f"one line of 1 to {MAX_NAME} bytes",
            got=ascii(origin[:80]),
        )
    try:
        parse_checkpoint(checkpoint.to_text())
    except TamperError as error:
        raise InputError(f"this cannot be signed: {error}") from error
    return sign_note(checkpoint.to_text(), signers)


def open_checkpoint(
    note: bytes, keys: Iterable[PublicKey], *, origin: str | None = None
) -> Checkpoint:
    """The checkpoint in a note that one of `keys` signed.

    To ask for two signatures, open it twice, each time with the one key. Extension lines, which ML-DSA-44 does not
    sign, are left out.

    Raises:
        TamperError: no checkpoint, not signed by one of `keys`, or not of `origin`, where that is given.
    """
    checkpoint = parse_checkpoint(open_note(note, keys))
    if origin is not None and checkpoint.origin != origin:
        raise TamperError(
            "the checkpoint is of another ledger",
            expected=ascii(origin),
            got=ascii(checkpoint.origin[:MAX_NAME]),
        )
    return checkpoint


def sign_note(text: str, signers: Iterable[Signer]) -> bytes:
    """A signed note: the text, a blank line and a signature by each signer.

    Raises:
        InputError: the text does not end with a line feed, holds a control character, or is too long; ML-DSA-44 is to
            sign what is no checkpoint; or there is no signer, or two by one name and id.
    """
    if not text.endswith("\n") or not is_plain(text.replace("\n", "")):
        raise InputError("not the text of a note", expected="lines without control characters")
    lines: list[str] = []
    seen: set[tuple[str, bytes]] = set()
    for signer in signers:
        key = signer.public
        if (key.name, key.id) in seen:
            raise InputError(f"the key {key.name!a} is to sign the note twice")
        seen.add((key.name, key.id))
        try:
            # ML-DSA-44: time 0, "no statement that there is no larger tree"; a clock is nobody's evidence here.
            time = b"" if key.kind == ED25519 else bytes(8)
            signature = time + signer.sign(_message(key, text, time))
        except TamperError as error:
            raise InputError(f"ML-DSA-44 signs checkpoints alone: {error}") from error
        lines.append(f"{_DASH}{key.name} {base64.b64encode(key.id + signature).decode()}\n")
    if not lines:
        raise InputError("a note needs a signature", do="give a key")
    note = f"{text}\n{''.join(lines)}".encode()
    if len(note) > MAX_NOTE:
        raise InputError("the note is too long", expected=f"at most {MAX_NOTE} bytes")
    return note


def open_note(note: bytes, keys: Iterable[PublicKey]) -> str:
    """The text of a note that one of `keys` signed.

    A signature by a key not among `keys` is left alone: others may sign too. Each by one of them must hold.

    Raises:
        TamperError: not a note; no signature by one of `keys`; or one that does not hold, or that is there twice.
        InputError: two of `keys` have one name and id, so that a signature's maker is not known.
    """
    known: dict[tuple[str, bytes], PublicKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.id), key) != key:
            raise InputError(f"two keys are called {key.name!a} and have one id")
    text, signatures = _split_note(note)
    held: set[PublicKey] = set()
    for name, blob in signatures:
        key = known.get((name, blob[:4]))
        if key is None:
            continue
        if key in held:
            raise TamperError(f"two signatures by {name!a}: a key signs a note once")
        if not _holds(key, text, blob[4:]):
            raise TamperError(
                f"the signature by {name!a} does not hold: the note is not what was signed"
            )
        held.add(key)
    if not held:
        raise TamperError(
            "no signature by a known key",
            expected=_listed(known),
            got=_listed((name, blob[:4]) for name, blob in signatures),
        )
    return text


def note_text(note: bytes) -> str:
    """The text of a note whose signatures nobody has checked: not to be believed.

    Raises:
        TamperError: it is no note.
    """
    return _split_note(note)[0]


def parse_checkpoint(text: str) -> Checkpoint:
    r"""The checkpoint in the text of a note, whose signature the caller has checked or does not rest on.

    Raises:
        TamperError: it is none.

    Examples:
        >>> parse_checkpoint("kleash/demo\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n").size
        0
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() or not all(lines):
        raise TamperError(
            "not a checkpoint", expected="lines with origin, size and root, and no empty one"
        )
    origin, size, root = lines[:3]
    if not _SIZE.fullmatch(size) or int(size) > MAX_SIZE:
        raise TamperError(
            "not a checkpoint: its size is not a number in plain digits", got=ascii(size[:40])
        )
    try:
        digest = from_base64(root)
    except ValueError as error:
        raise TamperError("not a checkpoint: its root is not in canonical base64") from error
    if len(digest) != HASH_SIZE:
        raise TamperError(
            "not a checkpoint: its root is no hash",
            expected=f"{HASH_SIZE} bytes",
            got=f"{len(digest)} bytes",
        )
    if size == "0" and digest != EMPTY_ROOT:
        raise TamperError("not a checkpoint: an empty ledger has another root")
    return Checkpoint(origin=origin, size=int(size), root=digest)


def _split_note(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The text, and each signature's key name and bytes, checked for form alone."""
    if len(note) > MAX_NOTE:
        raise TamperError("not a note: it is too long", expected=f"at most {MAX_NOTE} bytes")
    try:
        whole = note.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TamperError("not a note: it is not UTF-8") from error
    blank = whole.rfind("\n\n")
    text, below = whole[: blank + 1], whole[blank + 2 :]
    if blank < 0 or not below.endswith("\n"):
        raise TamperError("not a note", expected="a text, a blank line and lines with signatures")
    if not is_plain(whole.replace("\n", "")):
        raise TamperError("not a note: it holds a control character")
    return text, [_parse_signature(line) for line in below[:-1].split("\n")]


def _parse_signature(line: str) -> tuple[str, bytes]:
    name, space, blob = line.removeprefix(_DASH).partition(" ")
    try:
        signature = from_base64(blob)
    except ValueError:
        signature = b""
    if not line.startswith(_DASH) or not is_name(name) or not space or len(signature) < 5:
        raise TamperError(
            "not a note: a signature line has another form",
            expected="— name base64",
            got=ascii(line[:80]),
        )
    return name, signature


def _holds(key: PublicKey, text: str, signature: bytes) -> bool:
    length = 0 if key.kind == ED25519 else 8
    time, bare = signature[:length], signature[length:]
    if len(bare) != SIGNATURE_SIZES[key.kind] or int.from_bytes(time) > MAX_TIME:
        return False
    return key.verifies(_message(key, text, time), bare)


def _message(key: PublicKey, text: str, time: bytes) -> bytes:
    """What a key signs: Ed25519 the text, ML-DSA-44 the `cosigned_message` of tlog-cosignature, as `subtree/v1`."""
    if key.kind == ED25519:
        return text.encode()
    checkpoint = parse_checkpoint(text)
    name, origin = key.name.encode(), checkpoint.origin.encode()
    if len(origin) > MAX_NAME:
        raise TamperError("the origin is too long for ML-DSA-44", expected=f"{MAX_NAME} bytes")
    return b"".join(
        [
            b"subtree/v1\n\x00",
            bytes([len(name)]) + name,
            time,
            bytes([len(origin)]) + origin,
            bytes(8),  # start: the first entry
            checkpoint.size.to_bytes(8),
            checkpoint.root,
        ]
    )


def _listed(keys: Iterable[tuple[str, bytes]]) -> str:
    return ", ".join(f"{name[:80]!a} {id.hex()}" for name, id in list(keys)[:4])
