"""What may be said to a reward server and back, without a socket."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import ConfigError
from kleash.rewards.protocol import Address, Fault, Reply, parse_url, read_reply, request_body

JSON = {"content-type": "application/json"}


def said(body: bytes, count: int = 2, status: int = 200, **headers: str) -> list[float] | Fault:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return read_reply(Reply(status, JSON | named, body, whole=True), count)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000/score", Address(False, "localhost", 8000, "/score")),
        ("HTTPS://Reward.example", Address(True, "reward.example", 443, "/")),
        ("http://[::1]:1/a/b", Address(False, "::1", 1, "/a/b")),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://h/x", "http://", "http:///x", "http://h:0/", "http://h:99999/", "http://h:x/"),
        *("http://[::1/", "http://h/a b", "http://h/\r\nX: y", "http://ü/", "http://h/\x00"),
        *("http://h/#part", "//h/x", "http://:80/"),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address") as error:
        parse_url(url)
    assert error.value.exit_code == 2
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "url", ["http://me:s3cret@h/x", "http://s3cret@h/", "http://h/x?key=s3cret", "ftp://a:s3cret@h"]
)
def test_credentials_in_an_address_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_url(url)
    assert "s3cret" not in str(error.value)


@given(st.lists(st.text(), min_size=1), st.lists(st.text()))
def test_a_body_is_ascii_and_gives_the_texts_back(prompts: list[str], texts: list[str]) -> None:
    body = request_body(prompts, texts)
    assert body.isascii()
    assert json.loads(body) == {"prompts": prompts, "responses": texts}


def test_scores_are_read_and_what_stands_beside_them_is_not() -> None:
    assert said(b'{"scores": [1, -2.5e3], "model": {"a": [NaN]}}') == [1.0, -2500.0]
    assert said(b'{"scores": [0, 0]}', content_type="Application/JSON ; charset=utf-8") == [0, 0]


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (b"", "no JSON (JSONDecodeError), empty"),
        (b"<html>", "no JSON (JSONDecodeError), beginning '<html>'"),
        (b"\xff\xfe\x00", "no JSON (UnicodeDecodeError), "),
        (b"[" * 100_000, "no JSON (RecursionError), beginning '[["),
        (b'{"a":' * 100_000, "no JSON (RecursionError)"),
        (b'{"scores": [' + b"9" * 5000 + b", 0]}", "no JSON (ValueError)"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b"null", "a JSON NoneType"),
        (b"{}", 'for "scores": none'),
        (b'{"scores": null}', 'for "scores": NoneType None'),
        (b'{"scores": {"0": 1, "1": 2}}', 'for "scores": dict'),
        (b'{"scores": "12"}', "for \"scores\": str '12'"),
        (b'{"scores": [1]}', "1 scores"),
        (b'{"scores": [1, 2, 3]}', "3 scores"),
        (b'{"scores": [1, NaN]}', "nan for response 1"),
        (b'{"scores": [Infinity, 1]}', "inf for response 0"),
        (b'{"scores": [1, -1e999]}', "-inf for response 1"),
        (b'{"scores": [1, ' + b"9" * 400 + b"]}", "for response 1"),
        (b'{"scores": [true, 1]}', "True for response 0"),
        (b'{"scores": [1, "2"]}', "'2' for response 1"),
        (b'{"scores": [1, null]}', "None for response 1"),
        (b'{"scores": [1, [2]]}', "[2] for response 1"),
    ],
)
def test_what_is_wrong_with_a_reply_is_said_and_not_asked_again(body: bytes, got: str) -> None:
    found = said(body)
    assert isinstance(found, Fault)
    assert found.got.startswith(got) or got in found.got
    assert not found.again
    assert found.got.isprintable()


@pytest.mark.parametrize(
    ("status", "again"),
    [
        *((code, True) for code in (408, 429, 500, 502, 503, 504, 599)),
        *((code, False) for code in (101, 201, 204, 301, 307, 400, 401, 403, 404, 413, 600, 999)),
    ],
)
def test_which_statuses_are_asked_again(status: int, again: bool) -> None:
    found = said(b'{"scores": [1, 2]}', status=status)
    assert isinstance(found, Fault)
    assert (found.again, f"HTTP {status}" in found.got) == (again, True)


def test_headers_that_say_it_is_something_else() -> None:
    body = b'{"scores": [1, 2]}'
    for found in (
        said(body, content_type="text/html"),
        said(body, content_type=""),
        said(body, content_encoding="gzip"),
    ):
        assert isinstance(found, Fault)
        assert not found.again


numbers = st.floats() | st.integers() | st.booleans()
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
documents = values | st.fixed_dictionaries({"scores": values | st.lists(numbers, max_size=4)})


@given(documents.map(lambda x: json.dumps(x).encode()) | st.binary(), st.integers(0, 4))
def test_a_reply_is_finite_floats_of_the_right_count_or_a_fault(body: bytes, count: int) -> None:
    found = said(body, count)
    if isinstance(found, Fault):
        assert found.got.isprintable()
        assert len(found.got) < 1000
    else:
        assert len(found) == count
        assert all(type(score) is float and math.isfinite(score) for score in found)
