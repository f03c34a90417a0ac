"""Every change to a stored ledger is found, and what a crash leaves is told apart from it."""

import threading
from pathlib import Path

import pytest

from kleash.errors import InputError, TamperError
from kleash.ledger import HEAD_FILE, LEDGER_FILE, Ledger, encode, hash_line, read, verify_chain
from kleash.ledger.entry import MAX_LINE, encode_entry

TIME = "2030-01-02T03:04:05.678901Z"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of four entries, closed."""
    directory = tmp_path / "run" / "ledger"
    with Ledger.create(directory) as writer:
        for number in range(4):
            writer.append("update", {"step": number})
    return directory


def lines_of(ledger: Path) -> list[bytes]:
    return (ledger / LEDGER_FILE).read_bytes().splitlines(keepends=True)


def write_lines(ledger: Path, lines: list[bytes]) -> None:
    (ledger / LEDGER_FILE).write_bytes(b"".join(lines))


def next_line(ledger: Path, prev: str, seq: int) -> bytes:
    return encode_entry(seq=seq, type="update", time=TIME, body={"step": seq}, prev=prev)


def assert_found(ledger: Path, where: str = "") -> None:
    chain = verify_chain(ledger)
    assert chain.problems
    assert where in str(chain.problems[0])
    with pytest.raises(TamperError, match="json"):
        read(ledger)


def test_an_untouched_ledger_is_whole(ledger: Path) -> None:
    chain = verify_chain(ledger)

    assert (chain.problems, chain.notes, len(chain.entries)) == ((), (), 4)
    assert read(ledger) == list(chain.entries)
    assert [entry.body["step"] for entry in chain.entries] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", [LEDGER_FILE, HEAD_FILE])
def test_every_single_flipped_byte_is_found(ledger: Path, name: str) -> None:
    path = ledger / name
    content = path.read_bytes()
    missed = []
    for place in range(len(content)):
        for flip in (0x01, 0x20, 0x80):
            path.write_bytes(
                content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]
            )
            if not verify_chain(ledger).problems:
                missed.append((place, flip))

    assert missed == []


def test_every_truncation_is_found(ledger: Path) -> None:
    path = ledger / LEDGER_FILE
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert verify_chain(ledger).problems, f"cut to {length} bytes"


@pytest.mark.parametrize("line", range(4))
def test_a_dropped_line_is_found(ledger: Path, line: int) -> None:
    lines = lines_of(ledger)
    write_lines(ledger, lines[:line] + lines[line + 1 :])

    assert_found(ledger, HEAD_FILE if line == 3 else f"{LEDGER_FILE} line {line + 1}")


@pytest.mark.parametrize("line", range(4))
def test_a_repeated_line_is_found(ledger: Path, line: int) -> None:
    lines = lines_of(ledger)
    write_lines(ledger, lines[: line + 1] + lines[line:])

    assert_found(ledger, f"{LEDGER_FILE} line {line + 2}")


@pytest.mark.parametrize("line", range(3))
def test_two_swapped_lines_are_found(ledger: Path, line: int) -> None:
    lines = lines_of(ledger)
    lines[line], lines[line + 1] = lines[line + 1], lines[line]
    write_lines(ledger, lines)

    assert_found(ledger, f"{LEDGER_FILE} line {line + 1}")


def test_an_edited_line_is_found_where_the_chain_breaks(ledger: Path) -> None:
    lines = lines_of(ledger)
    write_lines(ledger, [lines[0], lines[1].replace(b'"step":1', b'"step":9'), *lines[2:]])

    assert_found(ledger, f"{LEDGER_FILE} line 3")


def test_a_missing_head_is_found(ledger: Path) -> None:
    (ledger / HEAD_FILE).unlink()

    assert_found(ledger, HEAD_FILE)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n",
        b"{}\n",
        b'{"leaf":1,"size":4}\n',
        b'{"leaf":"","size":-1}\n',
        b'{"extra":1,"leaf":"","size":0}\n',
        b'{"leaf":"","size":true}\n',
    ],
)
def test_a_head_of_another_form_is_found(ledger: Path, head: bytes) -> None:
    (ledger / HEAD_FILE).write_bytes(head)

    assert_found(ledger, HEAD_FILE)


def test_a_line_not_yet_acknowledged_is_a_note(ledger: Path) -> None:
    """Killed between the line and the head: the line is whole and chained."""
    last = read(ledger)[-1]
    with (ledger / LEDGER_FILE).open("ab") as file:
        file.write(next_line(ledger, last.leaf, 4) + b"\n")
    chain = verify_chain(ledger)

    assert (len(chain.entries), chain.problems) == (5, ())
    assert "beyond the head" in chain.notes[0]


def test_a_torn_tail_is_a_note_and_no_entry(ledger: Path) -> None:
    """Killed, or out of power, within the line: any part of it may be there."""
    line = next_line(ledger, read(ledger)[-1].leaf, 4)
    whole = (ledger / LEDGER_FILE).read_bytes()
    for length in range(1, len(line) + 1):
        (ledger / LEDGER_FILE).write_bytes(whole + line[:length])
        chain = verify_chain(ledger)

        assert (len(chain.entries), chain.problems) == (4, ())
        assert f"torn tail: {length} bytes" in chain.notes[0]


@pytest.mark.parametrize("tail", ["line", "part"])
def test_more_beyond_the_head_than_a_crash_leaves_is_found(ledger: Path, tail: str) -> None:
    fifth = next_line(ledger, read(ledger)[-1].leaf, 4)
    sixth = next_line(ledger, hash_line(fifth), 5)
    end = sixth + b"\n" if tail == "line" else sixth[:9]
    with (ledger / LEDGER_FILE).open("ab") as file:
        file.write(fifth + b"\n" + end)

    assert_found(ledger, HEAD_FILE)


def test_an_endless_line_is_refused_without_being_read(ledger: Path) -> None:
    with (ledger / LEDGER_FILE).open("ab") as file:
        file.truncate(1 << 40)  # sparse: a terabyte of zero bytes

    assert_found(ledger, f"{LEDGER_FILE} line 5: the line is too long")


def test_a_line_over_the_limit_is_refused(ledger: Path) -> None:
    with (ledger / LEDGER_FILE).open("ab") as file:
        file.write(encode({"a": "x" * MAX_LINE}) + b"\n")

    assert_found(ledger, f"{LEDGER_FILE} line 5: the line is too long")


def test_where_there_is_no_ledger_nothing_is_verified(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ledger here"):
        verify_chain(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_ledger_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).symlink_to("/proc/self/mem")

    with pytest.raises(InputError, match="cannot be read"):
        verify_chain(tmp_path)


def test_a_ledger_being_written_is_not_called_tampered(tmp_path: Path) -> None:
    """Between reading the head and reading the last line, a writer at work appends more."""
    stop = threading.Event()
    with Ledger.create(tmp_path) as writer:
        for number in range(300):  # long enough to be outrun while it is read
            writer.append("update", {"step": number})

        def write() -> None:
            while not stop.is_set():
                writer.append("update", {})

        thread = threading.Thread(target=write)
        thread.start()
        found = [verify_chain(tmp_path).problems for _ in range(20)]
        stop.set()
        thread.join()

    assert not any(found)


def test_a_whole_rewrite_is_not_found_by_the_chain_alone(ledger: Path, tmp_path: Path) -> None:
    """What an unsigned chain cannot show; only a head kept elsewhere can."""
    kept = verify_chain(ledger).head
    forged = tmp_path / "forged"
    with Ledger.create(forged) as writer:
        for number in range(4):
            writer.append("update", {"step": number, "forged": True})

    assert verify_chain(forged).problems == ()
    assert verify_chain(forged).head != kept
