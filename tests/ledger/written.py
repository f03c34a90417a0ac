"""A small signed ledger, and what a forger who lacks its key, or one who has it, makes of such a thing."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kleash.ledger import (
    Frontier,
    Ledger,
    SigningKey,
    encode,
    hash_line,
    note_name,
    sign_checkpoint,
)
from kleash.ledger.layout import is_kept

KEY = SigningKey.generate()
OTHER = SigningKey.generate()
SEGMENT = "segments/000000.jsonl"


def write(directory: Path, bodies: int = 4, key: SigningKey = KEY) -> Path:
    """A ledger of so many updates, closed; the third of them was refused."""
    with Ledger.create(directory, [key]) as ledger:
        for step in range(bodies):
            action = "reject" if step == 2 else "accept"
            ledger.append("update", {"step": step, "verdict": {"action": action}})
    return directory


def lines_of(ledger: Path) -> list[bytes]:
    return (ledger / SEGMENT).read_bytes().splitlines(keepends=True)


def write_lines(ledger: Path, lines: list[bytes]) -> None:
    (ledger / SEGMENT).write_bytes(b"".join(lines))


def files_of(ledger: Path) -> list[Path]:
    """All that is evidence: the lock is empty."""
    return sorted(path for path in ledger.rglob("*") if path.is_file() and path.stat().st_size)


def sign(ledger: Path, lines: list[bytes], key: SigningKey = KEY) -> bytes:
    """The head over some lines, as whoever has the key can sign it."""
    origin = json.loads((ledger / "genesis.json").read_bytes())["origin"]
    tree = Frontier.of(bytes.fromhex(hash_line(line.removesuffix(b"\n"))) for line in lines)
    return sign_checkpoint(origin, tree.size, tree.root, [key])


def forge(
    ledger: Path, edit: Callable[[list[dict[str, Any]]], object], key: SigningKey = KEY
) -> None:
    """Edits the entries, then computes chain, root and signature again: the deed of whoever holds the key."""
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines_of(ledger)]
    edit(entries)
    prev, lines = "0" * 64, list[bytes]()
    for seq, entry in enumerate(entries):
        line = encode({**entry, "seq": seq, "prev": prev})
        prev = hash_line(line)
        lines.append(line + b"\n")
    write_lines(ledger, lines)
    for note in (ledger / "checkpoints").iterdir():
        note.unlink()
    for size, each in enumerate(entries, start=1):
        if is_kept(size, each["type"], each["body"]):
            (ledger / note_name(size)).write_bytes(sign(ledger, lines[:size], key))
    (ledger / "head").write_bytes(sign(ledger, lines, key))


def entry(type: str, **body: Any) -> Mapping[str, Any]:
    """An entry for `forge` to place."""
    time = "2030-01-02T03:04:05.678901Z"
    return {"v": 2, "seq": 0, "type": type, "time": time, "prev": "", "body": body}
