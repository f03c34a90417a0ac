"""Verifies a ledger and its signed checkpoint with nothing but Python's standard library, and none of kleash.

    python verify_ledger.py LEDGER CHECKPOINT VKEY

LEDGER is the directory with ledger.jsonl, CHECKPOINT the signed note, VKEY the public key in text, got from whoever it
belongs to and not from the run. Exit 0: each line follows the line before, and the root over the lines is the one that
the key signed. Exit 1: something else, said on stderr. A second writing of the rules, so that no one need trust the
first: RFC 8032 (Ed25519), RFC 6962 (the tree), C2SP signed-note and tlog-checkpoint.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
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
    name, id, encoded = vkey.strip().split("+", 2)
    key = decode_base64(encoded)
    digest = hashlib.sha256(name.encode() + b"\n" + key).digest()
    if key[:1] != b"\x01" or digest[:4].hex() != id:
        raise ValueError("not an Ed25519 public key")
    text, blank, below = note.decode("utf-8").rpartition("\n\n")
    if not blank or not below.endswith("\n"):
        raise ValueError("not a note")
    text += "\n"
    found = [line.split(" ") for line in below[:-1].split("\n")]
    blobs = [decode_base64(line[2]) for line in found if line[:2] == ["—", name] and line[2:]]
    mine = [blob[4:] for blob in blobs if blob[:4] == digest[:4]]
    if len(mine) != 1 or not verify_signature(key[1:], text.encode(), mine[0]):
        raise ValueError("the checkpoint is not signed by this key")
    origin, size, root = text.split("\n")[:3]
    if not size.isascii() or not size.isdigit() or str(int(size)) != size:
        raise ValueError("the size of the checkpoint is not a number in plain digits")
    return origin, int(size), decode_base64(root)


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


def read_leaves(ledger: Path, size: int) -> list[bytes]:
    """The hashes of the first lines, each checked to follow the one before."""
    lines = (ledger / "ledger.jsonl").read_bytes().split(b"\n")[:-1]
    if len(lines) < size:
        raise ValueError(f"the ledger has {len(lines)} entries, the checkpoint {size}: it was cut")
    leaves: list[bytes] = []
    for seq, line in enumerate(lines[:size]):
        entry = json.loads(line)
        prev = leaves[-1].hex() if leaves else "0" * 64
        if (entry["seq"], entry["prev"]) != (seq, prev):
            raise ValueError(f"line {seq + 1} does not follow the line before")
        leaves.append(hashlib.sha256(b"\x00" + line).digest())
    return leaves


def main(ledger: str, checkpoint: str, vkey: str) -> None:
    """Verify, and say so."""
    origin, size, root = open_checkpoint(Path(checkpoint).read_bytes(), vkey)
    if root_of(read_leaves(Path(ledger), size)) != root:
        raise ValueError("the entries are not those that were signed")
    print(f"{size} entries of {origin!a}, root {root.hex()}, signed")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} LEDGER CHECKPOINT VKEY")
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        sys.exit(f"not verified: {error}")
