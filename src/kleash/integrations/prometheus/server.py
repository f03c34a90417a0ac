"""A page over HTTP, to whoever asks, and no more than that: GET, one path, nothing kept open.

A client gets a few seconds in all, however slowly it sends or reads, and a request of a few kilobytes; beyond a few
clients at once a further one is turned away. The page is made in the client's own thread.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import BoundedSemaphore, Event, Thread
from time import monotonic
from types import TracebackType
from typing import Self

from kleash.errors import InputError
from kleash.integrations.prometheus.text import CONTENT_TYPE

CLIENTS = 4
"""Served at once."""
SECONDS = 2.0
"""That one gets, from its connection to the last byte."""
MAX_REQUEST = 8192
"""Bytes of a request's head."""
PACE = 0.02
"""Seconds from one client to the next: a flood of them must not take the processor from what is watched."""
POLL = 0.2
"""Seconds in which an end is noticed."""
PATH = "/metrics"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
}


class PageServer:
    """Serves a page from its making to its end.

    Args:
        page: what is served; called in another thread, for each scrape.
        host: name or address to listen at.
        port: 0: one that is free.
        seconds: that a client gets.

    Raises:
        InputError: it can't listen there.
    """

    def __init__(
        self, page: Callable[[], bytes], host: str, port: int, *, seconds: float = SECONDS
    ) -> None:
        self._page, self._seconds = page, seconds
        self._listener = _listen(host, port)
        self._listener.settimeout(POLL)
        self.port: int = self._listener.getsockname()[1]
        self._free, self._over = BoundedSemaphore(CLIENTS), Event()
        self._thread = Thread(target=self._serve, name="kleash-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; who is being served has its seconds."""
        self._over.set()
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._over.wait(PACE):
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:  # no file descriptor is free, or the client is gone again
                self._over.wait(POLL)
                continue
            if not self._free.acquire(blocking=False):
                client.close()
                continue
            try:
                Thread(target=self._answer, args=(client,), daemon=True).start()
            except RuntimeError:  # the system has no thread left
                self._free.release()
                client.close()

    def _answer(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):
                end = monotonic() + self._seconds
                answer = self._reply(_read_head(client, end))
                client.settimeout(_left(end))
                client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
        finally:
            self._free.release()

    def _reply(self, head: bytes | None) -> bytes:
        if head is None:
            return _response(431)
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return _response(400)
        if parts[0] != b"GET":
            return _response(405)
        if parts[1].split(b"?", 1)[0] != PATH.encode():
            return _response(404)
        return _response(200, self._page())


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError, OverflowError) as error:
        raise InputError(
            f"cannot serve metrics at {host!a}, port {port}",
            expected="an address of this machine, and a port that nobody listens at",
            got=getattr(error, "strerror", None) or str(error),
            do="choose another --metrics-port, or 0 for any that is free",
        ) from error


def _left(end: float) -> float:
    """Seconds to the end.

    Raises:
        TimeoutError: there are none.
    """
    left = end - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read_head(client: socket.socket, end: float) -> bytes | None:
    """A request up to its empty line; None where it is too long.

    Raises:
        OSError: the client is too slow, or gone.
    """
    head = b""
    while b"\r\n\r\n" not in head:
        client.settimeout(_left(end))
        more = client.recv(MAX_REQUEST)
        if not more:
            raise ConnectionError
        head += more
        if len(head) > MAX_REQUEST:
            return None
    return head


def _response(status: int, body: bytes | None = None) -> bytes:
    reason = _REASONS[status]
    body = f"{status} {reason}; the figures are at {PATH}\n".encode() if body is None else body
    lines = [
        f"HTTP/1.1 {status} {reason}",
        f"Content-Type: {CONTENT_TYPE if status == 200 else 'text/plain; charset=utf-8'}",
        f"Content-Length: {len(body)}",
        *(["Allow: GET"] if status == 405 else []),
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
