"""Pieces of work: made once, found again, gone on with where they stopped, and refused when they can't be read."""

import errno
import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

import kleash
from kleash.errors import InputError, ResourceError, RewardError
from kleash.lab.study.work import RESULT, Desk, Event, Piece, Work, key_of, plain, unwritable


class Wanted(BaseModel):
    model_config = ConfigDict(frozen=True)

    number: int = 1
    word: str = ""


def square(settings: Wanted, directory: Path, desk: Desk) -> dict:
    with (directory.parent / "made").open("a") as made:
        made.write(f"{settings.number}\n")
    desk.tell(1, 1, f"{settings.number}²")
    return {"square": settings.number**2, "process": os.getpid()}


def on_another(settings: Wanted, directory: Path, desk: Desk) -> dict:
    found = json.loads((desk.of(square, settings) / RESULT).read_text())
    return {"cube": found["result"]["square"] * settings.number}


def stops_once(settings: Wanted, directory: Path, desk: Desk) -> dict:
    half = directory / "half"
    if not half.exists():
        half.write_text("done")
        raise RewardError("the reward went away")
    return {"went_on": half.read_text()}


def breaks(settings: Wanted, directory: Path, desk: Desk) -> dict:
    raise ZeroDivisionError("by nothing")


def dies(settings: Wanted, directory: Path, desk: Desk) -> dict:
    os._exit(9)


def work_in(directory: Path, jobs: int = 1, seen: list[Event] | None = None) -> Work:
    events: list[Event] = [] if seen is None else seen
    return Work(directory, events.append, jobs)


def made(directory: Path) -> list[str]:
    return (directory / "pieces" / "made").read_text().split()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_piece_is_made_once(tmp_path: Path, jobs: int) -> None:
    """However often it is asked for, in one go or in another; what was added is all that is made."""
    seen: list[Event] = []
    pieces = [Piece(f"square of {n}", square, Wanted(number=n)) for n in (3, 2, 3)]
    with work_in(tmp_path, jobs, seen).open() as work:
        assert [each["square"] for each in work.do(pieces)] == [9, 4, 9]
        assert (work.made, work.found) == (2, 0)
    more = [Piece("another label", square, Wanted(number=n)) for n in (4, 2)]
    with work_in(tmp_path, jobs).open() as work:
        assert [each["square"] for each in work.do(more)] == [16, 4]
        assert (work.made, work.found) == (1, 1)
    assert sorted(made(tmp_path)) == ["2", "3", "4"]
    assert {event.label for event in seen} == {"square of 3", "square of 2"}
    assert {event.figures for event in seen} == {"3²", "2²"}


def test_two_jobs_are_two_processes_and_one_is_this(tmp_path: Path) -> None:
    pieces = [Piece("s", square, Wanted(number=n)) for n in range(4)]
    with work_in(tmp_path / "alone").open() as work:
        assert {each["process"] for each in work.do(pieces)} == {os.getpid()}
    with work_in(tmp_path / "two", 2).open() as work:
        others = {each["process"] for each in work.do(pieces)}
    assert os.getpid() not in others
    assert len(others) <= 2


def test_the_key_is_of_function_and_settings_alone() -> None:
    piece = Piece("a", square, Wanted(number=2))
    assert piece.key == Piece("b", square, Wanted(number=2)).key
    assert len({piece.key, key_of(square, Wanted(number=3)), key_of(breaks, piece.settings)}) == 3


@pytest.mark.parametrize("where", ["file.txt", "model/weights.bin", "mine.py"])
def test_the_key_is_of_what_files_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A file, a directory or the module of a function that settings name: another content is another piece."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    (path.parent / "config.json").write_text("{}")
    name = {"file.txt": str(path), "model/weights.bin": "model", "mine.py": "mine:reward"}[where]
    keys: list[str] = []
    for content in ("one", "two!", "one"):
        path.write_text(content)
        os.utime(path, ns=(len(keys), len(keys)))
        keys.append(key_of(square, Wanted(word=name)))
    assert keys[0] == keys[2] != keys[1]


def test_a_piece_finds_another_that_is_done(tmp_path: Path) -> None:
    cube = Piece("cube", on_another, Wanted(number=3))
    with work_in(tmp_path).open() as work:
        with pytest.raises(InputError, match="is not there"):
            work.do([cube])
        work.do([Piece("square", square, Wanted(number=3))])
        assert work.do([cube]) == [{"cube": 27}]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_was_stopped_is_gone_on_with(tmp_path: Path, jobs: int) -> None:
    """What a piece left in its directory is still there, and what was finished beside it is not made again."""
    pieces = [Piece("square", square, Wanted(number=5)), Piece("stops", stops_once, Wanted())]
    with work_in(tmp_path, jobs).open() as work:
        work.do(pieces[:1])
    with pytest.raises(RewardError, match="went away"), work_in(tmp_path, jobs).open() as work:
        work.do(pieces)
    assert not list(tmp_path.glob("pieces/stops-once-*[0-9a-f]/result.json"))
    with work_in(tmp_path, jobs).open() as work:
        assert work.do(pieces)[1] == {"went_on": "done"}
    assert made(tmp_path) == ["5"]


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [(breaks, ZeroDivisionError, "by nothing"), (dies, ResourceError, "died")],
)
def test_a_piece_that_fails_in_another_process(
    tmp_path: Path, make: object, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said), work_in(tmp_path, 2).open() as work:
        work.do([Piece("bad", make, Wanted())])  # pyright: ignore[reportArgumentType]


def test_nobody_else_may_be_at_work_there(tmp_path: Path) -> None:
    with work_in(tmp_path).open(), pytest.raises(InputError, match="at work"):
        work_in(tmp_path).open().__enter__()
    with work_in(tmp_path).open():
        pass  # it has been given back


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}', "[" * 100_000])
def test_a_result_that_cannot_be_read_is_said(tmp_path: Path, text: str) -> None:
    piece = Piece("square", square, Wanted())
    with work_in(tmp_path).open() as work:
        work.do([piece])
        path = tmp_path / "pieces" / piece.key / RESULT
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            work.do([piece])
    assert str(path.parent) in caught.value.do
    assert path.read_text() == text


def test_what_is_no_number_was_not_measured() -> None:
    assert plain({"a": (float("nan"), float("inf"), 1.5, "nan")}) == {"a": [None, None, 1.5, "nan"]}


def test_what_another_version_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one version it is found; another may do the same settings otherwise."""
    piece = Piece("square", square, Wanted(number=3))
    counts: list[tuple[int, int]] = []
    for version in ("0.1.0", "0.1.0", "0.2.0"):
        monkeypatch.setattr(kleash, "__version__", version)
        with work_in(tmp_path).open() as work:
            assert work.do([piece])[0]["square"] == 9
            counts.append((work.made, work.found))
    assert counts == [(1, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, False)]
)
def test_only_of_a_full_disk_is_it_said_to_free_some(number: int, full: bool) -> None:
    error = unwritable(Path("there"), OSError(number, os.strerror(number)))
    assert error.got == os.strerror(number)
    assert ("free some space" in error.do) is full
    assert "another directory with --out" in error.do
