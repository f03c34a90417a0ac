"""DSSE: a payload in an envelope, signed together with the type that says how to read it.

    PAE(type, payload) = "DSSEv1 " || len(type) || " " || type || " " || len(payload) || " " || payload

Source: DSSE v1 (secure-systems-lab/dsse, protocol.md and envelope.md). The signature is over the payload's bytes as
they are stored: nothing is written again to be verified. The form is fixed in docs/attestation-format.md.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kleash.errors import InputError, TamperError
from kleash.ledger.entry import MAX_DEPTH, depth, encode
from kleash.ledger.keys import ED25519, PublicKey, from_base64, is_vkey, parse_vkey
from kleash.ledger.note import Signer

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""Of an in-toto statement: the one type that is read here."""
MAX_ENVELOPE = 1 << 24
"""Bytes of the longest envelope that is read: the files of a model are listed in it, and not their content."""
MAX_SIGNATURES = 16

_FIELDS = ("payload", "payloadType", "signatures")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What was in an envelope, and who signed it."""

    payload: bytes
    """The bytes that were signed."""
    keys: tuple[PublicKey, ...]
    """By which it is signed, of those that were asked for."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed: type and payload, each behind its length, so that no two pairs are the same bytes.

    Examples:
        >>> pae("http://example.com/HelloWorld", b"hello world")
        b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(
    payload: bytes, signers: Iterable[Signer], payload_type: str = PAYLOAD_TYPE
) -> bytes:
    """The envelope of a payload, one signature by each signer; the `keyid` is the signer's vkey.

    Raises:
        InputError: there is no signer, or too many, one of them is there twice or is not Ed25519, or it is too long.
    """
    signers = tuple(signers)
    keys = _ed25519(signer.public for signer in signers)
    if not 1 <= len(set(keys)) == len(keys) <= MAX_SIGNATURES:
        raise InputError(
            "an envelope is signed by other keys than these",
            expected=f"1 to {MAX_SIGNATURES} keys, none twice",
            got=f"{len(keys)}",
        )
    message = pae(payload_type, payload)
    signatures = [
        {
            "keyid": signer.public.vkey,
            "sig": base64.b64encode(signer.sign(message)).decode(),
        }
        for signer in signers
    ]
    written = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": signatures,
    }
    envelope = encode(written) + b"\n"
    if len(envelope) > MAX_ENVELOPE:
        raise InputError(
            "the envelope is too long to be read again",
            expected=f"at most {MAX_ENVELOPE} bytes",
            got=f"{len(envelope)} bytes",
        )
    return envelope


def open_envelope(envelope: bytes, keys: Iterable[PublicKey]) -> Opened:
    """The payload of an envelope that one of `keys` signed, if it is of the type read here.

    A `keyid` is a hint that nobody signed: each signature is tried with each key. One by none of `keys` is left alone,
    as others may sign too; but one that names one of `keys`, and that none of them made, is tampering.

    Raises:
        TamperError: not an envelope; no signature by one of `keys`; one that does not hold, or that is there twice;
            or a payload of another type.
        InputError: one of `keys` is not Ed25519.
    """
    known = _ed25519(keys)
    payload_type, payload, signatures = _split(envelope)
    message = pae(payload_type, payload)
    held: list[PublicKey] = []
    for keyid, signature in signatures:
        maker = next((key for key in known if key.verifies(message, signature)), None)
        if maker in held:
            raise TamperError("two signatures by one key: a key signs an envelope once")
        if maker is not None:
            held.append(maker)
        elif keyid in {key.vkey for key in known}:
            raise TamperError(
                "a signature does not hold: the envelope is not what was signed", got=ascii(keyid)
            )
    if not held:
        raise TamperError(
            "no signature by a known key",
            expected=", ".join(key.vkey for key in known[:4]),
            got=", ".join(ascii(keyid[:120]) for keyid, _ in signatures[:4]),
        )
    if payload_type != PAYLOAD_TYPE:
        raise TamperError(
            "the envelope holds something else",
            expected=PAYLOAD_TYPE,
            got=ascii(payload_type[:80]),
        )
    return Opened(payload=payload, keys=tuple(held))


def carried_keys(envelope: bytes) -> tuple[PublicKey, ...]:
    """The Ed25519 keys that an envelope's own `keyid`s give: its word for whose it is, and anybody can make a key.

    Raises:
        TamperError: not an envelope, or one of these keys was damaged.
        InputError: it carries none.
    """
    found: list[PublicKey] = []
    for keyid, _ in _split(envelope)[2]:
        if not is_vkey(keyid):
            continue
        try:
            key = parse_vkey(keyid)
        except InputError as error:
            raise TamperError(f"a keyid is no key: {error}") from error
        found += [key] if key.kind == ED25519 and key not in found else []
    if not found:
        raise InputError(
            "the envelope does not say which key signed it", do="give the key you trust: --key PUB"
        )
    return tuple(found)


def looks_like_envelope(start: bytes) -> bool:
    """Whether a file that begins so may be an envelope, whole or damaged.

    Examples:
        >>> looks_like_envelope(b'{"payload": "e30="'), looks_like_envelope(b'{"body":{}}')
        (True, False)
    """
    compact = b"".join(start[:256].split())
    return compact.startswith(tuple(f'{{"{name}":'.encode() for name in _FIELDS))


def parse_strict(data: bytes) -> dict[str, Any]:
    """A JSON object that can be read in one way only: no key twice, no NaN, in UTF-8, not nested too deep.

    Raises:
        TamperError: it is none.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise TamperError(
            "not a JSON object that can be read in one way", got=str(error)[:80]
        ) from error
    if not isinstance(value, dict):
        raise TamperError("not a JSON object", got=type(value).__name__)
    if depth(value) > MAX_DEPTH:
        raise TamperError("the JSON is nested too deep", expected=f"at most {MAX_DEPTH} levels")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _split(envelope: bytes) -> tuple[str, bytes, list[tuple[str, bytes]]]:
    """Type, payload, and each signature with its hint, checked for form alone. Unknown fields are left alone."""
    if len(envelope) > MAX_ENVELOPE:
        raise TamperError(
            "not an envelope: it is too long", expected=f"at most {MAX_ENVELOPE} bytes"
        )
    try:
        data = parse_strict(envelope)
        signatures = data["signatures"]
        if not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
            raise ValueError(f"signatures: not a list of 1 to {MAX_SIGNATURES}")
        made = [(_keyid(each), from_base64(each["sig"])) for each in signatures]
        payload_type = data["payloadType"]
        payload_type.encode()  # a lone surrogate has no bytes
        return payload_type, from_base64(data["payload"]), made
    except TamperError as error:
        raise TamperError(f"not an envelope: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise TamperError(
            "not an envelope",
            expected="payload, payloadType and signatures, bytes in standard base64",
            got=ascii(f"{type(error).__name__}: {error}"[:80]),
        ) from error


def _keyid(signature: Any) -> str:
    """Not set is as good as empty."""
    keyid = signature.get("keyid", "")
    if not isinstance(keyid, str):
        raise TypeError("keyid: not text")
    return keyid


def _ed25519(keys: Iterable[PublicKey]) -> tuple[PublicKey, ...]:
    known = tuple(keys)
    if any(key.kind != ED25519 for key in known):
        raise InputError(
            "attestations are signed with Ed25519, which is what others can verify",
            expected="an Ed25519 key",
            got="an ML-DSA-44 key",
        )
    return known
