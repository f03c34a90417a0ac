"""Every change to a stored ledger is found, and what a crash leaves is told apart from it."""

import shutil
import threading
from pathlib import Path

import pytest

from kleash.errors import InputError, TamperError
from kleash.ledger import Ledger, hash_line, kept_notes, layout, read, verify_chain
from kleash.ledger.entry import MAX_LINE, encode, encode_entry
from tests.ledger.version1 import TIME, Version1
from tests.ledger.written import (
    KEY,
    OTHER,
    SEGMENT,
    files_of,
    forge,
    lines_of,
    sign,
    write,
    write_lines,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of four entries, closed, with one kept checkpoint: after the third, which was refused."""
    return write(tmp_path / "run" / "ledger")


def next_line(ledger: Path, prev: str, seq: int) -> bytes:
    return encode_entry(seq=seq, type="update", time=TIME, body={"step": seq}, prev=prev)


def assert_found(ledger: Path, where: str = "", what: str = "") -> None:
    chain = verify_chain(ledger)
    assert chain.problems
    assert str(chain.problems[0]).startswith(where)
    assert what in str(chain.problems[0])
    with pytest.raises(TamperError):
        read(ledger)


def test_an_untouched_ledger_is_whole(ledger: Path) -> None:
    chain = verify_chain(ledger)
    assert (chain.problems, len(chain.entries), chain.signed, chain.version) == ((), 4, 4, 2)
    assert chain.notes == (f"signed by {KEY.public.name} up to seq 3",)
    assert chain.keys == (KEY.public,)
    assert read(ledger) == list(chain.entries)
    assert [name for name, _ in kept_notes(ledger)] == ["checkpoints/3.note", "head"]
    assert verify_chain(ledger, [OTHER.public, KEY.public]).problems == ()


@pytest.mark.parametrize("every", [23, pytest.param(3, marks=pytest.mark.slow)])
def test_every_single_flipped_bit_of_every_file_is_found(ledger: Path, every: int) -> None:
    missed: list[tuple[str, int]] = []
    files = files_of(ledger)
    assert [path.name for path in files] == ["3.note", "genesis.json", "head", "000000.jsonl"]
    for path in files:
        content = path.read_bytes()
        for place in range(0, len(content) * 8, every):
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            path.write_bytes(changed)
            if not verify_chain(ledger).problems:
                missed.append((path.name, place))
        path.write_bytes(content)
    assert missed == []
    assert verify_chain(ledger).problems == ()


@pytest.mark.slow
def test_every_truncation_of_every_file_is_found(ledger: Path) -> None:
    for path in files_of(ledger):
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            assert verify_chain(ledger).problems, f"{path.name} cut to {length} bytes"
        path.write_bytes(content)


@pytest.mark.parametrize("line", range(4))
def test_a_dropped_entry_is_found(ledger: Path, line: int) -> None:
    lines = lines_of(ledger)
    write_lines(ledger, lines[:line] + lines[line + 1 :])
    assert_found(ledger, "head: the ledger has 3" if line == 3 else f"{SEGMENT} line {line + 1}")


@pytest.mark.parametrize("line", range(4))
def test_a_repeated_entry_is_found(ledger: Path, line: int) -> None:
    lines = lines_of(ledger)
    write_lines(ledger, lines[: line + 1] + lines[line:])
    assert_found(ledger, f"{SEGMENT} line {line + 2}: out of sequence")


@pytest.mark.parametrize("line", range(3))
def test_two_swapped_entries_are_found(ledger: Path, line: int) -> None:
    lines = lines_of(ledger)
    lines[line], lines[line + 1] = lines[line + 1], lines[line]
    write_lines(ledger, lines)
    assert_found(ledger, f"{SEGMENT} line {line + 1}")


def test_an_edit_is_found_where_the_chain_breaks_and_in_the_last_entry_by_the_root(
    ledger: Path,
) -> None:
    lines = lines_of(ledger)
    write_lines(ledger, [lines[0], lines[1].replace(b'"step":1', b'"step":9'), *lines[2:]])
    assert_found(ledger, f"{SEGMENT} line 3", "prev is not the hash")
    write_lines(ledger, [*lines[:3], lines[3].replace(b'"step":3', b'"step":9')])
    assert_found(ledger, "head", f"an entry from {SEGMENT} line 4 on was changed")


def test_a_rewrite_without_the_key_is_found(ledger: Path) -> None:
    """Chain, root and head computed again: that is what an unsigned chain cannot show."""
    kept = verify_chain(ledger).head
    forge(ledger, lambda entries: entries[1]["body"].update(step=9), OTHER)
    assert_found(ledger, "head", "no signature by a known key")
    forge(ledger, lambda entries: None)
    assert verify_chain(ledger).problems == ()
    assert verify_chain(ledger).head != kept


def test_a_ledger_of_another_key_is_whole_and_not_trusted(ledger: Path) -> None:
    shutil.rmtree(ledger)
    write(ledger, key=OTHER)
    assert verify_chain(ledger).problems == ()
    found = verify_chain(ledger, [KEY.public])
    assert "signed by another key than the one you trust" in str(found.problems[0])
    assert found.entries == ()


def test_a_ledger_cut_back_to_an_older_signed_head_is_found_with_a_checkpoint_that_was_kept(
    ledger: Path,
) -> None:
    held = (ledger / "head").read_bytes()
    older = ledger / "checkpoints" / "3.note"
    assert verify_chain(ledger, since=held).problems == ()
    assert verify_chain(ledger, since=older.read_bytes()).problems == ()
    # What follows it may have been longer.
    said = "1 entry follows the checkpoint you hold: had more been cut off, it would not show"
    assert said in verify_chain(ledger, since=older.read_bytes()).notes
    assert not any("you hold" in note for note in verify_chain(ledger, since=held).notes)

    write_lines(ledger, lines_of(ledger)[:3])
    (ledger / "head").write_bytes(older.read_bytes())
    chain = verify_chain(ledger)
    assert (chain.problems, chain.notes) == ((), (f"signed by {KEY.public.name} up to seq 2",))
    for keys in (None, [KEY.public]):
        problem = str(verify_chain(ledger, keys, since=held).problems[0])
        assert (
            "the ledger was cut: it has 3 entries, shorter than the checkpoint you hold" in problem
        )


def test_a_history_rewritten_by_the_key_is_found_with_a_checkpoint_that_was_kept(
    ledger: Path,
) -> None:
    held = (ledger / "checkpoints" / "3.note").read_bytes()
    forge(ledger, lambda entries: entries[1]["body"].update(step=9))
    assert verify_chain(ledger).problems == ()
    problem = verify_chain(ledger, since=held).problems[0]
    assert problem.where == "the checkpoint you hold"
    assert "the root over 3 entries is not the one that was signed" in problem.what


@pytest.mark.parametrize("held", ["junk", "another ledger's", "another key's"])
def test_a_checkpoint_that_is_none_of_this_ledger_vouches_for_nothing(
    ledger: Path, tmp_path: Path, held: str
) -> None:
    other = write(tmp_path / "other")
    notes = {
        "junk": b"junk",
        "another ledger's": (other / "head").read_bytes(),
        "another key's": sign(ledger, lines_of(ledger), OTHER),
    }
    assert verify_chain(ledger, since=notes[held]).problems[0].where == "the checkpoint you hold"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("head", "head: missing"),
        ("genesis.json", ""),
        (SEGMENT, f"{SEGMENT}: missing"),
        ("checkpoints", "checkpoints: missing"),
        ("segments", f"{SEGMENT}: missing"),
    ],
)
def test_what_is_missing_is_found(ledger: Path, name: str, where: str) -> None:
    path = ledger / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not where:  # without its genesis it is no ledger
        with pytest.raises(InputError, match="no ledger here"):
            verify_chain(ledger)
        return
    assert_found(ledger, where)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":2', b'"v":3'),
        (b'"v":2', b'"v":true'),
        (b"kleash/", b"KLEASH/"),
        (b'"keys":[', b'"keys":["x",'),
        (b'"keys":["', b'"keys":[],"x":["'),
        (b'"v":2}', b'"v":2,"x":1}'),
        (b"}\n", b"}"),
    ],
)
def test_a_genesis_of_another_form_is_found(ledger: Path, old: bytes, new: bytes) -> None:
    path = ledger / "genesis.json"
    path.write_bytes(path.read_bytes().replace(old, new))
    assert_found(ledger, "genesis.json")


def test_a_checkpoint_under_another_name_or_of_more_entries_is_found(ledger: Path) -> None:
    root = ledger / "checkpoints"
    (root / "1.note").write_bytes((root / "3.note").read_bytes())
    assert_found(ledger, "checkpoints/1.note: the checkpoint is of another size")
    (root / "1.note").rename(root / "notes\x1b.txt")
    assert_found(ledger, "checkpoints/notes\\x1b.txt: no checkpoint has such a name")
    (root / "notes\x1b.txt").rename(root / "9.note.tmp")  # what a crash leaves
    assert verify_chain(ledger).problems == ()
    more = [*lines_of(ledger), b"x\n", b"y\n"]
    (root / "6.note").write_bytes(sign(ledger, more))
    assert_found(ledger, "checkpoints/6.note", "shorter than signed, 6")


def test_an_entry_of_another_version_is_found(ledger: Path) -> None:
    forge(ledger, lambda entries: entries[1].update(v=1))
    assert_found(ledger, f"{SEGMENT} line 2", "another version")


def test_a_line_not_yet_signed_is_a_note(ledger: Path) -> None:
    """Killed between the line and the head: the line is whole and chained."""
    with (ledger / SEGMENT).open("ab") as file:
        file.write(next_line(ledger, read(ledger)[-1].leaf, 4) + b"\n")
    chain = verify_chain(ledger)
    assert (len(chain.entries), chain.problems, chain.signed) == (5, (), 4)
    assert "up to seq 3" in chain.notes[0]
    assert "beyond the head" in chain.notes[1]


def test_a_torn_tail_is_a_note_and_no_entry(ledger: Path) -> None:
    line = next_line(ledger, read(ledger)[-1].leaf, 4)
    whole = (ledger / SEGMENT).read_bytes()
    for length in range(1, len(line) + 1):
        (ledger / SEGMENT).write_bytes(whole + line[:length])
        chain = verify_chain(ledger)
        assert (len(chain.entries), chain.problems) == (4, ())
        assert f"torn tail: {length} bytes" in chain.notes[1]


@pytest.mark.parametrize("tail", ["line", "part"])
def test_more_beyond_the_head_than_a_crash_leaves_is_found(ledger: Path, tail: str) -> None:
    fifth = next_line(ledger, read(ledger)[-1].leaf, 4)
    sixth = next_line(ledger, hash_line(fifth), 5)
    with (ledger / SEGMENT).open("ab") as file:
        file.write(fifth + b"\n" + (sixth + b"\n" if tail == "line" else sixth[:9]))
    assert_found(ledger, "head", "more than one line lies beyond")


def test_an_endless_line_is_refused_without_being_read(ledger: Path) -> None:
    with (ledger / SEGMENT).open("ab") as file:
        file.truncate(1 << 40)  # sparse: a terabyte of zero bytes
    assert_found(ledger, f"{SEGMENT} line 5: the line is too long")


def test_a_line_over_the_limit_is_refused(ledger: Path) -> None:
    with (ledger / SEGMENT).open("ab") as file:
        file.write(encode({"a": "x" * MAX_LINE}) + b"\n")
    assert_found(ledger, f"{SEGMENT} line 5: the line is too long")


def test_an_empty_ledger_is_signed_as_such(tmp_path: Path) -> None:
    chain = verify_chain(write(tmp_path, 0))
    assert (chain.entries, chain.problems) == ((), ())
    assert chain.notes == (f"signed by {KEY.public.name} while it was empty",)


def test_segments_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEGMENT_ENTRIES", 3)
    ledger = write(tmp_path, 7)
    names = [path.name for path in sorted((ledger / "segments").iterdir())]
    assert names == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    assert (verify_chain(ledger).problems, len(read(ledger))) == ((), 7)
    last, extra = ledger / "segments" / names[2], ledger / "segments" / "000009.jsonl"
    extra.touch()
    assert_found(ledger, "segments/000009.jsonl: a segment that the entries do not reach")
    extra.unlink()
    content = last.read_bytes()
    last.unlink()
    assert_found(ledger, "head: the ledger has 6 whole entries")
    second = ledger / "segments" / names[1]
    second.chmod(0o644)
    second.write_bytes(second.read_bytes() + content)
    assert_found(ledger, "segments/000002.jsonl line 1: the segment is longer")


def test_where_there_is_no_ledger_nothing_is_verified(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ledger here"):
        verify_chain(tmp_path)


@pytest.mark.parametrize("name", ["genesis.json", "head", "checkpoints/3.note", SEGMENT])
def test_only_regular_files_of_the_ledger_are_opened(ledger: Path, name: str) -> None:
    outside = ledger.parent / "outside"
    (ledger / name).rename(outside)
    (ledger / name).symlink_to(outside)
    assert_found(ledger, f"{name}: the path leads out")
    (ledger / name).unlink()
    (ledger / name).mkdir()
    assert_found(ledger, f"{name}: not a regular file")


@pytest.mark.parametrize("name", ["segments", "checkpoints"])
def test_a_directory_that_lies_elsewhere_is_not_searched(ledger: Path, name: str) -> None:
    (ledger / name).rename(ledger.parent / name)
    (ledger / name).symlink_to(ledger.parent / name)
    assert_found(ledger, name, "the path leads out of the run")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_segment_that_cannot_be_read_is_bad_input(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ledger / SEGMENT).unlink()
    (ledger / SEGMENT).symlink_to("/proc/self/mem")
    monkeypatch.setattr("kleash.ledger.chain.refusal", lambda root, path: "")
    with pytest.raises(InputError, match="cannot be read"):
        verify_chain(ledger)


def test_a_ledger_being_written_is_not_called_tampered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the head and reading the last line, a writer at work appends more, and begins segments."""
    monkeypatch.setattr(layout, "SEGMENT_ENTRIES", 50)
    stop = threading.Event()
    with Ledger.create(tmp_path, [KEY]) as writer:
        for number in range(60):
            writer.append("update", {"step": number})

        def work() -> None:
            while not stop.is_set():
                writer.append("update", {})

        thread = threading.Thread(target=work)
        thread.start()
        found = [verify_chain(tmp_path).problems for _ in range(20)]
        stop.set()
        thread.join()
    assert not any(found), found


def test_no_key_and_no_checkpoint_vouches_for_version_1(tmp_path: Path) -> None:
    """Else a signed ledger could be passed off as an old one."""
    with Version1.create(tmp_path) as old:
        old.append("update", {})
    assert verify_chain(tmp_path).problems == ()
    for chain in (verify_chain(tmp_path, [KEY.public]), verify_chain(tmp_path, since=b"")):
        assert "which nobody signs" in chain.problems[0].what
