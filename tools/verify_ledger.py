"""Verifies a signed ledger with nothing but Python's standard library, and none of kleash.

    python verify_ledger.py LEDGER [VKEY]
    python verify_ledger.py --attestation FILE VKEY [policy=DIR] [reference=DIR] [base=DIR]

LEDGER is the directory with genesis.json, VKEY the public key in text, got from whoever it belongs to and not from the
run; without it the ledger's own word is taken for whose it is. Exit 0: each entry follows the one before, every
checkpoint, the head among them, is signed by the ledger's key and has the root over as many entries, and each override
of the plan is signed by another key, for its place, with a reason. Exit 1: something else, said on stderr. A second
writing of the rules, so that no one need trust the first: RFC 8032 (Ed25519), RFC 6962 (the tree), C2SP signed-note and
tlog-checkpoint. What else the entries say is left to `kleash verify`.

Of an attestation: it is signed by VKEY (DSSE v1), is an in-toto statement of a comparison, its digests are those of the
files that it lists, its verdict follows from its limits, and the files of each DIR are the listed ones and no others.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
SEGMENT = 4096
"""Entries of a full segment."""
KINDS = (
    b"application/vnd.in-toto+json",
    "https://in-toto.io/Statement/v1",
    "urn:kleash:policy-drift:v1",
)
"""Types of an attestation's payload, statement and predicate."""
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)

Point = tuple[int, int, int, int]  # X, Y, Z, T with x = X/Z, y = Y/Z, x·y = T/Z


def verify_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """Ed25519, RFC 8032 §5.1.7: whether [S]B = R + [k]A."""
    if len(public) != 32 or len(signature) != 64:
        return False
    a, r = decode_point(public), decode_point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    left, right = multiply(s, BASE), add(r, multiply(k, a))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (
        left[1] * right[2] - right[1] * left[2]
    ) % P == 0


def decode_point(data: bytes) -> Point | None:
    """RFC 8032 §5.1.3: y and the sign of x."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def add(p: Point, q: Point) -> Point:
    """The sum of two points, in extended coordinates: RFC 8032 §5.1.4."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def multiply(scalar: int, point: Point) -> Point:
    """[scalar]point; nothing here is secret, so its time may tell."""
    total: Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


BASE = decode_point((4 * pow(5, -1, P) % P).to_bytes(32, "little")) or (0, 1, 1, 0)


def open_checkpoint(note: bytes, vkey: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint that the key signed."""
    name, id, key = read_key(vkey)
    text, blank, below = note.decode("utf-8").rpartition("\n\n")
    if not blank or not below.endswith("\n"):
        raise ValueError("not a note")
    text += "\n"
    found = [line.split(" ") for line in below[:-1].split("\n")]
    blobs = [decode_base64(line[2]) for line in found if line[:2] == ["—", name] and line[2:]]
    mine = [blob[4:] for blob in blobs if blob[:4] == id]
    if len(mine) != 1 or not verify_signature(key, text.encode(), mine[0]):
        raise ValueError("the checkpoint is not signed by this key")
    origin, size, root = text.split("\n")[:3]
    if not size.isascii() or not size.isdigit() or str(int(size)) != size:
        raise ValueError("the size of the checkpoint is not a number in plain digits")
    return origin, int(size), decode_base64(root)


def read_key(vkey: str) -> tuple[str, bytes, bytes]:
    """Name, id and bytes of an Ed25519 public key."""
    name, id, encoded = vkey.strip().split("+", 2)
    key = decode_base64(encoded)
    digest = hashlib.sha256(name.encode() + b"\n" + key).digest()
    if key[:1] != b"\x01" or digest[:4].hex() != id:
        raise ValueError("not an Ed25519 public key")
    return name, digest[:4], key[1:]


def check_override(entry: dict[str, Any], origin: str, keys: list[str]) -> str:
    """That an override is signed by a key other than the ledger's, for this place, with a reason; by whose key."""
    body = dict(entry["body"])
    signature = decode_base64(body.pop("signature"))
    written = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    key = read_key(body["key"])[2]
    place = (body["origin"], body["seq"], body["prev"])
    if place != (origin, entry["seq"], entry["prev"]):
        raise ValueError(f"the override in entry {entry['seq']} is for another place")
    if key in [read_key(each)[2] for each in keys] or not body["reason"].strip():
        raise ValueError(f"the override in entry {entry['seq']} has no second key, or no reason")
    if not verify_signature(key, b"kleash/plan.override/v1\n" + written.encode(), signature):
        raise ValueError(f"the override in entry {entry['seq']} is not signed by its key")
    return f"entry {entry['seq']} overrides the plan, by {body['key']}: {body['reason']!a}"


def decode_base64(text: str) -> bytes:
    """Base64 in its one canonical form."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data


def root_of(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, over hashes of leaves."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root_of(leaves[:half]) + root_of(leaves[half:])).digest()


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, none of whose keys is there twice."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def open_envelope(envelope: bytes, vkey: str) -> dict[str, Any]:
    """The in-toto statement that the key signed: DSSE v1, over the bytes as stored."""
    key = read_key(vkey)[2]
    data = json.loads(envelope.decode("utf-8"), object_pairs_hook=once)
    kind, payload = data["payloadType"].encode(), decode_base64(data["payload"])
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signatures = [decode_base64(each["sig"]) for each in data["signatures"]]
    if sum(verify_signature(key, message, each) for each in signatures) != 1:
        raise ValueError("the envelope is not signed by this key")
    statement = json.loads(payload.decode("utf-8"), object_pairs_hook=once)
    kinds = (kind, statement["_type"], statement["predicateType"])
    if kinds != KINDS:
        raise ValueError("the envelope holds something else than the attestation of a comparison")
    return statement


def files_of(directory: Path) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of each file of a model, by path."""
    paths = (
        [directory]
        if directory.is_file()
        else [p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir()]
    )
    root = directory.parent if directory.is_file() else directory
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    return [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    ]


def verify_attestation(path: str, vkey: str, *models: str) -> None:
    """Verify an attestation, and the files of the models that are at hand, and say so."""
    statement = open_envelope(Path(path).read_bytes(), vkey)
    predicate = statement["predicate"]
    listed = {role: each for role, each in predicate["files"].items() if each is not None}
    for role, subject in zip(("policy", "reference", "base"), statement["subject"], strict=False):
        files = sorted(listed[role], key=lambda file: file["path"])
        written = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
        if subject["digest"]["sha256"] != hashlib.sha256(written).hexdigest():
            raise ValueError(f"the digest of the {role} is not that of its files")
    held = [
        isinstance(x["high"], int | float) and x["high"] <= x["limit"] for x in predicate["limits"]
    ]
    if predicate["verdict"]["passed"] is not (all(held) if held else None):
        raise ValueError("the verdict does not follow from the limits")
    for role, _, directory in (each.partition("=") for each in models):
        if files_of(Path(directory)) != sorted(listed[role], key=lambda file: file["path"]):
            raise ValueError(f"the files of the {role} are not the ones that are listed")
    names = " and ".join(ascii(each["name"]) for each in statement["subject"])
    print(f"attested of {names}: passed {predicate['verdict']['passed']}, signed by {vkey}")


def read_genesis(ledger: Path) -> tuple[str, list[str]]:
    """The ledger's origin and the keys that sign it."""
    content = (ledger / "genesis.json").read_bytes()
    genesis = json.loads(content)
    written = json.dumps(genesis, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if written.encode() + b"\n" != content or set(genesis) != {"keys", "origin", "v"}:
        raise ValueError("genesis.json is not in canonical form")
    if type(genesis["v"]) is not int or genesis["v"] != 2 or not genesis["keys"]:
        raise ValueError("genesis.json is of another version, or names no key")
    return genesis["origin"], genesis["keys"]


def read_checkpoints(ledger: Path, origin: str, keys: list[str]) -> tuple[int, dict[int, bytes]]:
    """The size that the head signs, and the root at each size that some checkpoint signs."""
    roots: dict[int, bytes] = {}
    head = 0
    kept = [path for path in (ledger / "checkpoints").iterdir() if not path.name.endswith(".tmp")]
    for path in [*kept, ledger / "head"]:
        for key in keys:
            named, size, root = open_checkpoint(path.read_bytes(), key)
            if named != origin or path.name not in (f"{size}.note", "head"):
                raise ValueError(f"{path.name} is a checkpoint of another ledger or size")
            if roots.setdefault(size, root) != root:
                raise ValueError(f"two roots are signed for {size} entries")
            head = size
    return head, roots


def read_leaves(ledger: Path) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The hashes of the entries, each checked to follow the one before; and those that override the plan."""
    leaves: list[bytes] = []
    overrides: list[dict[str, Any]] = []
    for path in sorted((ledger / "segments").iterdir()):
        index, full = divmod(len(leaves), SEGMENT)
        if full or path.name != f"{index:06d}.jsonl":
            raise ValueError(f"{path.name} does not follow the segment before")
        lines = path.read_bytes().split(b"\n")[:-1]  # beyond the last LF: what a crash left
        if len(lines) > SEGMENT:
            raise ValueError(f"{path.name} is longer than a full segment")
        for line in lines:
            entry = json.loads(line)
            prev = leaves[-1].hex() if leaves else "0" * 64
            if (entry["v"], entry["seq"], entry["prev"]) != (2, len(leaves), prev):
                raise ValueError(f"entry {len(leaves)} does not follow the one before")
            leaves.append(hashlib.sha256(b"\x00" + line).digest())
            overrides += [entry] if entry["type"] == "plan.override" else []
    return leaves, overrides


def main(ledger: str, vkey: str = "") -> None:
    """Verify, and say so."""
    origin, keys = read_genesis(Path(ledger))
    if vkey and vkey.strip() not in keys:
        raise ValueError("the ledger is signed by another key")
    size, roots = read_checkpoints(Path(ledger), origin, keys)
    leaves, overrides = read_leaves(Path(ledger))
    if not max(roots) <= len(leaves) <= size + 1:
        raise ValueError(
            f"{len(leaves)} entries, {size} in the head, {max(roots)} signed: it was cut"
        )
    for each, root in sorted(roots.items()):
        if root_of(leaves[:each]) != root:
            raise ValueError(f"the first {each} entries are not those that were signed")
    said = [check_override(entry, origin, keys) for entry in overrides]
    print(f"{size} entries of {origin!a}, root {roots[size].hex()}, signed by {', '.join(keys)}")
    for each in said:
        print(each)


if __name__ == "__main__":
    given = sys.argv[1:]
    of_models = given[:1] == ["--attestation"]
    if len(given) < 3 if of_models else len(given) not in (1, 2):
        sys.exit(f"usage: {sys.argv[0]} LEDGER [VKEY] | --attestation FILE VKEY [policy=DIR ...]")
    try:
        verify_attestation(*given[1:]) if of_models else main(*given)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        sys.exit(f"not verified: {error}")
