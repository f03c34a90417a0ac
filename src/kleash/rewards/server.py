"""A reward that a server gives over HTTP: asked in batches, with patience, and never trusted.

By the standard library's client: there is a body to post and a reply to read, and what has to be exact would have to be
added to another client too. A socket's time-out is of one read, which a server that drips bytes never exceeds; here a
timer cuts the connection. A reply is read up to a size. Redirects, proxies and compressed replies are not followed,
used or asked for, each request has a connection of its own, and a token goes nowhere but to the server that it is for.
"""

import os
import socket
import ssl
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from random import Random
from threading import Event, Lock, Timer
from typing import NamedTuple

from kleash import __version__
from kleash.errors import ConfigError, RewardError
from kleash.rewards.checks import checked, shown
from kleash.rewards.config import ServerConfig
from kleash.rewards.patience import Circuit, admit, backoff, retry_after, settle, withdraw
from kleash.rewards.protocol import (
    LOOPBACK,
    Address,
    Fault,
    Reply,
    parse_url,
    read_reply,
    request_body,
)
from kleash.rewards.tally import REQUESTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What patience rests on; tests hand in their own."""

    clock: Callable[[], float] = time.monotonic
    date: Callable[[], float] = time.time
    """Seconds since 1970, for a Retry-After that is a date."""
    share: Callable[[], float] = field(default_factory=lambda: Random().random)
    """The jitter's draws: a stream of their own, as they change no score and must not move what others draw."""
    pause: Callable[[Event, float], object] = Event.wait
    """Waits so many seconds, or until the event."""


class _Batch(NamedTuple):
    """What one request asks."""

    body: bytes
    size: int


class _Calls:
    """The connections of one scoring, so that all can be cut at once."""

    def __init__(self) -> None:
        self.over = Event()
        self._lock = Lock()
        self._open: set[socket.socket] = set()

    def cut(self) -> None:
        """Ends them, whatever they wait for."""
        self.over.set()
        with self._lock:
            for connection in self._open:
                _shut(connection)

    @contextmanager
    def bounded(self, connection: socket.socket, seconds: float) -> Generator[Event]:
        """Cuts a connection that takes longer; the event then says so."""
        expired = Event()

        def expire() -> None:
            expired.set()
            _shut(connection)

        timer = Timer(max(0.0, seconds), expire)
        timer.daemon = True
        with self._lock:
            self._open.add(connection)
        if self.over.is_set():
            _shut(connection)
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(connection)


class Server:
    """A reward server, and how it has been answering.

    Args:
        url: its address.
        config: how it is asked.
        means: what patience rests on.

    Raises:
        ConfigError: the address is none, or the token cannot be had or must not be sent there.
    """

    def __init__(self, url: str, config: ServerConfig, means: Means | None = None) -> None:
        self.url, self.config, self.means = url, config, means or Means()
        self.address = parse_url(url)
        self._token = _token(config, self.address)
        self._tls = ssl.create_default_context() if self.address.secure else None
        self._circuit, self._lock = Circuit(), Lock()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """A score for each response, in order, whatever order the requests end in.

        Raises:
            RewardError: a request was not answered by scores, however often it was made.
        """
        size, calls = self.config.batch_size, _Calls()
        batches = [
            _Batch(request_body(prompts[at : at + size], texts), len(texts))
            for at in range(0, len(responses), size)
            if (texts := responses[at : at + size])
        ]
        workers = max(1, min(self.config.concurrency, len(batches)))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="reward")
        try:
            asked = [pool.submit(self._ask, calls, batch) for batch in batches]
            done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            for error in [each.exception() for each in asked if each in done]:
                if error is not None:
                    raise error
            scores = [score for each in asked for score in each.result()]
        finally:
            calls.cut()
            pool.shutdown(wait=False, cancel_futures=True)
        return checked(self.url, scores, responses)

    def _ask(self, calls: _Calls, batch: _Batch) -> list[float]:
        """The scores of one batch, by as many attempts as it takes."""
        config, attempt = self.config, 0
        while True:
            answer, asked = self._attempt(calls, batch)
            if not isinstance(answer, Fault):
                return answer
            attempt += 1
            seconds = max(self._backoff(attempt - 1), asked or 0.0)
            if seconds > config.max_wait_s:
                answer = answer._replace(
                    got=f"{answer.got}, and Retry-After {seconds:g} s, over reward.server.max_wait_s"
                )
                break
            if not answer.again or attempt > config.retries:
                break
            self.means.pause(calls.over, seconds)
            if calls.over.is_set():
                break
        raise RewardError(
            f"the reward server {self.url} gave no scores",
            expected=f'HTTP 200 with JSON {{"scores": [...]}}, {batch.size} finite numbers',
            got=f"{answer.got}, at {'the only attempt' if attempt == 1 else f'attempt {attempt}'}",
            do=f"{answer.do}; a run goes on with kleash train --resume when it is mended",
        )

    def _backoff(self, attempt: int) -> float:
        config = self.config
        return backoff(
            attempt,
            first_s=config.backoff_s,
            most_s=config.max_wait_s,
            share=self.means.share(),
        )

    def _attempt(self, calls: _Calls, batch: _Batch) -> tuple[list[float] | Fault, float | None]:
        """Scores or what there is instead, and the seconds after which the server wants to be asked again."""
        config, clock = self.config, self.means.clock
        with self._lock:
            admitted = admit(self._circuit, clock(), cool_down_s=config.cool_down_s)
            if admitted is None:
                return self._tripped(), None
            self._circuit = admitted
        answered, seconds = False, None
        try:
            reply = self._post(calls, batch.body)
            answer = reply if isinstance(reply, Fault) else self._read(reply, batch.size)
            answered = not isinstance(answer, Fault)
            if isinstance(reply, Reply):
                seconds = retry_after(reply.headers.get("retry-after"), self.means.date())
        finally:
            with self._lock:
                self._circuit = (
                    withdraw(self._circuit)
                    if calls.over.is_set()
                    else settle(
                        self._circuit, clock(), answered=answered, trip_after=config.trip_after
                    )
                )
        if answered or not calls.over.is_set():
            host = f"{self.address.host}:{self.address.port}"
            REQUESTS.add(host, "answered" if answered else "failed")
        return answer, seconds if isinstance(answer, Fault) and answer.again else None

    def _read(self, reply: Reply, count: int) -> list[float] | Fault:
        """What a reply says, without the token where it gives that back."""
        answer = read_reply(reply, count)
        if self._token is None or not isinstance(answer, Fault):
            return answer
        token = self._token
        masked = read_reply(
            reply._replace(
                headers={name: text.replace(token, "***") for name, text in reply.headers.items()},
                body=reply.body.replace(token.encode(), b"***"),
            ),
            count,
        )
        return masked if isinstance(masked, Fault) else answer._replace(got="what holds the token")

    def _tripped(self) -> Fault:
        failures, seconds = self._circuit.failures, self.config.cool_down_s
        return Fault(
            f"no request sent: {failures} attempts in a row had failed, less than {seconds:g} s ago",
            again=False,
            do="start or mend the server",
        )

    def _post(self, calls: _Calls, body: bytes) -> Reply | Fault:
        """One request on a connection of its own, in `timeout_s` from connecting to the last byte."""
        seconds, most = self.config.timeout_s, self.config.max_reply_bytes
        end = time.monotonic() + seconds
        connection = self._connection()
        expired = None
        try:
            connection.connect()
            line: socket.socket = connection.sock
            with calls.bounded(line, end - time.monotonic()) as expired:
                connection.request("POST", self.address.path, body, self._headers())
                with connection.getresponse() as response:
                    reply = _read(response, most)
        except (OSError, HTTPException, ValueError) as error:
            return _timed_out(seconds) if _is_late(expired, error) else _transport_fault(error)
        finally:
            connection.close()
        if expired.is_set():  # the end of a reply that was cut looks like the end of a reply
            return _timed_out(seconds)
        if len(reply.body) > most:
            do = "send the scores alone, or raise reward.server.max_reply_bytes"
            return Fault(f"a reply of more than {most} bytes", again=False, do=do)
        return reply

    def _connection(self) -> HTTPConnection:
        _, host, port, _ = self.address
        seconds = self.config.timeout_s
        if self._tls is None:
            return HTTPConnection(host, port, timeout=seconds)
        return HTTPSConnection(host, port, timeout=seconds, context=self._tls)

    def _headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",
            "User-Agent": f"kleash/{__version__}",
        }
        return (
            headers
            if self._token is None
            else {**headers, "Authorization": f"Bearer {self._token}"}
        )


def _read(response: HTTPResponse, most: int) -> Reply:
    """A reply, one byte more than the most there may be of its body."""
    headers = {name.lower(): value for name, value in response.getheaders()}
    body = response.read(most + 1)
    length = headers.get("content-length", "")
    declared = min(int(length[:19]), most + 1) if length.isdecimal() else 0
    return Reply(response.status, headers, body, whole=len(body) >= declared)


def _is_late(expired: Event | None, error: Exception) -> bool:
    return isinstance(error, TimeoutError) or (expired is not None and expired.is_set())


def _timed_out(seconds: float) -> Fault:
    do = "look at the server, or raise reward.server.timeout_s"
    return Fault(f"no whole reply within {seconds:g} s", again=True, do=do)


def _transport_fault(error: Exception) -> Fault:
    """What a connection that failed says of it."""
    said = f"{type(error).__name__}: {shown(str(error))}"
    if isinstance(error, ssl.SSLCertVerificationError):
        do = "have the server show a certificate for its name; SSL_CERT_FILE names one's own authorities"
        return Fault(f"a certificate that is not trusted ({said})", again=False, do=do)
    if isinstance(error, ConnectionRefusedError | socket.gaierror):
        return Fault(said, again=True, do="start the server, or correct its address")
    return Fault(said, again=True)


def _shut(connection: socket.socket) -> None:
    """Wakes whoever reads or writes, also beneath TLS, whose own shutdown would go on in plain text."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _token(config: ServerConfig, address: Address) -> str | None:
    """The bearer token, from the environment.

    Raises:
        ConfigError: there is none, it cannot be a header, or it would cross a network in plain text. It is never shown.
    """
    name = config.token_env
    if name is None:
        return None
    token = os.environ.get(name, "")
    if not (token.isascii() and token.isprintable()) or not token or " " in token:
        raise ConfigError(
            f"the environment variable {name} holds no token",
            expected="printable ASCII without spaces, as reward.server.token_env names it",
            got="something else, which is not shown" if token else "nothing",
            do=f"set {name}, or remove reward.server.token_env",
        )
    if not address.secure and address.host not in LOOPBACK:
        raise ConfigError(
            f"a token is not sent to {address.host} in plain text",
            expected="an address with https://, or one of this machine",
            got="http://",
            do="serve the reward over TLS, or remove reward.server.token_env",
        )
    return token
