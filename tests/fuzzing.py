"""What reads documents that others wrote, valid ones to begin with, and the laws that hold of whatever it is given.

Of each target: only the exceptions that it declares leave it; what it took is what would be written; what was signed is
all that is taken as signed.
"""

import hashlib
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, replace
from io import StringIO
from itertools import count, cycle, repeat
from pathlib import Path
from typing import Any

from kleash import guard
from kleash.audit.attestation import FileDigest, statement
from kleash.audit.attestation import check as attested
from kleash.audit.claims import read_claims
from kleash.config import build, override, read_toml, resolved
from kleash.errors import ConfigError, InputError, KleashError, RewardError, TamperError
from kleash.guard import Evidence, GuardConfig
from kleash.ledger import Ledger, SigningKey, encode, sign_checkpoint, verify_chain
from kleash.ledger.entry import parse_entry
from kleash.ledger.envelope import carried_keys, open_envelope, sign_envelope
from kleash.ledger.keyfile import create_signing_key, read_signing_key
from kleash.ledger.keys import parse_vkey
from kleash.ledger.manifest import MANIFEST_FILE, check_sealed, seal
from kleash.ledger.note import note_text, open_note, parse_checkpoint
from kleash.replay import check_sequence, replay
from tests.guarded_run import FACTS, GUARD, KL, bodies, entries_of

PIECES = (
    *(bytes([byte]) for byte in b"\n\r\t\x00\xff \"'{}[],:=.+-#_/\\019ae"),
    *(b"\n\n", b"-1", b"0.0", b"-0.0", b"1e999", b"NaN", b"nan", b"inf", b"null", b"true", b"[]"),
    *(b"{}", b'""', b"9" * 20, b"9" * 5000, b"0x" + b"f" * 5000, b"\\u0660", b"\\ud800", b"=="),
    *("٣".encode(), "— ".encode(), "é".encode(), b"a." * 2000, b"[" * 2000, b'{"a":' * 20),
)
"""What a mutation puts in: what parsers are known to trip over."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 10**30, 0.0, -0.0, 1.0, 0.5, -1.0, 1e308, 5e-324),
    *("", "nan", "inf", "-inf", "x", "accept", "shrink", "reject", "rollback", "halt"),
    *("response", "token", "k1", "a" * 64, [], {}, [0], [1], ["x"], [None], {"x": 1}),
)
"""What a value in a JSON document is replaced by."""


class LawError(AssertionError):
    """A law that does not hold."""


@dataclass(frozen=True)
class Target:
    """Something that reads documents."""

    seeds: Sequence[bytes]
    """Valid ones."""
    check: Callable[[bytes], bool]
    """Whether a document was taken; raises what is a finding."""


def need(holds: bool, law: str) -> None:
    if not holds:
        raise LawError(law)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A few changes to a document."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randint(0, len(changed))
        end = min(len(changed), at + draw.choice((1, 1, 2, 8, 64)))
        kind = draw.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at:end]
        elif kind == 2:
            changed[at:at] = draw.choice(PIECES)
        elif kind == 3:
            changed[at:end] = draw.choice(PIECES)
        elif kind == 4:
            changed[at:at] = changed[draw.randint(0, len(changed)) :][:64]
        elif draw.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values inside a JSON value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
    return [each for key, item in items for each in [(*path, key), *paths_in(item, (*path, key))]]


def edited(value: Any, data: bytes) -> Any:
    """A JSON document with some values replaced or removed: bytes say which, and by what, three at a time."""
    value = json.loads(json.dumps(value))
    for start in range(0, min(len(data), 12) - 2, 3):
        known = paths_in(value)
        if not known:
            break
        *parents, last = known[int.from_bytes(data[start : start + 2]) % len(known)]
        inner = value
        for key in parents:
            inner = inner[key]
        what = data[start + 2] % (len(VALUES) + 2)
        if what < len(VALUES):
            inner[last] = json.loads(json.dumps(VALUES[what]))
        elif what == len(VALUES) or isinstance(inner, list):
            del inner[last]
        else:
            inner["unknown"] = 0
    return value


def entry() -> Target:
    """One line of a ledger: read, it is written the same."""

    def check(data: bytes) -> bool:
        try:
            made = parse_entry(data)
        except TamperError:
            return False
        need(made.line == data and parse_entry(made.line) == made, "an entry has one encoding")
        need(data.isascii() and made.time.isascii(), "an entry is ASCII, and so is its time")
        need(made.time[:4].encode().isdigit(), "a time is of plain digits")
        return True

    return Target([each.line for each in entries_of(bodies())], check)


def _ledger(directory: Path, key: SigningKey, entries: int = 3) -> Path:
    with Ledger.create(directory, [key]) as ledger:
        for step in range(entries):
            ledger.append("update", {"step": step, "verdict": {"action": "accept"}})
    return directory


def _stored(name: str, law: Callable[[bytes, bytes], bool]) -> Target:
    """One file of a signed ledger: whatever it holds, the chain is verified or a problem is named."""
    directory = Path(_memory()) / "ledger"
    _ledger(directory, SigningKey.generate())
    path = directory / name
    whole = path.read_bytes()
    path.chmod(0o644)

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        chain = verify_chain(directory)
        need(bool(chain.problems) or law(whole, data), f"a changed {name} is a problem")
        return not chain.problems

    return Target([whole], check)


def segment() -> Target:
    """The entries of a segment: those that the head is of, and after them what a crash leaves."""
    return _stored("segments/000000.jsonl", lambda whole, data: data.startswith(whole))


def genesis() -> Target:
    """The first file of a ledger."""
    return _stored("genesis.json", lambda whole, data: data == whole)


def note() -> Target:
    """A signed note: what is given out of it is what was signed."""
    key, other = SigningKey.generate(), SigningKey.generate()
    root = bytes(range(32))
    whole = sign_checkpoint("kleash/0123456789abcdef", 7, root, [key, other])
    text = note_text(whole)

    def check(data: bytes) -> bool:
        try:
            found = parse_checkpoint(note_text(data))
            head = "\n".join(note_text(data).split("\n")[:3]) + "\n"
            need(found.to_text() == head, "a checkpoint has one text")
        except TamperError:
            pass
        try:
            opened = open_note(data, [key.public])
        except TamperError:
            return False
        need(opened == text, "what is given out is what was signed")
        return True

    return Target([whole, sign_checkpoint("o", 1, root, [key])[:0] + whole], check)


def vkey() -> Target:
    """A public key in text: read, it is written the same."""

    def check(data: bytes) -> bool:
        text = data.decode("utf-8", "replace")
        try:
            need(parse_vkey(text).vkey == text, "a key has one text")
        except InputError:
            return False
        return True

    key = SigningKey.generate().public.vkey
    return Target(
        [key.encode(), b"PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"], check
    )


def envelope() -> Target:
    """An attestation: what is given out of it is what was signed, and its statement is read or refused."""
    key, other = SigningKey.generate(), SigningKey.generate()
    digest = FileDigest(path="model.safetensors", size=1, sha256="ab" * 32)
    files = {"policy": (digest,), "reference": (digest,)}
    payload = statement(COMPARISON, files, "2030-01-02T03:04:05Z")
    whole = sign_envelope(payload, [key, other])

    def check(data: bytes) -> bool:
        try:
            claims, wrong = read_claims(data)
            need(encode(claims.to_json()).isascii(), "what a statement claims can be written")
            return not wrong
        except TamperError:
            pass
        with suppress(TamperError, InputError):
            need(len(carried_keys(data)) > 0, "a key is carried, or that there is none is said")
        try:
            opened = open_envelope(data, [key.public])
        except TamperError:
            return False
        need(opened.payload == payload, "what is given out is what was signed")
        need(attested(data, [key.public]).ok, "what was signed is authentic")
        return True

    return Target([whole, payload], check)


KL_ROW = {"value": 1.0, "low": 0.5, "high": 1.5, "level": 0.95, "n": 8, "unit": "response"}
COMPARISON: dict[str, Any] = {
    "policy": {"name": "policy", "weights": "ab" * 32},
    "reference": {"name": "reference", "weights": "cd" * 32},
    "settings": {"samples": 2},
    "prompts": {"sha256": "ef" * 32, "count": 4},
    "kl_policy_ref_per_response": KL_ROW,
    "limits": [KL_ROW | {"scope": "all", "limit": 2.0, "passed": True}],
    "verdict": {"passed": True, "reasons": []},
    "versions": {},
}
"""What `kleash compare` says of two models, in short."""

TOML = b"""[model]
policy = "tiny"
refresh_every = 10
[data]
prompts = "prompts.txt"
[rollout]
num_prompts = 4
group_size = 2
[reward]
model = "tiny"
[rl]
controller = "pid"
kl_target = 0.3
[algorithm]
num_epochs = 1
[optimizer]
learning_rate = 1e-2
[train]
steps = 7
seed = 0x10
trackers = []
[guard]
max_kl = 20.0
burst = 4
[guard.alarms.kl]
mean = 2.5
action = "halt"
"""


def config() -> Target:
    """A configuration file: built from what it resolved to, it is the same."""
    from kleash.train.config import RunConfig

    path = Path(_memory()) / "run.toml"

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            made = build(RunConfig, read_toml(path), "run.toml")
        except ConfigError as error:
            need(len(str(error)) < 100_000, "an error can be read")
            return False
        need(
            build(RunConfig, resolved(made), "again") == made,
            "a configuration is what it resolved to",
        )
        return True

    return Target([TOML, *TOML.split(b"\n[", 1)], check)


def setting() -> Target:
    """`--set section.key=value`."""
    from kleash.train.config import RunConfig

    tables = read_toml_of(TOML)

    def check(data: bytes) -> bool:
        text = data.decode("utf-8", "surrogateescape")
        try:
            build(RunConfig, override(tables, [text]), "run.toml with --set")
        except ConfigError as error:
            need(len(str(error)) < 100_000, "an error can be read")
            return False
        return True

    return Target([b"train.steps=3", b"model.policy=my/model", b"guard.alarms.kl.mean=2.5"], check)


def read_toml_of(data: bytes) -> dict[str, Any]:
    path = Path(_memory()) / "read.toml"
    path.write_bytes(data)
    return read_toml(path)


class Odd:
    """What is like a number and isn't."""

    def __float__(self) -> float:
        raise ValueError("no number")

    def item(self) -> float:
        raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")

    def __repr__(self) -> str:
        raise ValueError("cannot be shown")


class Endless:
    """As long as one likes."""

    def __iter__(self) -> Any:
        return repeat(0.5)


class Broken:
    """An iterator that fails on its way."""

    def __iter__(self) -> Any:
        yield 0.5
        raise OSError("gone")


def _reply(data: bytes, depth: int = 0) -> Any:
    """A Python value that a reward might return, as bytes say."""
    import numpy as np
    import torch

    kind, rest = (data[0], data[1:]) if data else (0, b"")
    parts = [0.5 if byte < 128 else (byte - 192) * 1e37 for byte in rest[:4]]
    inner = [_reply(rest[i:], depth + 1) for i in range(min(len(rest), 3))] if depth < 2 else []
    makers: tuple[Callable[[], Any], ...] = (
        lambda: [0.5, 1, True],
        lambda: parts,
        lambda: inner,
        lambda: tuple(inner),
        lambda: torch.tensor(parts),
        lambda: np.array(parts, dtype=np.float16),
        lambda: [torch.tensor(part) for part in parts],
        lambda: [torch.tensor(parts), 1.0, 2.0],
        lambda: torch.zeros(3, 2),
        lambda: np.array([["a"], ["b"], ["c"]]),
        lambda: iter(parts),
        lambda: count(),
        lambda: cycle([0.5]),
        Endless,
        Broken,
        Odd,
        lambda: [Odd(), Odd(), Odd()],
        lambda: {0.1, 0.2, 0.3},
        lambda: dict.fromkeys(range(3), 0.5),
        lambda: rest.decode("latin-1"),
        lambda: rest,
        lambda: None,
        lambda: math.nan,
        lambda: [math.inf, 0.0, 0.0],
        lambda: [10**400, 0, 0],
        lambda: len(rest),
    )
    return makers[kind % len(makers)]()


def reply() -> Target:
    """What a reward returns: one finite number for each response, or an error that says what was returned."""
    from kleash.rewards.scorers import function_scorer

    responses = ["a", "b", "c"]

    def check(data: bytes) -> bool:
        scorer = function_scorer("mine:reward", lambda prompts, texts: _reply(data))
        try:
            with redirect_stderr(StringIO()):
                scores = scorer.score(["p"] * 3, responses)
        except RewardError as error:
            need(len(str(error)) < 2000, "an error can be read")
            return False
        need(len(scores) == 3 and all(type(score) is float for score in scores), "a float for each")
        need(all(math.isfinite(score) for score in scores), "finite")
        return True

    return Target([bytes([kind, 1, 2, 200]) for kind in range(26)], check)


def served() -> Target:
    """What a reward server replies, its headers before an empty line: finite numbers, or a fault that can be read."""
    from kleash.rewards.protocol import Fault, Reply, read_reply

    def check(data: bytes) -> bool:
        head, _, body = data.partition(b"\n\n")
        status, *lines = head.decode("latin-1").splitlines() or [""]
        named = (line.partition(": ")[::2] for line in lines)
        headers = {name.lower(): text for name, text in named}
        code = int(status) if status.isascii() and status.isdecimal() and len(status) < 6 else 200
        found = read_reply(Reply(code, headers, body, whole=True), 3)
        if isinstance(found, Fault):
            need(found.got.isprintable() and len(found.got) < 1000, "a fault can be read")
            return False
        need(code == 200, "scores come with 200")
        need(len(found) == 3 and all(type(score) is float for score in found), "a float for each")
        need(all(math.isfinite(score) for score in found), "finite")
        return True

    head = b"200\ncontent-type: application/json\n\n"
    bodies = (b'{"scores": [1, -0.5, 2e3]}', b'{"scores": [1, 2, 3], "model": {"name": "x"}}')
    return Target([head + body for body in bodies], check)


def manifest() -> Target:
    """The manifest of a checkpoint, recorded by its digest: only the files as they are pass."""
    directory = Path(_memory()) / "step-000001"
    (directory / "policy").mkdir(parents=True)
    (directory / "state.json").write_bytes(b"{}\n")
    (directory / "policy" / "weights").write_bytes(b"weights")
    seal(directory)
    path = directory / MANIFEST_FILE
    whole = path.read_bytes()
    files = json.loads(whole)["files"]

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            check_sealed(directory, hashlib.sha256(data).hexdigest())
        except TamperError:
            return False
        need(json.loads(data)["files"] == files, "what passes names the files that there are")
        return True

    return Target([whole], check)


def keyfile() -> Target:
    """The file of a signing key: read, it signs; written again, it is the same key."""
    path = Path(_memory()) / "signing.key"
    create_signing_key(SigningKey.generate(), path)
    plain = path.read_bytes()
    again = path.with_name("again.key")

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        path.chmod(0o600)
        try:
            key = read_signing_key(path)
        except InputError:
            return False
        need(key.public.verifies(b"text", key.sign(b"text")), "what it signs holds")
        again.unlink(missing_ok=True)
        need(create_signing_key(key, again), "it can be kept")
        need(read_signing_key(again).public == key.public, "and is then the same")
        return True

    return Target([plain], check)


def state() -> Target:
    """The guard's stored state: what was taken is written the same, and can be gone on from."""
    limits = GuardConfig.model_validate(GUARD)
    made = bodies()[-1][1]["guard"]
    evidence = Evidence(kl=KL, facts=replace(FACTS, grad_norm=2.0))

    def check(data: bytes) -> bool:
        document = edited(made, data)
        try:
            found = guard.from_json(document, limits, 8)
        except InputError:
            return False
        need(encode(found.to_json()) == encode(document), "a state has one encoding")
        need(guard.from_json(found.to_json(), limits, 8) == found, "what is written is read")
        guard.decide(limits, found, 4, evidence, {"kl": 1.0, "concordance": None}, 2)
        return True

    return Target([b"", *_edits(40)], check)


def record() -> Target:
    """The entries of a run, edited by whoever can sign them: they are in order and replay, or a problem is named."""
    made = [[kind, body] for kind, body in bodies()]
    honest = json.loads(json.dumps(made))

    def check(data: bytes) -> bool:
        document = edited(honest, data)
        try:
            entries = entries_of(document)
        except (KleashError, TypeError, ValueError):
            return False  # no ledger holds this
        found = [*check_sequence(entries), *replay(entries)]
        need(all(problem.where and problem.what for problem in found), "a problem says what it is")
        return not found

    return Target([b"", *_edits(40)], check)


def _edits(number: int) -> list[bytes]:
    draw = random.Random(0)
    return [draw.randbytes(3 * draw.randint(1, 4)) for _ in range(number)]


_DIRECTORIES: list[tempfile.TemporaryDirectory[str]] = []


def _memory() -> str:
    """A directory, in memory where there can be one, that is removed at the end of the process."""
    root = "/dev/shm" if os.path.isdir("/dev/shm") else None
    _DIRECTORIES.append(tempfile.TemporaryDirectory(dir=root))
    return _DIRECTORIES[-1].name


TARGETS: Mapping[str, Callable[[], Target]] = {
    "entry": entry,
    "segment": segment,
    "genesis": genesis,
    "note": note,
    "vkey": vkey,
    "envelope": envelope,
    "config": config,
    "setting": setting,
    "reply": reply,
    "served": served,
    "manifest": manifest,
    "key": keyfile,
    "state": state,
    "record": record,
}
EDITS = ("state", "record", "reply")
"""Targets whose documents are drawn bytes that say what is edited or returned, and not the document itself."""
