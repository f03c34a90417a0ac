"""The writer: durable when `append` returns, alone, and whole whatever interrupts it."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kleash.errors import InputError, RepeatError, ResourceError, TamperError
from kleash.ledger import Ledger, layout, read, verify_chain
from kleash.ledger.entry import MAX_LINE
from kleash.ledger.note import open_checkpoint
from tests.ledger.version1 import Version1
from tests.ledger.written import KEY, OTHER, SEGMENT, lines_of, write

OUT_OF_SPACE = """
import resource, sys
from pathlib import Path
from kleash.errors import ResourceError
from kleash.ledger import Ledger, SigningKey

with Ledger.create(Path(sys.argv[1]), [SigningKey.generate()]) as ledger:
    ledger.append("update", {"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))  # room for a part of the next line
    for _ in range(2):
        try:
            ledger.append("update", {"step": 2, "pad": "x" * 700})
        except ResourceError as error:
            print(error)
"""

INTERRUPTED = """
import itertools, signal, sys
from pathlib import Path
from kleash.ledger import Ledger, SigningKey

ledger = Ledger.create(Path(sys.argv[1]), [SigningKey.generate()])
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
from kleash.ledger import Ledger, SigningKey

ledger = Ledger.create(Path(sys.argv[1]), [SigningKey.generate()])
for step in range(100_000):
    print(ledger.append("update", {"step": step}).seq, flush=True)
"""


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_what_append_returns_is_on_disk_and_acknowledged(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger", [KEY]) as ledger:
        first = ledger.append("run.started", {"config": {}})
        entries = read(tmp_path / "ledger")  # while the writer is open

        assert entries == [first]
        second = ledger.append("update", {"step": 1})
        assert (second.seq, second.prev) == (1, first.leaf)
        assert (ledger.head.size, ledger.head.leaf) == (2, second.leaf)
        stored = (tmp_path / "ledger" / "head").read_bytes()
        assert stored == ledger.note
        assert open_checkpoint(stored, [KEY.public]).size == 2


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
            head = tmp_path / "ledger" / "head"
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
    with Ledger.create(directory, [KEY]):
        head = (directory / "head").read_bytes()
        synced = [(sync.inode, sync.size) for sync in syncs]
        for name in ("head", "genesis.json", SEGMENT):
            made = (directory / name).stat()
            assert (made.st_ino, made.st_size) in synced
        assert (syncs[-1].inode, syncs[-1].head) == (directory.stat().st_ino, head)


def test_an_entry_is_on_disk_before_it_is_acknowledged_and_both_when_append_returns(
    tmp_path: Path, syncs: list[Sync]
) -> None:
    """The line, then the new head under another name, then the directory in which the head was replaced."""
    directory = tmp_path / "ledger"
    with Ledger.create(directory, [KEY]) as ledger:
        for step in (1, 2):
            syncs.clear()
            old_head = (directory / "head").read_bytes()
            ledger.append("update", {"step": step})
            line, new_head = (directory / SEGMENT).stat(), (directory / "head").stat()

            assert syncs == [
                Sync(line.st_ino, line.st_size, old_head),
                Sync(new_head.st_ino, new_head.st_size, old_head),
                Sync(
                    directory.stat().st_ino,
                    directory.stat().st_size,
                    (directory / "head").read_bytes(),
                ),
            ]


def test_an_empty_ledger_has_an_empty_head(tmp_path: Path) -> None:
    Ledger.create(tmp_path, [KEY]).close()
    chain = verify_chain(tmp_path)

    assert (chain.entries, chain.problems) == ((), ())


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    directory = tmp_path / "nightly" / "ledger"
    with Ledger.create(directory, [KEY]) as first:
        first.append("run.started", {})
        with pytest.raises(ResourceError, match=r"another process .* run 'nightly'"):
            Ledger.create(directory, [KEY])
        first.append("update", {"step": 1})

    assert len(read(directory)) == 2


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from kleash.ledger import Ledger, SigningKey\n"
    script += "try: Ledger.create(Path(sys.argv[1]), [SigningKey.generate()])\nexcept Exception as error: print(error)"
    with Ledger.create(tmp_path, [KEY]):
        assert "another process is writing" in run_python(script, tmp_path).stdout


def test_a_ledger_is_never_written_over(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, [KEY]) as ledger:
        ledger.append("run.started", {})
    before = (tmp_path / SEGMENT).read_bytes()

    with pytest.raises(InputError, match="has a ledger already"):
        Ledger.create(tmp_path, [KEY])
    assert (tmp_path / SEGMENT).read_bytes() == before


def test_a_closed_ledger_takes_no_more(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, [KEY])
    ledger.close()
    ledger.close()

    with pytest.raises(ResourceError, match="closed"):
        ledger.append("update", {})


def test_an_entry_too_long_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, [KEY]) as ledger:
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
    assert (len(chain.entries), chain.problems, len(chain.notes)) == (1, (), 1)


def test_a_head_that_cannot_be_replaced_ends_the_ledger(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, [KEY]) as ledger:
        ledger.append("update", {"step": 1})
        (tmp_path / "head.tmp").mkdir()
        with pytest.raises(ResourceError, match="cannot be written"):
            ledger.append("update", {"step": 2})
        with pytest.raises(ResourceError, match="closed"):
            ledger.append("update", {"step": 2})

    chain = verify_chain(tmp_path)
    assert (len(chain.entries), chain.problems) == (1, ())


def test_a_directory_that_cannot_be_made_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ResourceError, match="cannot be written"):
        Ledger.create(tmp_path / "file" / "ledger", [KEY])


def test_a_head_that_cannot_be_made_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "head.tmp").mkdir()

    with pytest.raises(ResourceError, match="cannot be written"):
        Ledger.create(tmp_path, [KEY])


@pytest.mark.parametrize("seconds", [0.01, 0.013, 0.017, 0.023])
def test_an_interrupt_leaves_whole_entries_and_a_writer_that_goes_on(
    tmp_path: Path, seconds: float
) -> None:
    run_python(INTERRUPTED, tmp_path, seconds)
    chain = verify_chain(tmp_path)

    assert (chain.problems, len(chain.notes)) == ((), 1)
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


class Killed(BaseException):
    """The process is gone: whatever it tries to do after this, it does not do."""


CALLS = ("write", "fsync", "fdatasync", "replace", "open", "ftruncate", "fchmod", "unlink", "mkdir")


def kill_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets so many system calls of ours happen, and then none."""
    made: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if len(made) >= calls:
                raise Killed
            made.append(name)
            return real(*args, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return made


def die(ledger: Ledger) -> None:
    """What the system does with a process that is gone: its locks go with its files."""
    ledger.close()


@pytest.mark.parametrize("before", [0, 2, 3], ids=["first", "kept", "next segment"])
def test_a_writer_killed_at_any_moment_of_an_append_is_gone_on_from(
    tmp_path: Path, before: int
) -> None:
    """After each system call in turn; the third entry has its checkpoint kept, the fourth begins a segment."""
    outcomes, finished = set[int](), False
    for calls in range(40):
        directory = tmp_path / str(calls)
        with pytest.MonkeyPatch.context() as small:
            small.setattr(layout, "SEGMENT_ENTRIES", 3)
            write(directory, before)
            ledger, _ = Ledger.open(directory, [KEY])
            body = {"step": before, "verdict": {"action": "reject" if before == 2 else "accept"}}
            with pytest.MonkeyPatch.context() as patch:
                made = kill_after(calls, patch)
                try:
                    ledger.append("update", body)
                    finished = True
                except Killed:
                    finished = False
            die(ledger)
            found = verify_chain(directory)
            assert found.problems == (), (calls, made)
            assert before <= len(found.entries) <= before + 1
            again, chain = Ledger.open(directory, [KEY])
            with again:
                assert chain.entries == found.entries
                again.append("run.failed", {})
            assert verify_chain(directory).problems == ()
            outcomes.add(len(found.entries) - before)
            if finished:
                assert len(found.entries) == before + 1
                break
    assert finished
    assert outcomes == {0, 1}


def test_a_writer_killed_as_it_makes_a_ledger_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    finished = False
    for calls in range(60):
        directory = tmp_path / str(calls)
        directory.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            kill_after(calls, patch)
            try:
                Ledger.create(directory, [KEY]).close()
                finished = True
            except Killed:
                finished = False
        if (directory / "genesis.json").exists():
            assert verify_chain(directory).problems == ()
        else:
            Ledger.create(directory, [KEY]).close()
        if finished:
            break
    assert finished


def fail_at(
    call: str,
    number: int,
    error: BaseException | type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> list[int]:
    """Has one call of a kind fail, once; the list counts them."""
    count, real = [0], getattr(os, call)

    def fails(*args: object, **options: object) -> object:
        count[0] += 1
        if count[0] == number + 1:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(os, call, fails)
    return count


@pytest.mark.parametrize("call", ["write", "fsync", "fdatasync", "replace"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(5, "no luck")], ids=["Ctrl-C", "disk"]
)
def test_an_append_that_is_broken_off_once_leaves_whole_entries(
    tmp_path: Path, call: str, error: BaseException | type[BaseException]
) -> None:
    """At each call of a kind: what Ctrl-C stops is undone, and after an error of the disk nothing is tried again."""
    number = 0
    for number in range(6):
        directory = tmp_path / str(number)
        ledger = Ledger.create(directory, [KEY])
        ledger.append("update", {"step": 0})
        with pytest.MonkeyPatch.context() as patch:
            count = fail_at(call, number, error, patch)
            try:
                ledger.append("checkpoint.saved", {})
                happened = False
            except (KeyboardInterrupt, ResourceError):
                happened = True
            after = count[0]
        if not happened:
            break
        if error is KeyboardInterrupt:
            assert len(read(directory)) == 1
            assert list((directory / "checkpoints").glob("*.note")) == []
            ledger.append("run.interrupted", {})
            assert len(read(directory)) == 2
        else:
            assert after == number + 1  # of this kind: no second try
            assert verify_chain(directory).problems == ()
            with pytest.raises(ResourceError, match="closed"):
                ledger.append("run.failed", {})
            Ledger.open(directory, [KEY])[0].close()
        ledger.close()
    assert number


def test_an_undoing_that_is_interrupted_is_done_before_the_next_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(tmp_path, [KEY])
    ledger.append("update", {"step": 0})
    with pytest.MonkeyPatch.context() as patch:
        kill_after(2, patch)  # the line and its sync
        with pytest.raises(Killed):
            ledger.append("update", {"step": 1})
    assert len(lines_of(tmp_path)) == 2
    ledger.append("update", {"step": 2})
    ledger.close()
    assert [entry.body["step"] for entry in read(tmp_path)] == [0, 2]


def test_an_undoing_that_the_disk_refuses_ends_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(tmp_path, [KEY])
    (tmp_path / "checkpoints").rmdir()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.append("update", {})
    with pytest.raises(ResourceError, match="closed"):
        ledger.append("update", {})
    (tmp_path / "checkpoints").mkdir()
    assert verify_chain(tmp_path).problems == ()


def test_checkpoints_are_kept_where_something_was_decided(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, [KEY]) as ledger:
        for step in range(63):
            ledger.append("update", {"step": step, "verdict": {"action": "accept"}})
        ledger.append("update", {"step": 63})
        ledger.append("update", {"step": 64, "verdict": {"action": "halt"}})
        ledger.append("checkpoint.saved", {})
        ledger.append("plan.committed", {})
        ledger.append("run.failed", {})
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"64.note", "65.note", "66.note", "68.note"}
    assert (tmp_path / "checkpoints" / "68.note").read_bytes() == (tmp_path / "head").read_bytes()


def test_a_full_segment_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEGMENT_ENTRIES", 2)
    write(tmp_path, 2)
    for step in range(3):
        ledger, chain = Ledger.open(tmp_path, [KEY])
        assert len(chain.entries) == 2 + step
        ledger.append("update", {})
        ledger.close()
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in sorted((tmp_path / "segments").iterdir())
    ]
    assert modes == [0o444, 0o444, 0o644]


def test_a_sealed_segment_is_opened_again_before_the_next_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two; a user who is not root may not write to it."""
    monkeypatch.setattr(layout, "SEGMENT_ENTRIES", 2)
    write(tmp_path, 2)
    (tmp_path / SEGMENT).chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *_: False)
    ledger, _ = Ledger.open(tmp_path, [KEY])
    ledger.append("update", {})
    ledger.close()
    assert len(read(tmp_path)) == 3


def test_a_torn_tail_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path, 2)
    whole = (tmp_path / SEGMENT).stat().st_size
    with (tmp_path / SEGMENT).open("ab") as file:
        file.write(b'{"body"')
    ledger, chain = Ledger.open(tmp_path, [KEY])
    ledger.append("update", {})
    ledger.close()
    assert "torn tail: 7 bytes" in chain.notes[1]
    assert (tmp_path / f"torn-000000-{whole}.bin").read_bytes() == b'{"body"'
    assert len(read(tmp_path)) == 3


def test_another_key_does_not_go_on_with_a_ledger(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with pytest.raises(InputError, match="begun with another key") as caught:
        Ledger.open(tmp_path, [OTHER])
    assert KEY.public.vkey in caught.value.expected
    assert "KLEASH_HOME" in caught.value.do
    with pytest.raises(InputError, match="needs a key"):
        Ledger.open(tmp_path, [])
    assert len(read(tmp_path)) == 2


def test_a_ledger_shorter_than_its_signed_head_is_a_rollback(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = tmp_path / SEGMENT
    path.write_bytes(b"".join(lines_of(tmp_path)[:2]))
    with pytest.raises(TamperError, match="not as it was written") as caught:
        Ledger.open(tmp_path, [KEY])
    assert "it was cut" in caught.value.got


def test_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ledger here"):
        Ledger.open(tmp_path / "none", [KEY])
    with Version1.create(tmp_path / "old") as old:
        old.append("run.started", {})
    with pytest.raises(InputError, match="version 1"):
        Ledger.open(tmp_path / "old", [KEY])
    with pytest.raises(InputError, match="has a ledger already"):
        Ledger.create(tmp_path / "old", [KEY])
    link = tmp_path / "link"
    link.mkdir()
    (link / "genesis.json").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads out"):
        Ledger.open(link, [KEY])
    stray = tmp_path / "stray"
    (stray / "segments").mkdir(parents=True)
    (stray / SEGMENT).write_bytes(b"{}\n")
    with pytest.raises(InputError, match="entries of another ledger"):
        Ledger.create(stray, [KEY])
    write(tmp_path / "busy", 1)
    (tmp_path / "busy" / "lock").unlink()
    (tmp_path / "busy" / "lock").mkdir()
    with pytest.raises(ResourceError, match="cannot be written"):
        Ledger.open(tmp_path / "busy", [KEY])


def test_updates_made_again_must_be_the_same(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, [KEY]) as ledger:
        made = [ledger.append("update.intent", {"step": 1}), ledger.append("update", {"step": 1})]
        ledger.expect(made)
        assert ledger.is_repeating
        assert ledger.append("update.intent", {"step": 1}) == made[0]
        with pytest.raises(RepeatError, match="does not repeat itself"):
            ledger.append("update", {"step": 2})
        ledger.append("run.failed", {})
    assert len(read(tmp_path)) == 3


def test_a_line_that_the_disk_takes_a_part_of_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with Ledger.create(tmp_path, [KEY]) as ledger:
        monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:9]))
        with pytest.raises(ResourceError, match="no space for the whole entry"):
            ledger.append("update", {})
    assert (tmp_path / SEGMENT).stat().st_size == 0
