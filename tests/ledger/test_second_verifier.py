"""The verifier in one file, which shares no code with kleash: right by published vectors, and of one mind with ours."""

import ast
import contextlib
import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash.ledger import SigningKey, layout, read, root_of, verify_chain
from kleash.ledger.entry import encode_entry
from kleash.ledger.keys import PublicKey
from tests.ledger.written import KEY, OTHER, SEGMENT, files_of, lines_of, write, write_lines

SCRIPT = Path(__file__).parents[2] / "tools" / "verify_ledger.py"
# RFC 8032 §7.1: TEST 1, TEST 2, TEST 3 and TEST SHA(abc): secret key, public key, message, signature
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030"
        "3dca179c138ac17ad9bef1177331a704",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_ledger", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SECOND = load()


def test_it_needs_the_standard_library_alone() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize("vector", RFC_8032, ids=["1", "2", "3", "SHA(abc)"])
def test_the_vectors_of_rfc_8032(vector: tuple[str, ...]) -> None:
    secret, public, message, signature = map(bytes.fromhex, vector)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = SigningKey.of(Ed25519PrivateKey.from_private_bytes(secret))
    assert (key.public.raw, key.sign(message)) == (public, signature)
    assert SECOND.verify_signature(public, message, signature)
    assert not SECOND.verify_signature(public, message + b"x", signature)


@settings(max_examples=30)
@given(message=st.binary(max_size=80), at=st.integers(0, 8 * 96 - 1))
def test_both_say_the_same_of_any_signature(message: bytes, at: int) -> None:
    whole = bytearray(KEY.public.raw + KEY.sign(message))
    assert SECOND.verify_signature(bytes(whole[:32]), message, bytes(whole[32:]))
    whole[at // 8] ^= 1 << at % 8
    public, signature = bytes(whole[:32]), bytes(whole[32:])
    assert not PublicKey(name="x", raw=public).verifies(message, signature)
    assert not SECOND.verify_signature(public, message, signature)


def test_a_signature_has_one_form() -> None:
    """S + L is S on the curve: taken, anyone could make a second signature of a first."""
    signature = KEY.sign(b"a")
    s = int.from_bytes(signature[32:], "little") + ORDER
    other = signature[:32] + s.to_bytes(32, "little")
    assert not SECOND.verify_signature(KEY.public.raw, b"a", other)
    assert not KEY.public.verifies(b"a", other)


def test_what_is_no_point_is_refused() -> None:
    prime = 2**255 - 19
    for y in (prime, prime + 1, 2, 1 << 255 | 1):
        point = y.to_bytes(32, "little")
        assert not SECOND.verify_signature(point, b"a", KEY.sign(b"a"))
        assert not SECOND.verify_signature(KEY.public.raw, b"a", point + bytes(32))
    assert not SECOND.verify_signature(b"", b"a", KEY.sign(b"a"))
    assert not SECOND.verify_signature(KEY.public.raw, b"a", b"")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of four entries, with one kept checkpoint."""
    return write(tmp_path / "ledger")


def verify(ledger: Path, *vkey: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), str(ledger), *vkey]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def accepts(ledger: Path) -> bool:
    """As the script does, in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            SECOND.main(str(ledger))
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return False
    return True


def test_a_whole_ledger(ledger: Path) -> None:
    origin = verify_chain(ledger).origin
    root = root_of([bytes.fromhex(entry.leaf) for entry in read(ledger)]).hex()
    said = f"4 entries of {origin!r}, root {root}, signed by {KEY.public.vkey}\n"
    for vkey in ([], [KEY.public.vkey]):
        done = verify(ledger, *vkey)
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def refusal_of(ledger: Path, *vkey: str) -> str:
    done = verify(ledger, *vkey)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_what_it_refuses(ledger: Path) -> None:
    assert "signed by another key" in refusal_of(ledger, OTHER.public.vkey)
    path, head = ledger / SEGMENT, ledger / "head"
    lines, signed = path.read_bytes(), head.read_bytes()
    path.write_bytes(lines.replace(b'"step":3', b'"step":5'))  # the last: no line follows it
    assert "not those that were signed" in refusal_of(ledger)
    path.write_bytes(lines.replace(b'"step":1', b'"step":2'))
    assert "entry 2 does not follow" in refusal_of(ledger)
    path.write_bytes(lines[: lines.rindex(b'{"body"')])
    assert "it was cut" in refusal_of(ledger)
    path.write_bytes(lines)
    head.write_bytes(signed.replace(b"\n4\n", b"\n5\n"))
    assert "not signed by this key" in refusal_of(ledger)
    head.write_bytes(b"")
    assert "not a note" in refusal_of(ledger)
    head.unlink()
    assert "not verified" in refusal_of(ledger)


def test_both_say_the_same_of_a_ledger_and_of_what_a_crash_leaves(ledger: Path) -> None:
    assert accepts(ledger)
    whole = (ledger / SEGMENT).read_bytes()
    (ledger / SEGMENT).write_bytes(whole + b'{"body"')
    assert accepts(ledger)
    assert verify_chain(ledger).problems == ()
    (ledger / SEGMENT).write_bytes(whole)
    last = read(ledger)[-1]
    fifth = encode_entry(seq=4, type="update", time=last.time, body={}, prev=last.leaf) + b"\n"
    (ledger / SEGMENT).write_bytes(whole + fifth)
    assert accepts(ledger)
    (ledger / SEGMENT).write_bytes(whole + fifth + fifth)
    assert not accepts(ledger)
    assert verify_chain(ledger).problems


@pytest.mark.slow
def test_both_find_flipped_bits_in_every_file(ledger: Path) -> None:
    """One bit of each of many bytes: all of them are tried on the first verifier."""
    missed: list[tuple[str, int]] = []
    for path in files_of(ledger):
        content = path.read_bytes()
        for place in range(0, len(content), 5):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            if accepts(ledger) or not verify_chain(ledger).problems:
                missed.append((path.name, place))
        path.write_bytes(content)
    assert missed == []


@pytest.mark.parametrize("edit", ["drop", "swap", "repeat"])
@pytest.mark.parametrize("at", range(3))
def test_both_find_entries_out_of_place(ledger: Path, edit: str, at: int) -> None:
    lines = lines_of(ledger)
    changed = {
        "drop": lines[:at] + lines[at + 1 :],
        "swap": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
        "repeat": lines[: at + 1] + lines[at:],
    }
    write_lines(ledger, changed[edit])
    assert not accepts(ledger)
    assert verify_chain(ledger).problems


def test_both_follow_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEGMENT_ENTRIES", 3)
    monkeypatch.setattr(SECOND, "SEGMENT", 3)
    ledger = write(tmp_path, 7)
    assert accepts(ledger)
    (ledger / "segments" / "000001.jsonl").unlink()
    assert not accepts(ledger)
    assert verify_chain(ledger).problems


def test_a_segment_has_as_many_entries_to_both() -> None:
    assert SECOND.SEGMENT == layout.SEGMENT_ENTRIES
