"""A reward over HTTP, against a real server that does what servers do when they fail, and what hostile ones might."""

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock
from types import FrameType
from typing import Any

import pytest

from kleash.errors import ConfigError, RewardError
from kleash.rewards.config import RewardConfig, ServerConfig
from kleash.rewards.scorers import load_scorer
from kleash.rewards.server import Means, Server
from tests.rewards.serving import Answer, Asked, certified, drip, lengths, raw, reply, serving

QUICK = {"backoff_s": 0.0, "retries": 2, "timeout_s": 5.0}
TEXTS = ["a", "bb", "ccc"]
SCORES = b'{"scores": [1, 2, 3]}'


def ask(url: str, **settings: Any) -> list[float]:
    config = ServerConfig.model_validate({**QUICK, **settings})
    return load_scorer(url, server=config).score(["p"] * len(TEXTS), TEXTS)


def refused(url: str, **settings: Any) -> RewardError:
    """The error, which says where, what and how to go on."""
    with pytest.raises(RewardError) as error:
        ask(url, **settings)
    assert error.value.exit_code == 5
    assert url in error.value.what
    assert "--resume" in error.value.do
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    return error.value


def test_scores_come_back_in_order_whatever_order_the_requests_end_in() -> None:
    texts = ["x" * n for n in range(23)]

    waiting, most, lock = [0], [0], Lock()

    def slower_for_the_first(handler: Any, asked: Asked) -> None:
        with lock:
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
        time.sleep(0.01 * (10 - len(asked.document["responses"][0]) % 10))
        with lock:  # before it is answered: after that the next request may come at once
            waiting[0] -= 1
        lengths(handler, asked)

    with serving(slower_for_the_first) as served:
        config = ServerConfig(batch_size=2, concurrency=3)
        server = Server(served.url, config)
        found = [server.score([f"p{n}" for n in range(23)], texts) for _ in range(2)]
    assert found == [[float(n) for n in range(23)]] * 2
    assert most[0] == 3
    asked = [each.document for each in served.requests[:12]]
    assert sorted(len(each["responses"]) for each in asked) == [1] + [2] * 11
    for each in asked:  # prompts stay beside their responses
        assert each["prompts"] == [f"p{len(text)}" for text in each["responses"]]


def test_what_is_sent() -> None:
    with serving(lengths) as served:
        assert load_scorer(served.url).score(["é\ud800", ""], ["", "\n\x00"]) == [0.0, 2.0]
        assert load_scorer(served.url).score([], []) == []
    (asked,) = served.requests
    assert asked.path == "/score"
    assert asked.headers["Content-Type"] == "application/json"
    assert asked.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in asked.headers
    assert asked.document == {"prompts": ["é\ud800", ""], "responses": ["", "\n\x00"]}


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lengths) as served:
        assert ask(served.url) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (reply(b"no", 400), "HTTP 400, beginning 'no'"),
        (reply(b"", 404), "HTTP 404, empty"),
        (reply(b"\x1b[31mred", 422), r"HTTP 422, beginning '\x1b[31mred'"),
        (reply(b"", 204), "HTTP 204"),
        (reply(b"", 302, Location="/elsewhere"), "HTTP 302, a redirect"),
        (reply(b"", 308, Location="http://127.0.0.1:9/"), "HTTP 308, a redirect"),
        (reply(SCORES, Content_Type="text/plain"), "Content-Type 'text/plain'"),
        (reply(SCORES, Content_Encoding="gzip"), "Content-Encoding 'gzip'"),
        (reply(b"<html>"), "no JSON"),
        (reply(b"[" * 100_000), "no JSON (RecursionError)"),
        (reply(b'{"scores": [1, NaN, 3]}'), "nan for response 1"),
        (reply(b'{"scores": [1, 2]}'), "2 scores"),
        (reply(b'{"scores": "abc"}'), "str 'abc'"),
        (reply(SCORES + b" " * 2**20), "a reply of more than 1048576 bytes"),
    ],
)
def test_what_asking_again_would_not_mend_is_asked_once(answer: Answer, got: str) -> None:
    with serving(answer) as served:
        error = refused(served.url, retries=2)
    assert got in error.got
    assert len(served.requests) == 1


def test_an_endless_reply_is_read_to_its_bound() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"

    def flood(handler: Any, asked: Asked) -> None:
        handler.wfile.write(head)
        while True:
            handler.wfile.write(b" " * 65536)

    began = time.monotonic()
    with serving(flood) as served:
        assert "more than 4096 bytes" in refused(served.url, max_reply_bytes=4096).got
    assert time.monotonic() - began < 4
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        *((reply(b"", status), f"HTTP {status}") for status in (408, 429, 500, 502, 503)),
        (reply(SCORES, Content_Length="99"), "a reply that breaks off"),
        (reply(SCORES, Content_Length="9" * 30), "a reply that breaks off"),
        (raw(b""), "RemoteDisconnected"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "BadStatusLine"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "HTTPException"),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"), "LineTooLong"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "IncompleteRead"),
    ],
)
def test_what_may_pass_is_asked_again_as_often_as_is_said(answer: Answer, got: str) -> None:
    with serving(answer) as served:
        error = refused(served.url, retries=2)
    assert got in error.got
    assert "at attempt 3" in error.got
    assert len(served.requests) == 3


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler, asked: time.sleep(1.5),
        drip(b"HTTP/1.1 200 ", b"O"),
        drip(HEAD, b"X: y\r\n"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(HEAD + b"\r\n", b" "),
        drip(HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
        drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    ],
    ids=["silence", "status", "headers", "continue", "to the end", "length", "chunks", "size"],
)
def test_a_request_has_its_time_however_slowly_bytes_come(answer: Answer) -> None:
    with serving(answer) as served:
        began = time.monotonic()
        error = refused(served.url, timeout_s=0.3, retries=0)
        taken = time.monotonic() - began
    # What has more headers than there may be ends sooner.
    assert "no whole reply within 0.3 s" in error.got or "HTTPException" in error.got
    assert taken < 1.2


def test_a_server_that_reads_nothing_has_no_more_time() -> None:
    """The request itself does not go out: more than the buffers between hold."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        server = Server(url, ServerConfig(timeout_s=0.3, retries=0))
        began = time.monotonic()
        with pytest.raises(RewardError, match="no whole reply within"):
            server.score(["p"], ["x" * 30_000_000])
        assert time.monotonic() - began < 2


def test_nobody_there_and_no_such_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    error = refused(url)
    assert "ConnectionRefusedError" in error.got
    assert error.do.startswith("start the server")
    assert "gaierror" in refused("http://reward.invalid/", retries=0).got


def test_one_batch_that_fails_cuts_the_others() -> None:
    """Whoever waits for an answer that no longer counts, or to ask again, is not waited for."""
    release = Event()

    def answer(handler: Any, asked: Asked) -> None:
        text = asked.document["responses"][0]
        if text == "a":
            release.wait(20)
        elif text == "bb":
            reply(b"", 503)(handler, asked)
        else:
            time.sleep(0.2)
            reply(b"", 400)(handler, asked)

    with serving(answer) as served:
        began = time.monotonic()
        settings = {"batch_size": 1, "backoff_s": 30.0, "timeout_s": 20.0, "retries": 3}
        error = refused(served.url, **settings)
        assert time.monotonic() - began < 2
        release.set()
    assert "HTTP 400" in error.got
    assert len(served.requests) == 3


def test_an_interrupt_ends_the_wait_for_a_server_that_hangs() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    release = Event()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with serving(lambda handler, asked: (release.wait(30), None)[1]) as served:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                ask(served.url, timeout_s=30.0, batch_size=1)
            assert time.monotonic() - began < 2
            # Nor is there a thread of it that the process would have to wait for at its end.
            while any(thread.name.startswith("reward_") for thread in threading.enumerate()):
                assert time.monotonic() - began < 4
                time.sleep(0.01)
            release.set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Faked:
    """A clock that pauses move; what was waited for."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, list[float]()

    def pause(self, over: Event, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def means(self, share: Callable[[], float]) -> Means:
        return Means(clock=lambda: self.now, date=lambda: 0.0, share=share, pause=self.pause)


def failing(times: int, answer: Answer) -> Answer:
    """Fails so often, then does what it should."""
    left, lock = [times], Lock()

    def turns(handler: Any, asked: Asked) -> None:
        with lock:
            left[0] -= 1
            fails = left[0] >= 0
        (answer if fails else lengths)(handler, asked)

    return turns


def test_waits_are_drawn_below_bounds_that_double() -> None:
    faked, draw = Faked(), random.Random(7)
    with serving(failing(4, reply(b"", 500))) as served:
        config = ServerConfig(retries=4, backoff_s=1.0, max_wait_s=4.0)
        server = Server(served.url, config, faked.means(draw.random))
        assert server.score(["p"] * 3, TEXTS) == [1.0, 2.0, 3.0]
    again = random.Random(7)
    assert faked.waits == [again.random() * bound for bound in (1.0, 2.0, 4.0, 4.0)]


@pytest.mark.parametrize(
    ("header", "wait"), [("7", 7.0), ("Thu, 01 Jan 1970 00:00:09 GMT", 9.0), ("soon", 0.5)]
)
def test_retry_after_is_waited_for(header: str, wait: float) -> None:
    faked = Faked()
    with serving(failing(1, reply(b"", 429, Retry_After=header))) as served:
        config = ServerConfig(backoff_s=1.0, max_wait_s=10.0)
        server = Server(served.url, config, faked.means(lambda: 0.5))
        assert server.score(["p"] * 3, TEXTS) == [1.0, 2.0, 3.0]
    assert faked.waits == [wait]


def test_retry_after_beyond_its_bound_ends_the_attempts() -> None:
    with serving(reply(b"", 503, Retry_After="86400")) as served:
        error = refused(served.url, max_wait_s=30.0)
    assert "Retry-After 86400 s, over reward.server.max_wait_s" in error.got
    assert len(served.requests) == 1


def test_the_circuit_opens_and_one_probe_decides() -> None:
    faked = Faked()
    with serving(failing(4, reply(b"", 500))) as served:
        config = ServerConfig(retries=0, trip_after=3, cool_down_s=10.0)
        server = Server(served.url, config, faked.means(lambda: 0.0))

        def scored() -> str:
            try:
                return str(server.score(["p"] * 3, TEXTS))
            except RewardError as error:
                return error.got

        assert ["HTTP 500" in scored() for _ in range(3)] == [True] * 3
        assert "no request sent: 3 attempts in a row had failed" in scored()
        assert len(served.requests) == 3
        faked.now = 10.0  # the probe fails
        assert "HTTP 500" in scored()
        faked.now = 19.9
        assert "no request sent: 4" in scored()
        faked.now = 20.0  # and the next one is answered
        assert [scored(), scored()] == ["[1.0, 2.0, 3.0]"] * 2
        assert len(served.requests) == 6


def test_an_open_circuit_ends_the_attempts_of_all_batches() -> None:
    with serving(reply(b"", 500)) as served:
        refused(served.url, batch_size=1, concurrency=1, retries=50, trip_after=4)
    assert len(served.requests) == 4


def test_a_token_comes_from_the_environment_and_stays_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = "t0p-s3cret-" + "x" * 30
    monkeypatch.setenv("REWARD_TOKEN", token)

    def echo(handler: Any, asked: Asked) -> None:
        reply(json.dumps(asked.headers["Authorization"]).encode(), 403)(handler, asked)

    with serving(lengths) as served:
        assert ask(served.url, token_env="REWARD_TOKEN") == [1.0, 2.0, 3.0]
        assert served.requests[0].headers["Authorization"] == f"Bearer {token}"
    with serving(echo) as served:
        error = refused(served.url, token_env="REWARD_TOKEN")
        assert "beginning '\"Bearer ***\"'" in error.got
        assert "token" in error.do
    config = RewardConfig(model=served.url, server=ServerConfig(token_env="REWARD_TOKEN"))
    assert "s3cret" not in config.model_dump_json() + repr(config) + str(error)


def test_a_redirect_is_not_followed_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    with serving(lengths) as other, serving(reply(b"", 307, Location=other.url)) as served:
        refused(served.url, token_env="REWARD_TOKEN")
    assert (len(served.requests), other.requests) == (1, [])


@pytest.mark.parametrize("token", [None, "", "two words", "line\nX-Header: 1", "tokén"])
def test_no_token_or_none_that_a_header_can_hold(
    token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is None:
        monkeypatch.delenv("REWARD_TOKEN", raising=False)
    else:
        monkeypatch.setenv("REWARD_TOKEN", token)
    with pytest.raises(ConfigError, match="REWARD_TOKEN holds no token") as error:
        ask("http://localhost:1/", token_env="REWARD_TOKEN")
    assert not token or token not in str(error.value)


def test_a_token_crosses_no_network_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    with pytest.raises(ConfigError, match="in plain text"):
        ask("http://reward.example/", token_env="REWARD_TOKEN")


def test_tls_is_of_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, pem = certified(tmp_path)
    with serving(lengths, context) as served:
        error = refused(served.url)
        assert error.got.startswith("a certificate that is not trusted")
        assert "the only attempt" in error.got
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert ask(served.url) == [1.0, 2.0, 3.0]


def test_tls_is_of_the_name_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, pem = certified(tmp_path, "192.0.2.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with serving(lengths, context) as served:
        assert "certificate that is not trusted" in refused(served.url).got


def test_tls_where_there_is_none() -> None:
    with serving(lengths) as served:
        url = served.url.replace("http:", "https:")
        assert "SSLError" in refused(url, retries=0).got


def test_a_slow_reply_over_tls_has_its_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, pem = certified(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with serving(drip(HEAD + b"\r\n", b" "), context) as served:
        began = time.monotonic()
        assert "no whole reply within" in refused(served.url, timeout_s=0.4, retries=0).got
        assert time.monotonic() - began < 1.5


def test_a_label_means_nothing_to_a_server() -> None:
    with pytest.raises(ConfigError, match="a label means nothing to the server"):
        load_scorer("http://localhost:1/", label=1)
