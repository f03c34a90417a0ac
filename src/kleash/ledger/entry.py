"""One entry of the ledger: its bytes, its hash, and a parser that takes nothing else."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kleash.errors import TamperError

VERSION = 2
"""Of the format that is written."""
READ_VERSIONS = (1, 2)
MAX_LINE = 1 << 20
"""Bytes of the longest line, LF not counted."""
MAX_DEPTH = 16
ZERO_LEAF = "0" * 64
"""`prev` of the first entry, and the head of an empty ledger."""

_FIELDS = {"body", "prev", "seq", "time", "type", "v"}
_TYPE = re.compile(r"[a-z][a-z_.]{0,39}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_LEAF = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the ledger, as read or as written."""

    seq: int
    """0-based place in the ledger; on line seq + 1."""
    type: str
    time: str
    """When it was written, by the writer's clock: RFC 3339, UTC. Evidence of nothing else."""
    body: dict[str, Any]
    prev: str
    """Hash of the entry before."""
    leaf: str
    """Hash of this entry."""
    v: int = VERSION
    """Version of the format."""

    @property
    def line(self) -> bytes:
        """Its bytes, without the line feed: there is one way to write it."""
        return encode_entry(
            seq=self.seq,
            type=self.type,
            time=self.time,
            body=self.body,
            prev=self.prev,
            v=self.v,
        )


def encode(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII; non-finite floats as "nan", "inf", "-inf".

    Examples:
        >>> encode({"b": [1, 0.5], "a": float("inf")})
        b'{"a":"inf","b":[1,0.5]}'
    """
    return json.dumps(
        _finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode("ascii")


def hash_line(line: bytes) -> str:
    """The leaf of a line: SHA-256 of a zero byte and the line without its LF, as in RFC 6962.

    Examples:
        >>> hash_line(b"{}")[:16]
        '28a3a18f6cd6406b'
    """
    return hashlib.sha256(b"\x00" + line).hexdigest()


def encode_entry(
    *, seq: int, type: str, time: str, body: Mapping[str, Any], prev: str, v: int = VERSION
) -> bytes:
    """The line of an entry, without its LF."""
    return encode({"v": v, "seq": seq, "type": type, "time": time, "prev": prev, "body": body})


def parse_entry(line: bytes) -> Entry:
    """The entry of one line, without its LF; refuses what `encode_entry` would not have written.

    Raises:
        TamperError: the line is not an entry.
    """
    data = parse_object(line)
    if set(data) != _FIELDS:
        raise TamperError("not a ledger entry", expected=f"the fields {', '.join(sorted(_FIELDS))}")
    fits = (
        type(data["v"]) is int
        and data["v"] in READ_VERSIONS
        and type(data["seq"]) is int
        and isinstance(data["body"], dict)
        and _matches(_TYPE, data["type"])
        and _matches(_TIME, data["time"])
        and _matches(_LEAF, data["prev"])
    )
    if not fits:
        raise TamperError("not a ledger entry: a field has another type or form than the format's")
    return Entry(
        seq=data["seq"],
        type=data["type"],
        time=data["time"],
        body=data["body"],
        prev=data["prev"],
        leaf=hash_line(line),
        v=data["v"],
    )


def parse_object(line: bytes) -> dict[str, Any]:
    """A JSON object in canonical form: one value, one encoding, and no two ways to read it.

    Raises:
        TamperError: the bytes are no object, too long, too deep, or not canonical (a repeated key,
            NaN, spaces, ...).
    """
    if len(line) > MAX_LINE:
        raise TamperError("the line is too long", expected=f"at most {MAX_LINE} bytes")
    try:
        data = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise TamperError("the line is not JSON", expected="a JSON object in ASCII") from error
    if not isinstance(data, dict):
        raise TamperError("the line is not a JSON object")
    if depth(data) > MAX_DEPTH:
        raise TamperError("the JSON is nested too deep", expected=f"at most {MAX_DEPTH} levels")
    if encode(data) != line:
        raise TamperError(
            "the JSON is not in canonical form",
            expected="sorted keys, none twice, no spaces, no NaN or Infinity",
        )
    return data


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def depth(value: Any) -> int:
    """Levels of nesting, counted level by level so that hostile depth costs no stack."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
