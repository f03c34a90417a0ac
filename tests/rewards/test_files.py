"""Files of texts to score."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kleash.errors import InputError
from kleash.rewards.files import read_jsonl, score_file


def test_every_form_of_a_row_is_scored_in_order(
    classifier: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [
        {"text": "the film is good"},
        {"prompt": "the film", "response": " is good"},
        {"prompt": "the film is", "completion": " good", "id": 3},
        {"text": "another"},
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    first, second, third, other = score_file(classifier(), path)
    assert first == pytest.approx(second, abs=1e-6)
    assert first == pytest.approx(third, abs=1e-6)
    assert first != pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": 3}', "line 2: 'text' is not a text"),
        ('{"text": null}', "line 2: 'text' is not a text"),
        ('{"response": "r"}', "line 2: 'prompt' is not a text"),
        ('{"prompt": "p"}', "line 2: 'response' is not a text"),
        ('{"text": "\\ud800"}', "line 2: 'text' is not valid Unicode"),
        ("[1]", "line 2: not a JSON object"),
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError) as error:
        score_file("unused:function", path)
    assert says in error.value.what
    assert str(error.value).isprintable()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(InputError, match="is empty"):
        list(read_jsonl(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="cannot read"):
        list(read_jsonl(tmp_path / "missing.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="cannot read"):
        list(read_jsonl(tmp_path / "latin.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-20])
    with pytest.raises(InputError, match="cannot read"):
        list(read_jsonl(tmp_path / "cut.jsonl.gz"))


@pytest.mark.parametrize("name", ["nul\0.jsonl", "lone\ud800.jsonl", "x" * 300 + ".jsonl", "."])
def test_a_path_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot read") as error:
        list(read_jsonl(tmp_path / name))
    assert str(error.value).isprintable()


def test_a_damaged_gzip_file_says_so(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(json.dumps({"text": "a"}).encode() * 99, mtime=0))
    data[12:20] = b"\xff" * 8
    (tmp_path / "bad.jsonl.gz").write_bytes(data)
    with pytest.raises(InputError, match="cannot read"):
        list(read_jsonl(tmp_path / "bad.jsonl.gz"))


def test_gzip_bom_and_separators_inside_strings(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(gzip.compress('\ufeff{"text": "a\u2028b"}\r\n'.encode()))
    assert [(row.where, row.data) for row in read_jsonl(path)] == [
        (f"{path}, line 1", {"text": "a\u2028b"})
    ]
