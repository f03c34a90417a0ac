"""The writer: durable when `append` returns, alone, and whole whatever interrupts it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kleash.errors import InputError, ResourceError
from kleash.ledger import HEAD_FILE, LEDGER_FILE, Ledger, read, verify_chain
from kleash.ledger.entry import MAX_LINE

OUT_OF_SPACE = """
import resource, sys
from pathlib import Path
from kleash.errors import ResourceError
from kleash.ledger import Ledger

with Ledger.create(Path(sys.argv[1])) as ledger:
    ledger.append("update", {"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))  # room for a part of the next line
    for _ in range(2):
        try:
            ledger.append("update", {"step": 2, "pad": "x" * 400})
        except ResourceError as error:
            print(error)
"""

INTERRUPTED = """
import itertools, signal, sys
from pathlib import Path
from kleash.ledger import Ledger

ledger = Ledger.create(Path(sys.argv[1]))
signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
    for step in itertools.count():
        ledger.append("update", {"step": step})
except KeyboardInterrupt:
    ledger.append("run.interrupted", {})
"""

KILLED = """
import sys
from pathlib import Path
from kleash.ledger import Ledger

ledger = Ledger.create(Path(sys.argv[1]))
for step in range(100_000):
    print(ledger.append("update", {"step": step}).seq, flush=True)
"""


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_what_append_returns_is_on_disk_and_acknowledged(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger") as ledger:
        first = ledger.append("run.started", {"config": {}})
        entries = read(tmp_path / "ledger")  # while the writer is open

        assert entries == [first]
        second = ledger.append("update", {"step": 1})
        assert (second.seq, second.prev) == (1, first.leaf)
        assert (ledger.head.size, ledger.head.leaf) == (2, second.leaf)
        stored = json.loads((tmp_path / "ledger" / HEAD_FILE).read_bytes())
        assert stored == {"size": 2, "leaf": second.leaf}


@dataclass(frozen=True)
class Sync:
    """What was handed to the disk, and what the ledger's directory showed at that moment."""

    inode: int
    size: int
    head: bytes


@pytest.fixture
def syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sync]:
    """Every sync of this process, in order; each is still made."""
    seen: list[Sync] = []

    def spy(real: Callable[[int], None]) -> Callable[[int], None]:
        def synced(file: int) -> None:
            real(file)
            head = tmp_path / "ledger" / HEAD_FILE
            status = os.fstat(file)
            seen.append(
                Sync(status.st_ino, status.st_size, head.read_bytes() if head.exists() else b"")
            )

        return synced

    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, spy(getattr(os, name)))
    return seen


def test_a_new_ledger_is_on_disk_when_create_returns(tmp_path: Path, syncs: list[Sync]) -> None:
    directory = tmp_path / "ledger"
    with Ledger.create(directory):
        made = (directory / HEAD_FILE).stat()
        head = (directory / HEAD_FILE).read_bytes()

        assert (made.st_ino, made.st_size) in [(sync.inode, sync.size) for sync in syncs]
        assert (syncs[-1].inode, syncs[-1].head) == (directory.stat().st_ino, head)


def test_an_entry_is_on_disk_before_it_is_acknowledged_and_both_when_append_returns(
    tmp_path: Path, syncs: list[Sync]
) -> None:
    """The line, then the new head under another name, then the directory in which the head was replaced."""
    directory = tmp_path / "ledger"
    with Ledger.create(directory) as ledger:
        for step in (1, 2):
            syncs.clear()
            old_head = (directory / HEAD_FILE).read_bytes()
            ledger.append("update", {"step": step})
            line, new_head = (directory / LEDGER_FILE).stat(), (directory / HEAD_FILE).stat()

            assert syncs == [
                Sync(line.st_ino, line.st_size, old_head),
                Sync(new_head.st_ino, new_head.st_size, old_head),
                Sync(
                    directory.stat().st_ino,
                    directory.stat().st_size,
                    (directory / HEAD_FILE).read_bytes(),
                ),
            ]


def test_an_empty_ledger_has_an_empty_head(tmp_path: Path) -> None:
    Ledger.create(tmp_path).close()
    chain = verify_chain(tmp_path)

    assert (chain.entries, chain.problems) == ((), ())


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    directory = tmp_path / "nightly" / "ledger"
    with Ledger.create(directory) as first:
        first.append("run.started", {})
        with pytest.raises(ResourceError, match=r"another process .* run 'nightly'"):
            Ledger.create(directory)
        first.append("update", {"step": 1})

    assert len(read(directory)) == 2


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from kleash.ledger import Ledger\n"
    script += "try: Ledger.create(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    with Ledger.create(tmp_path):
        assert "another process is writing" in run_python(script, tmp_path).stdout


def test_a_ledger_is_never_written_over(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.append("run.started", {})
    before = (tmp_path / LEDGER_FILE).read_bytes()

    with pytest.raises(InputError, match="has a ledger already"):
        Ledger.create(tmp_path)
    assert (tmp_path / LEDGER_FILE).read_bytes() == before


def test_a_closed_ledger_takes_no_more(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path)
    ledger.close()
    ledger.close()

    with pytest.raises(ResourceError, match="closed"):
        ledger.append("update", {})


def test_an_entry_too_long_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        with pytest.raises(InputError, match="too long"):
            ledger.append("update", {"x": "x" * MAX_LINE})
        ledger.append("update", {"step": 1})

    assert len(read(tmp_path)) == 1


def test_a_short_write_is_taken_back_and_ends_the_ledger(tmp_path: Path) -> None:
    said = run_python(OUT_OF_SPACE, tmp_path).stdout.splitlines()
    chain = verify_chain(tmp_path)

    assert "cannot be written" in said[0]
    assert "no space for the whole entry" in said[0]
    assert "closed" in said[1]
    assert (len(chain.entries), chain.problems, chain.notes) == (1, (), ())


def test_a_head_that_cannot_be_replaced_ends_the_ledger(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.append("update", {"step": 1})
        (tmp_path / f"{HEAD_FILE}.tmp").mkdir()
        with pytest.raises(ResourceError, match="cannot be written"):
            ledger.append("update", {"step": 2})
        with pytest.raises(ResourceError, match="closed"):
            ledger.append("update", {"step": 2})

    chain = verify_chain(tmp_path)
    assert (len(chain.entries), chain.problems) == (1, ())


def test_a_directory_that_cannot_be_made_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ResourceError, match="cannot be written"):
        Ledger.create(tmp_path / "file" / "ledger")


def test_a_head_that_cannot_be_made_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / f"{HEAD_FILE}.tmp").mkdir()

    with pytest.raises(ResourceError, match="cannot be written"):
        Ledger.create(tmp_path)


@pytest.mark.parametrize("seconds", [0.01, 0.013, 0.017, 0.023])
def test_an_interrupt_leaves_whole_entries_and_a_writer_that_goes_on(
    tmp_path: Path, seconds: float
) -> None:
    run_python(INTERRUPTED, tmp_path, seconds)
    chain = verify_chain(tmp_path)

    assert (chain.problems, chain.notes) == ((), ())
    assert chain.entries[-1].type == "run.interrupted"
    assert [entry.seq for entry in chain.entries] == list(range(len(chain.entries)))


def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        acknowledged = 30 + len([line for line in process.stdout if line.endswith("\n")])
    chain = verify_chain(tmp_path)

    assert chain.problems == ()
    assert acknowledged <= len(chain.entries) <= acknowledged + 1
