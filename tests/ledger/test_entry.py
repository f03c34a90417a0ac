"""The bytes of an entry are a promise; anything that is not those bytes is refused."""

import contextlib
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import TamperError
from kleash.ledger.entry import (
    MAX_DEPTH,
    MAX_LINE,
    ZERO_LEAF,
    encode,
    encode_entry,
    hash_line,
    parse_entry,
    parse_object,
)

TIME = "2030-01-02T03:04:05.678901Z"
GOLDEN = (
    b'{"body":{"kl":0.5,"note":"\\u03b2","values":[1,"nan"]},'
    b'"prev":"0000000000000000000000000000000000000000000000000000000000000000",'
    b'"seq":0,"time":"2030-01-02T03:04:05.678901Z","type":"run.started","v":2}'
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_golden_bytes_and_hash() -> None:
    body = {"note": "β", "kl": 0.5, "values": (1, float("nan"))}
    line = encode_entry(seq=0, type="run.started", time=TIME, body=body, prev=ZERO_LEAF)

    assert line == GOLDEN
    assert hash_line(line) == hashlib.sha256(b"\x00" + GOLDEN).hexdigest()
    assert parse_entry(GOLDEN).leaf == hash_line(line)
    assert parse_entry(GOLDEN).body == {"kl": 0.5, "note": "β", "values": [1, "nan"]}


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_what_is_written_is_read_back_and_has_one_encoding(body: dict) -> None:
    line = encode_entry(seq=7, type="update", time=TIME, body=body, prev="a" * 64)
    entry = parse_entry(line)

    assert (entry.seq, entry.type, entry.time, entry.prev) == (7, "update", TIME, "a" * 64)
    assert encode(entry.body) == encode(body)
    assert line.isascii()
    assert b"\n" not in line


def test_text_that_would_move_a_cursor_is_escaped() -> None:
    assert encode({"x": "\x1b[2J\u202e\x9b\r\n"}) == b'{"x":"\\u001b[2J\\u202e\\u009b\\r\\n"}'


@given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_a_changed_byte_changes_the_hash_or_is_refused(place: int, flip: int) -> None:
    line = bytearray(GOLDEN)
    line[place] ^= flip
    with contextlib.suppress(TamperError):
        assert parse_entry(bytes(line)).leaf != hash_line(GOLDEN)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1.0e0}',
        b'{"a":"\xc3\xa9"}',
        b'{"a":"\xff"}',
        b'{"a":1}\r',
        b"\xef\xbb\xbf{}",
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a":"' + b"x" * MAX_LINE + b'"}',
    ],
    ids=lambda line: repr(line[:16]),
)
def test_json_with_two_readings_or_a_hostile_shape_is_refused(line: bytes) -> None:
    with pytest.raises(TamperError):
        parse_object(line)


def test_the_deepest_and_longest_object_allowed_is_read() -> None:
    deep = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    long = b'{"a":"' + b"x" * (MAX_LINE - 8) + b'"}'

    assert encode(parse_object(deep)) == deep
    assert encode(parse_object(long)) == long


@pytest.mark.parametrize(
    "change",
    [
        {"v": 3},
        {"v": 0},
        {"v": True},
        {"v": 1.0},
        {"seq": "0"},
        {"seq": False},
        {"type": "Run Started"},
        {"type": "\x1b[31m"},
        {"type": None},
        {"time": "2030-01-02"},
        {"time": "2030-01-02T03:04:05.678901Z\n"},
        {"time": "203\u0660-01-02T03:04:05.678901Z"},  # a digit too, and not one of these
        {"prev": "A" * 64},
        {"prev": ""},
        {"body": []},
        {"extra": 1},
    ],
)
def test_a_field_of_another_form_is_refused(change: dict) -> None:
    with pytest.raises(TamperError, match="not a ledger entry"):
        parse_entry(encode({**json.loads(GOLDEN), **change}))


@pytest.mark.parametrize("field", ["v", "seq", "type", "time", "prev", "body"])
def test_a_missing_field_is_refused(field: str) -> None:
    data = json.loads(GOLDEN)
    del data[field]

    with pytest.raises(TamperError, match="expected: the fields body, prev, seq, time, type, v"):
        parse_entry(encode(data))
