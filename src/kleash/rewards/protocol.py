"""What is said to a reward server and what may be said back: addresses, bodies and replies, without a socket.

The protocol is in docs/rewards.md: JSON {"prompts": [...], "responses": [...]} is posted, {"scores": [...]} comes back.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kleash.errors import ConfigError
from kleash.rewards.checks import shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Of the 4xx those that another attempt may mend."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Address(NamedTuple):
    """Where a reward is served."""

    secure: bool
    """Whether by TLS."""
    host: str
    port: int
    path: str


class Reply(NamedTuple):
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    """As much of it as was read."""
    whole: bool
    """Whether that is all of it."""


class Fault(NamedTuple):
    """Why a request brought no scores."""

    got: str
    again: bool
    """Whether the same request may fare better later."""
    do: str = "look at the server's log"


def is_url(spec: str) -> bool:
    """Whether a scorer's name is the address of a server.

    Examples:
        >>> is_url("http://localhost:8000/score"), is_url("mine:reward")
        (True, False)
    """
    return _URL.match(spec) is not None


def parse_url(url: str) -> Address:
    """The parts of an address.

    Raises:
        ConfigError: it is none that can be asked, or holds what a record of the run must not: it is written to
            config.json and the ledger, so that credentials have no place in it. What might be one is not shown.

    Examples:
        >>> parse_url("https://reward.example/v1/score")
        Address(secure=True, host='reward.example', port=443, path='/v1/score')
    """
    secret = "@" in url or "?" in url
    got = "one that may hold a credential, and is not shown" if secret else shown(url)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _no_address("plain ASCII without spaces", got)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # a port that is none, a bracket without its other
        raise _no_address("a host and a port up to 65535", got) from error
    if parts.scheme not in ("http", "https"):
        raise _no_address("http:// or https://", got)
    if "@" in parts.netloc:
        raise _no_address("no user and password in it", got, "name reward.server.token_env")
    if parts.query or parts.fragment or "?" in url:
        raise _no_address(
            "no ? or # in it", got, "serve it at a path; name reward.server.token_env"
        )
    if not host or port == 0:
        raise _no_address("a host and a port", got)
    secure = parts.scheme == "https"
    return Address(secure, host, port or (443 if secure else 80), parts.path or "/")


def request_body(prompts: Sequence[str], responses: Sequence[str]) -> bytes:
    r"""What is posted: JSON in ASCII, whatever the texts hold.

    Examples:
        >>> request_body(["a"], ["β"])
        b'{"prompts": ["a"], "responses": ["\\u03b2"]}'
    """
    return json.dumps({"prompts": list(prompts), "responses": list(responses)}).encode("ascii")


def read_reply(reply: Reply, count: int) -> list[float] | Fault:
    """The scores in a reply, a finite number each, or what is wrong with it.

    Args:
        reply: of a server; nothing in it is trusted.
        count: responses that were sent.

    Examples:
        >>> as_json = {"content-type": "application/json"}
        >>> read_reply(Reply(200, as_json, b'{"scores": [1, 0.5]}', whole=True), count=2)
        [1.0, 0.5]
        >>> read_reply(Reply(200, as_json, b'{"scores": [1]}', whole=True), count=2).got
        '1 scores'
    """
    status = reply.status
    if status != HTTPStatus.OK:
        return _refusal(reply)
    if not reply.whole:
        return Fault("a reply that breaks off", again=True)
    kind = reply.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        return Fault(f"Content-Type {shown(kind)}, {_start(reply.body)}", again=False)
    coding = reply.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        return Fault(f"Content-Encoding {shown(coding)}, which was not asked for", again=False)
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        return Fault(f"no JSON ({type(error).__name__}), {_start(reply.body)}", again=False)
    return _scores(document, count)


def _scores(document: Any, count: int) -> list[float] | Fault:
    if not isinstance(document, dict):
        return Fault(f"a JSON {type(document).__name__}, not an object", again=False)
    scores: Any = document.get("scores")
    if not isinstance(scores, list):
        what = f"{type(scores).__name__} {shown(scores)}" if "scores" in document else "none"
        return Fault(f'for "scores": {what}', again=False)
    if len(scores) != count:
        return Fault(f"{len(scores)} scores", again=False)
    for index, score in enumerate(scores):
        # A JSON true is a bool, which Python takes for a number.
        if type(score) not in (int, float) or not _is_finite(score):
            return Fault(f"{shown(score)} for response {index} of the request", again=False)
    return [float(score) for score in scores]


def _is_finite(score: float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer that no float holds
        return False


def _refusal(reply: Reply) -> Fault:
    """What a status other than 200 means."""
    status = reply.status
    if 300 <= status < 400:
        do = "name the address that it leads to: redirects are not followed"
        return Fault(f"HTTP {status}, a redirect", again=False, do=do)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        do = "look at the token in the environment variable that reward.server.token_env names"
        return Fault(f"HTTP {status}, {_start(reply.body)}", again=False, do=do)
    again = status in _AGAIN or 500 <= status < 600
    return Fault(f"HTTP {status}, {_start(reply.body)}", again=again)


def _start(body: bytes) -> str:
    return f"beginning {shown(body[:400].decode('utf-8', 'replace'))}" if body else "empty"


def _no_address(expected: str, got: str, do: str = "correct the address") -> ConfigError:
    return ConfigError(
        "that is no address of a reward server",
        expected=f"one like http://localhost:8000/score, with {expected}",
        got=got,
        do=do,
    )
