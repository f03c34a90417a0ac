r"""The keys that sign a ledger's checkpoints: whose word it is.

A public key is written as a *vkey*, `<name>+<key id>+<base64(kind || key)>`, with

    key id = SHA-256(name || "\n" || kind || key)[:4]

Source: C2SP signed-note and tlog-cosignature. The id only says which key to try; what holds is the signature.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kleash.errors import InputError

ED25519 = 0x01
"""Kind of a key whose signature is Ed25519 over the text of a note."""
ML_DSA_44 = 0x06
"""Kind of a key whose signature is ML-DSA-44 over a checkpoint: it holds against a quantum computer too."""
RAW_SIZES = {ED25519: 32, ML_DSA_44: 1312}
"""Bytes of a public key, by its kind."""
SIGNATURE_SIZES = {ED25519: 64, ML_DSA_44: 2420}
MAX_NAME = 255
"""Bytes of the longest name, in UTF-8: its length is one byte of what ML-DSA-44 signs."""

_VKEY = re.compile(r"([^+\s]+)\+([0-9a-f]{8})\+([0-9A-Za-z+/]+={0,2})")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicKey:
    """What signatures are checked with, under the name that notes give it.

    Raises:
        InputError: the name cannot stand in a note, or the key is of no kind known here.
    """

    name: str
    raw: bytes
    """The key itself, as RFC 8032 or FIPS 204 encodes it."""
    kind: int = ED25519

    def __post_init__(self) -> None:
        if not is_name(self.name) or len(self.name.encode()) > MAX_NAME:
            raise InputError(
                "the name of a key cannot stand in a note",
                expected=f"1 to {MAX_NAME} bytes without spaces, control characters and +",
                got=ascii(self.name[:80]),
            )
        if self.kind not in RAW_SIZES:
            raise InputError(
                f"keys of kind 0x{self.kind:02x} are not known here",
                expected="0x01 (Ed25519) or 0x06 (ML-DSA-44)",
            )
        if len(self.raw) != RAW_SIZES[self.kind]:
            raise InputError(
                "the public key has another length than its kind has",
                expected=f"{RAW_SIZES[self.kind]} bytes",
                got=f"{len(self.raw)} bytes",
            )

    @property
    def id(self) -> bytes:
        """Four bytes that say which key made a signature."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.raw).digest()[
            :4
        ]

    @property
    def vkey(self) -> str:
        """The key in one line of text: what a verifier is given.

        Examples:
            >>> PublicKey(name="example", raw=bytes(32)).vkey
            'example+22873f1b+AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
        """
        raw = base64.b64encode(bytes([self.kind]) + self.raw).decode()
        return f"{self.name}+{self.id.hex()}+{raw}"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether this key signed `message`.

        Raises:
            InputError: it is an ML-DSA-44 key, and the installed `cryptography` has none.
        """
        try:
            if self.kind == ED25519:
                Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
            else:
                key: Any = _ml_dsa("MLDSA44PublicKey", "from_public_bytes", self.raw)
                key.verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key; `generate` makes one, and `open_signing_key` keeps it in a file."""

    public: PublicKey
    private: Any = field(repr=False, compare=False)

    @classmethod
    def generate(cls, kind: int = ED25519, name: str = "") -> "SigningKey":
        """A new key, from the system's randomness.

        Raises:
            InputError: the installed `cryptography` has no such keys.
        """
        if kind == ED25519:
            return cls.of(Ed25519PrivateKey.generate(), name)
        return cls.of(_ml_dsa("MLDSA44PrivateKey", "generate"), name)

    @classmethod
    def of(cls, private: Any, name: str = "") -> "SigningKey":
        """The signing key of a private key of `cryptography`.

        Without a `name` it is called `kleash-` and the start of SHA-256(kind || key): a name that needs no one to
        assign it, that no two keys share, and that the key file need not keep.

        Raises:
            InputError: it is neither an Ed25519 nor an ML-DSA-44 key.
        """
        kind = ED25519 if isinstance(private, Ed25519PrivateKey) else ML_DSA_44
        if kind == ML_DSA_44 and type(private).__name__ != "MLDSA44PrivateKey":
            raise InputError(
                "the private key is of another kind",
                expected="Ed25519 or ML-DSA-44",
                got=type(private).__name__.removesuffix("PrivateKey"),
            )
        raw: bytes = private.public_key().public_bytes_raw()
        own = f"kleash-{hashlib.sha256(bytes([kind]) + raw).hexdigest()[:16]}"
        return cls(PublicKey(name=name or own, raw=raw, kind=kind), private)

    def sign(self, message: bytes) -> bytes:
        """The bare signature over `message`."""
        return self.private.sign(message)


def refuse_private(text: str) -> None:
    """Raises InputError where a private key was given for a public one; nothing of it is shown."""
    if "PRIVATE KEY" in text:
        raise InputError(
            "this is a private key, where its public half belongs",
            expected="a vkey: name+id+base64, or a file with it",
            do="give the vkey that kleash ledger key prints (--file: of another key); keep the private one",
        )


def parse_vkey(text: str) -> PublicKey:
    """The public key of a vkey.

    Raises:
        InputError: it is none, it was damaged, or it is of a kind not known here.

    Examples:
        >>> parse_vkey("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").name
        'PeterNeumann'
    """
    refuse_private(text)
    found = _VKEY.fullmatch(text)
    try:
        raw = from_base64(found[3]) if found else b""
    except ValueError:
        raw = b""
    if not found or not raw:
        raise InputError(
            "not a public key",
            expected="a vkey: name+id+base64, as `kleash-...+1234abcd+A...`",
            got=ascii(text[:80]),
        )
    key = PublicKey(name=found[1], raw=raw[1:], kind=raw[0])
    if key.id.hex() != found[2]:
        raise InputError(
            "the public key was damaged: its id is that of another key",
            expected=key.id.hex(),
            got=found[2],
            do="ask for it again",
        )
    return key


def is_vkey(text: str) -> bool:
    """Whether a text has the form of a vkey, damaged or not."""
    return _VKEY.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a key may be called so in a note: not empty, and without spaces, control characters and `+`."""
    return is_plain(text) and not any(char.isspace() or char == "+" for char in text)


def is_plain(line: str) -> bool:
    """Whether a line can stand in a note: not empty, in UTF-8, without control characters."""
    return bool(line) and not any(char < " " or "\ud800" <= char <= "\udfff" for char in line)


def from_base64(text: str) -> bytes:
    r"""The bytes of a text in base64, in the only way that RFC 4648 §4 writes them.

    A lenient decoder reads several texts as the same bytes, and a flipped bit could go unseen.

    Raises:
        ValueError: it is not base64, or another text stands for the same bytes.

    Examples:
        >>> from_base64("AAE=")
        b'\x00\x01'
        >>> from_base64("AAF=")
        Traceback (most recent call last):
        ValueError: not canonical base64
    """
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data


def _ml_dsa(name: str, maker: str, *arguments: bytes) -> Any:
    """A key of ML-DSA-44, which older versions of `cryptography`, or of the OpenSSL below it, have not."""
    try:
        module = import_module("cryptography.hazmat.primitives.asymmetric.mldsa")
        return getattr(getattr(module, name), maker)(*arguments)
    except (ImportError, AttributeError, UnsupportedAlgorithm) as error:
        raise InputError(
            "the installed `cryptography` has no ML-DSA-44",
            do="install a newer one, or use Ed25519 keys alone",
        ) from error
