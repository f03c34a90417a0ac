"""Public keys in text, and the file of the private one: made once, for its owner's eyes alone."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import InputError, ResourceError
from kleash.ledger import (
    ML_DSA_44,
    PublicKey,
    SigningKey,
    create_signing_key,
    default_key_path,
    keyfile,
    keys,
    needs_passphrase,
    open_signing_key,
    parse_vkey,
    read_public_key,
    read_signing_key,
)
from kleash.ledger.keys import from_base64

KEY = SigningKey.generate()
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

RACE = """
import sys, time
from pathlib import Path
from kleash.ledger import open_signing_key

while time.time() < float(sys.argv[2]):
    pass
print(open_signing_key(Path(sys.argv[1])).public.vkey)
"""


def test_a_vkey_reads_back() -> None:
    for key in (KEY, SigningKey.generate(ML_DSA_44), SigningKey.generate(name="example.com/é")):
        assert parse_vkey(key.public.vkey) == key.public
    assert parse_vkey(NEUMANN).vkey == NEUMANN
    assert parse_vkey(NEUMANN).id.hex() == "c74f20a3"


def test_a_key_is_named_after_itself() -> None:
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    assert SigningKey.of(private) == SigningKey.of(private)
    assert SigningKey.of(private).public.name == "kleash-4654a09c3796d409"
    assert "private" not in repr(SigningKey.of(private))


def test_each_flipped_bit_of_a_vkey_is_seen() -> None:
    vkey = KEY.public.vkey.encode()
    for at in range(len(vkey)):
        for bit in range(8):
            bad = vkey[:at] + bytes([vkey[at] ^ 1 << bit]) + vkey[at + 1 :]
            with pytest.raises(InputError):
                parse_vkey(bad.decode("latin-1"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a public key"),
        ("hello", "not a public key"),
        (NEUMANN[:-1], "not a public key"),
        (NEUMANN[:-4] + "T===", "not a public key"),
        (NEUMANN + "\n", "not a public key"),
        ("a b+c74f20a3+AAAA", "not a public key"),
        (NEUMANN.replace("c7", "c8"), "damaged"),
        ("x+00000000+BAAA", "kind 0x04"),
        ("x+00000000+AQAA", "another length"),
    ],
)
def test_what_is_no_vkey_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse_vkey(text)


def test_a_name_that_cannot_stand_in_a_note_is_refused() -> None:
    for name in ("", "a b", "a+b", "a\u2003b", "a\nb", "a\x1fb", "\ud800", "x" * 256, "é" * 128):
        with pytest.raises(InputError, match="name of a key"):
            PublicKey(name=name, raw=bytes(32))
    assert PublicKey(name="x" * 255, raw=bytes(32)).name == "x" * 255


def test_a_signature_that_does_not_fit_is_no_error() -> None:
    assert KEY.public.verifies(b"a", KEY.sign(b"a"))
    for signature in (KEY.sign(b"b"), b"", bytes(64), bytes(63)):
        assert not KEY.public.verifies(b"a", signature)
    for raw in (bytes(32), b"\xff" * 32):
        assert not PublicKey(name="x", raw=raw).verifies(b"a", KEY.sign(b"a"))
    assert not SigningKey.generate(ML_DSA_44).public.verifies(b"a", b"")


@given(st.binary(max_size=40))
def test_base64_has_one_form(data: bytes) -> None:
    import base64

    text = base64.b64encode(data).decode()
    assert from_base64(text) == data
    for other in (text + "=", text + "\n", " " + text, text.replace("=", "") + "-"):
        with pytest.raises(ValueError, match=r".+"):
            from_base64(other)


def test_without_ml_dsa_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(_: str) -> None:
        raise ImportError

    post_quantum = SigningKey.generate(ML_DSA_44).public
    monkeypatch.setattr(keys, "import_module", import_module)
    with pytest.raises(InputError, match=r"has no ML-DSA-44.*newer one"):
        SigningKey.generate(ML_DSA_44)
    with pytest.raises(InputError, match="has no ML-DSA-44"):
        post_quantum.verifies(b"a", bytes(2420))


def test_a_key_is_made_on_first_use_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kleash" / "signing.key"
    key = open_signing_key(path)
    assert open_signing_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["signing.key"]
    assert key.public.verifies(b"a", read_signing_key(path).sign(b"a"))
    assert not needs_passphrase(path)


def test_a_key_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    assert create_signing_key(KEY, path)
    assert not create_signing_key(SigningKey.generate(), path)
    assert read_signing_key(path) == KEY
    assert os.listdir(tmp_path) == ["signing.key"]


def test_ml_dsa_is_kept_too(tmp_path: Path) -> None:
    key = SigningKey.generate(ML_DSA_44)
    create_signing_key(key, tmp_path / "key")
    assert read_signing_key(tmp_path / "key") == key


def test_processes_that_race_get_one_key(tmp_path: Path) -> None:
    import time

    start = str(time.time() + 1.5)
    command = [sys.executable, "-c", RACE, str(tmp_path / "signing.key"), start]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    said = {racer.communicate(timeout=60)[0] for racer in racers}
    assert said == {open_signing_key(tmp_path / "signing.key").public.vkey.encode() + b"\n"}
    assert os.listdir(tmp_path) == ["signing.key"]


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("KLEASH_HOME", str(tmp_path / "kleash"))
    assert default_key_path() == tmp_path / "kleash" / "signing.key"
    monkeypatch.setenv("KLEASH_HOME", "")
    assert default_key_path() == tmp_path / "xdg" / "kleash" / "signing.key"
    assert open_signing_key() == read_signing_key(default_key_path())
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert default_key_path() == tmp_path / "home" / ".config" / "kleash" / "signing.key"

    def nowhere() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(InputError, match="set KLEASH_HOME"):
        default_key_path()


def test_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    key = open_signing_key(path, passphrase=b"correct horse")
    assert needs_passphrase(path)
    assert open_signing_key(path, passphrase=b"correct horse") == key
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    with pytest.raises(InputError, match="does not open with this passphrase"):
        open_signing_key(path, passphrase=b"wrong")
    for nothing in (None, b""):
        with pytest.raises(InputError, match="is encrypted; do: give its passphrase"):
            open_signing_key(path, passphrase=nothing)
    with pytest.raises(InputError, match="empty passphrase"):
        open_signing_key(tmp_path / "other", passphrase=b"")
    open_signing_key(tmp_path / "plain")
    with pytest.raises(InputError, match="not encrypted, but a passphrase was given"):
        open_signing_key(tmp_path / "plain", passphrase=b"x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "signing.key"
    open_signing_key(path)
    path.chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o}; do: chmod 600 '.*signing.key'"):
        open_signing_key(path)


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_signing_key(tmp_path / "key")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InputError, match="another user"):
        open_signing_key(tmp_path / "key")


def test_what_is_no_file_of_its_own_is_refused(tmp_path: Path) -> None:
    open_signing_key(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(InputError, match="symbolic link"):
            open_signing_key(tmp_path / name)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("folder", "pipe"):
        with pytest.raises(InputError, match="not a regular file"):
            open_signing_key(tmp_path / name)


def test_what_holds_no_key_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    curve = ec.generate_private_key(ec.SECP256R1())
    coding = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for data, why in (
        (b"", "no key"),
        (b"hello", "no key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "damaged"),
        (curve.private_bytes(*coding), "another kind.*Ed25519"),
        # said to be of X448, whose keys are longer: OpenSSL calls that an error of its own
        (KEY.private.private_bytes(*coding).replace(b"K2Vw", b"K2Vv"), "damaged"),
        (KEY.public.vkey.encode(), "no key"),
    ):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(InputError, match=why):
            open_signing_key(path)


def test_a_key_that_cannot_be_replaced_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.mkdir()  # in the way of the new one
    with pytest.raises(ResourceError, match="cannot be replaced; got: Is a directory"):
        keyfile.rewrite_signing_key(KEY, path, b"several words long")
    assert os.listdir(tmp_path) == ["signing.key"]


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keyfile.os, "fsync", full)
    with pytest.raises(ResourceError, match="cannot be written; got: No space left"):
        open_signing_key(tmp_path / "key")
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        open_signing_key(tmp_path / "file" / "key")
    with pytest.raises(ResourceError, match="cannot be read"):
        read_signing_key(tmp_path / "file" / "key")


def test_a_public_key_from_a_file_or_a_text(tmp_path: Path) -> None:
    path = tmp_path / "run+1.vkey"
    path.write_text(f"{NEUMANN}\n")
    for source in (path, str(path), NEUMANN, f" {NEUMANN}\n"):
        assert read_public_key(source) == parse_vkey(NEUMANN)
    path.write_text("hello")
    with pytest.raises(InputError, match="not a public key"):
        read_public_key(path)
    path.write_bytes(b"\xff")
    os.mkfifo(tmp_path / "pipe")
    for source in (path, tmp_path / "pipe", tmp_path, tmp_path / "missing", str(tmp_path), "x\0y"):
        with pytest.raises(InputError, match="no public key can be read"):
            read_public_key(source)


def test_a_planted_file_does_not_stand_in_for_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vkey = NEUMANN.replace("/", "")  # damaged, but in the form of a key and of a file's name
    (tmp_path / vkey).write_text(KEY.public.vkey)
    with pytest.raises(InputError, match=r"not a public key|damaged"):
        read_public_key(vkey)


def test_nothing_of_a_private_key_is_shown_where_a_public_one_belongs(tmp_path: Path) -> None:
    path = tmp_path / "second.key"
    create_signing_key(KEY, path)
    secret = path.read_text()
    for source in (path, secret):
        with pytest.raises(InputError, match="this is a private key") as caught:
            keyfile.read_public_key(source)
        assert not any(line in str(caught.value) for line in secret.splitlines() if line)
        assert secret.splitlines()[1][:12] not in str(caught.value)
