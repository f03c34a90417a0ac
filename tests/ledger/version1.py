"""A writer of ledgers of version 1, which kleash reads and no longer writes: the chain and the head, and no more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from kleash.ledger import HEAD_FILE, LEDGER_FILE, Entry, Head
from kleash.ledger.entry import ZERO_LEAF, encode_entry, parse_entry

TIME = "2030-01-02T03:04:05.678901Z"


class Version1:
    """Stands in for `Ledger` where a test is of what version 1 was."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.head = Head(size=0, leaf=ZERO_LEAF)

    @classmethod
    def create(cls, directory: Path) -> Self:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / LEDGER_FILE).touch()
        (directory / HEAD_FILE).write_bytes(Head(size=0, leaf=ZERO_LEAF).to_bytes())
        return cls(directory)

    def append(self, type: str, body: Mapping[str, Any]) -> Entry:
        size, leaf = self.head.size, self.head.leaf
        line = encode_entry(seq=size, type=type, time=TIME, body=body, prev=leaf, v=1)
        with (self.directory / LEDGER_FILE).open("ab") as file:
            file.write(line + b"\n")
        entry = parse_entry(line)
        self.head = Head(size=size + 1, leaf=entry.leaf)
        (self.directory / HEAD_FILE).write_bytes(self.head.to_bytes())
        return entry

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
