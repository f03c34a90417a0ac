"""`kleash ledger`, and what `kleash verify` says of keys and checkpoints."""

import io
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main as cli
from kleash.ledger import Ledger, open_signing_key, read, read_signing_key
from tests.ledger.version1 import Version1
from tests.ledger.written import KEY, OTHER, SEGMENT, forge, write

GOLDEN = Path(__file__).parents[1] / "golden" / "ledger-v1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the key, and the working directory, both empty; a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("KLEASH_HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run" / "ledger").parent


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def reading(*lines: str) -> int:
    """A file descriptor that gives these lines."""
    end, start = os.pipe()
    os.write(start, "".join(f"{line}\n" for line in lines).encode())
    os.close(start)
    return end


def test_the_key_is_made_shown_and_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ledger", "key", "--json"]) == 0
    said = document(capsys)
    assert said["path"] == str(home / "signing.key")
    assert said["vkey"] == open_signing_key().public.vkey
    assert said["vkey"].startswith(said["name"])
    assert said["encrypted"] is False
    assert cli.run(["ledger", "key"]) == 0
    assert said["vkey"] in capsys.readouterr().out


def test_the_key_is_encrypted_in_place(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = open_signing_key().public
    fd = str(reading("four words or more"))
    assert cli.run(["ledger", "key", "--encrypt", "--passphrase-fd", fd]) == 0
    assert "encrypted" in capsys.readouterr().out
    path = home / "signing.key"
    assert b"ENCRYPTED" in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in home.iterdir()] == ["signing.key"]
    assert read_signing_key(path, passphrase=b"four words or more").public == public
    # It is asked for from now on, and there is no terminal here.
    assert cli.run(["ledger", "key"]) == 2
    assert "--passphrase-fd" in capsys.readouterr().err
    assert cli.run(["ledger", "key", "--passphrase-fd", str(reading("wrong"))]) == 2
    assert "does not open with this passphrase" in capsys.readouterr().err
    assert cli.run(["ledger", "key", "--passphrase-fd", str(reading("four words or more"))]) == 0
    assert cli.run(["ledger", "key", "--encrypt"]) == 2
    assert "encrypted already" in capsys.readouterr().err


@pytest.mark.parametrize("fd", ["empty", "closed", "huge"])
def test_a_passphrase_that_cannot_be_read_is_bad_input(home: Path, fd: str) -> None:
    open_signing_key()
    number = {"empty": reading(""), "closed": 1023, "huge": 10**30}[fd]
    assert cli.run(["ledger", "key", "--encrypt", "--passphrase-fd", str(number)]) == 2
    assert b"ENCRYPTED" not in (home / "signing.key").read_bytes()


def test_at_a_terminal_the_passphrase_is_asked_for_twice(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["one two", "one too", "one two", "one two", "one two"])
    monkeypatch.setattr("kleash.cli.console.getpass", lambda _: next(typed))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert cli.run(["ledger", "key", "--encrypt"]) == 2
    assert "differ" in capsys.readouterr().err
    assert cli.run(["ledger", "key", "--encrypt"]) == 0
    assert cli.run(["ledger", "key"]) == 0


def test_an_entry_is_proved_to_somebody_who_has_the_key_alone(
    home: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.run(["ledger", "prove", str(run), "2"]) == 0
    line = capsys.readouterr().out
    assert line == read(run / "ledger")[2].line.decode() + "\n"
    Path("entry.json").write_text(line)
    Path("key.pub").write_text(KEY.public.vkey + "\n")
    check = ["ledger", "check", "2.tlog-proof", "--entry"]
    assert cli.run([*check, "entry.json", "--key", KEY.public.vkey]) == 0
    assert "✓" in capsys.readouterr().out
    assert cli.run([*check, "entry.json", "--key", "key.pub", "--json"]) == 0
    said = document(capsys)
    assert (said["ok"], said["seq"], said["size"]) == (True, 2, 4)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    assert cli.run([*check, "-", "--key", "key.pub"]) == 0
    assert cli.run([*check, "entry.json", "--key", OTHER.public.vkey]) == 4
    Path("entry.json").write_text(line.replace('"step":2', '"step":3'))
    assert cli.run([*check, "entry.json", "--key", "key.pub"]) == 4
    assert "ok" not in document_or_nothing(capsys)
    assert cli.run([*check, "missing.json", "--key", "key.pub"]) == 2
    assert cli.run(["ledger", "prove", str(run), "2"]) == 2  # never over another file
    assert cli.run(["ledger", "prove", str(run), "99", "--out", "x"]) == 2
    assert cli.run(["ledger", "prove", str(run), "0", "--out", "no/such/place"]) == 5
    assert cli.run(["ledger", "prove", str(GOLDEN), "0", "--out", "x"]) == 2


def document_or_nothing(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_a_ledger_is_exported_whole(
    home: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["ledger", "export", str(run), "--out", "all.jsonl", "--json"]) == 0
    assert document(capsys) == {"file": "all.jsonl", "entries": 4, "checkpoints": 2}
    lines = Path("all.jsonl").read_bytes().splitlines()
    assert lines[0] + b"\n" == (run / "ledger" / "genesis.json").read_bytes()
    assert lines[1:5] == (run / "ledger" / SEGMENT).read_bytes().splitlines()
    last = json.loads(lines[-1])
    assert last["checkpoint"] == "head"
    assert last["note"].encode() == (run / "ledger" / "head").read_bytes()
    assert cli.run(["ledger", "export", str(run / "ledger"), "--out", "all.jsonl"]) == 2
    assert cli.run(["ledger", "export", str(GOLDEN), "--out", "old.jsonl"]) == 0
    assert cli.run(["ledger", "export", "nowhere", "--out", "x"]) == 2
    forge(run / "ledger", lambda entries: entries[1].update(v=1))
    assert cli.run(["ledger", "export", str(run), "--out", "x"]) == 4
    assert not Path("x").exists()


def test_a_ledger_is_shown_and_its_text_is_only_text(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.create(tmp_path / "run", [KEY]) as ledger:
        ledger.append("update", {"step": 1, "kl": {"value": 2.5, "unit": "response"}})
        reasons = ["too far\x1b[31m\u202e\nthere"]
        ledger.append("update", {"step": 2, "verdict": {"action": "reject", "reasons": reasons}})
        ledger.append("run.failed", {"steps": 2, "reason": "\x1b]0;title\x07"})
    assert cli.run(["ledger", "log", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert not {"\x1b", "\u202e", "\x07"} & set(shown)
    assert re.search(r"KL 2\.50* nats/response", shown)
    assert "reject" in shown
    assert "signed by" in shown
    kind = ["ledger", "log", str(tmp_path / "run"), "--type", "run.failed", "--json"]
    assert cli.run(kind) == 0
    assert [each["seq"] for each in document(capsys)["entries"]] == [2]
    (tmp_path / "run" / "head").write_bytes(b"")
    assert cli.run(["ledger", "log", str(tmp_path / "run")]) == 4
    assert "✗" in capsys.readouterr().out
    assert cli.run(["ledger", "log", str(GOLDEN)]) == 0


def test_verify_says_whose_word_it_is(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["verify", str(GOLDEN)]) == 0
    assert "not signed" in capsys.readouterr().out
    assert cli.run(["verify", str(GOLDEN), "--key", KEY.public.vkey]) == 4
    run = tmp_path / "run"
    with Ledger.create(run, [KEY]) as ledger:
        ledger.append(
            "run.started", {"config": {"guard": {}}}
        )  # of measurements, of which none is due
        Path("held.note").write_bytes(ledger.note)
        ledger.append("run.failed", {"steps": 0})
    assert cli.run(["verify", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"signed by {KEY.public.vkey}: compare it with the key you trust" in said.replace(
        "\n", ""
    )
    vkey = ["--key", OTHER.public.vkey, "--key", KEY.public.vkey]
    assert cli.run(["verify", str(run), *vkey, "--since", "held.note"]) == 0
    assert "which you trust" in capsys.readouterr().out
    assert cli.run(["verify", str(run), "--key", OTHER.public.vkey]) == 4
    assert "another key" in capsys.readouterr().out
    assert cli.run(["verify", str(run), "--key", "nonsense"]) == 2
    assert cli.run(["verify", str(run), "--since", "missing.note"]) == 2
    Path("held.note").write_bytes(b"")
    assert cli.run(["verify", str(run), "--since", "held.note", "--json"]) == 4


def test_a_ledger_of_version_1_is_not_gone_on_with(home: Path, tmp_path: Path) -> None:
    Version1.create(tmp_path / "old").close()
    assert cli.run(["ledger", "log", str(tmp_path / "old")]) == 0
