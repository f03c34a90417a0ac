"""A reward server in the test's own process, which does to a request whatever a test says."""

import json
import ssl
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Asked(NamedTuple):
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    document: dict[str, list[str]]


Answer = Callable[[BaseHTTPRequestHandler, Asked], None]


class Served:
    """A server that runs, and what it has been asked."""

    def __init__(self, url: str, answer: Answer) -> None:
        self.url, self.answer = url, answer
        self.requests: list[Asked] = []
        self._lock = Lock()

    def take(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        with self._lock:
            self.requests.append(asked)
        self.answer(handler, asked)


@contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Generator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            served.take(self, Asked(self.path, dict(self.headers), json.loads(body)))

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients of these tests hang up."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        served = Served(f"{scheme}://127.0.0.1:{server.server_port}/score", answer)
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def reply(body: bytes, status: int = 200, **headers: str) -> Answer:
    """That answer to everything; a header's name has _ for -."""

    def answer(handler: BaseHTTPRequestHandler, _: Asked) -> None:
        handler.send_response(status)
        said = {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}
        for name, value in said.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def raw(data: bytes) -> Answer:
    """Those bytes instead of an answer."""

    def answer(handler: BaseHTTPRequestHandler, _: Asked) -> None:
        handler.wfile.write(data)

    return answer


def drip(first: bytes, drop: bytes) -> Answer:
    """An answer that never stops coming, a drop at a time."""

    def answer(handler: BaseHTTPRequestHandler, _: Asked) -> None:
        handler.wfile.write(first)
        while True:
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.02)

    return answer


def lengths(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
    """The reward of these tests: how long a response is."""
    scores = [len(text) for text in asked.document["responses"]]
    reply(json.dumps({"scores": scores}).encode())(handler, asked)


def certified(directory: Path, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """A server's end of TLS, and its certificate, which no authority has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reward")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, keyfile = directory / "reward.pem", directory / "reward.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    keyfile.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, keyfile)
    return context, pem
