"""`kleash ledger override`, and the passphrases of the keys that it takes."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main as cli
from kleash.errors import ResourceError
from kleash.ledger import (
    Ledger,
    SigningKey,
    open_signing_key,
    read,
    read_signing_key,
    rewrite_signing_key,
)
from tests.cli.test_ledger import document, home, reading

__all__ = ["home"]


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A run that was killed before its first step."""
    guard: dict[str, Any] = {"max_kl": 20.0, "alarms": {"kl": {"mean": 1.0}}}
    config = {"guard": guard, "rl": {}}
    with Ledger.create(tmp_path / "run" / "ledger", [open_signing_key()]) as ledger:
        ledger.append("run.started", {"config": config})
        ledger.append("plan.committed", {**config, "canary": None})
    return tmp_path / "run"


def enter(run: Path, *more: str, reason: str = "measured again") -> int:
    return cli.run(["ledger", "override", str(run), "--reason", reason, *more])


def test_limits_are_overridden_with_a_second_key(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = Path("second.key")
    assert cli.run(["ledger", "key", "--file", str(second), "--json"]) == 0
    vkey = document(capsys)["vkey"]
    assert vkey == read_signing_key(second).public.vkey
    assert vkey != open_signing_key().public.vkey
    keyed = ["--key", str(second)]
    sets = ["--set", "guard.max_kl=30", "--set", "guard.alarms.kl.action=halt"]
    assert enter(run, *keyed, *sets, "--until", "5", "--json") == 0
    said = document(capsys)
    assert said["changes"]["guard.max_kl"] == {"old": 20.0, "new": 30.0}
    assert sorted(said["changes"]) == ["guard.alarms.kl", "guard.max_kl"]
    assert (said["key"], said["until"], said["step"]) == (vkey, 5, 0)
    entry = read(run / "ledger")[-1]
    assert (entry.type, entry.body) == ("plan.override", said)
    assert enter(run, *keyed, "--set", "guard.min_entropy=0.5") == 0
    assert "guard.min_entropy none to 0.5; measured again; by" in capsys.readouterr().out
    before = (run / "ledger" / "segments" / "000000.jsonl").read_bytes()
    for bad in (
        ["--set", "guard.min_entropy=0.5"],
        ["--set", "rl.kl_target=4"],
        ["--set", "guard.max_kk=4"],
        ["--set", "guard.max_kl=high"],
        ["--set", "guard.canary_prompts=4"],
        ["--set", "guard.max_kl=3", "--until", "0"],
    ):
        assert enter(run, *keyed, *bad) == 2, bad
    own = str(open_signing_key() and Path("../home/signing.key"))
    assert enter(run, "--key", own, "--set", "guard.max_kl=3") == 2
    assert "its key is the ledger's own" in capsys.readouterr().err
    assert enter(run, *keyed, "--set", "guard.max_kl=3", reason=" ") == 2
    assert enter(run, "--key", "missing.key", "--set", "guard.max_kl=3") in (2, 5)
    assert (run / "ledger" / "segments" / "000000.jsonl").read_bytes() == before
    assert cli.run(["ledger", "log", str(run)]) == 0
    assert "measured again" in capsys.readouterr().out


def test_verify_takes_overrides_by_keys_that_are_trusted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["ledger", "key", "--file", "second.key"])
    assert enter(run, "--key", "second.key", "--set", "guard.max_kl=30") == 0
    vkey = read_signing_key(Path("second.key")).public.vkey
    own = open_signing_key().public.vkey
    capsys.readouterr()
    ledger = str(run / "ledger")
    cli.run(["verify", ledger, "--override-key", own, "--json"])
    assert "not trusted" in json.dumps(document(capsys)["problems"])
    cli.run(["verify", ledger, "--override-key", vkey, "--json"])
    assert "not trusted" not in json.dumps(document(capsys)["problems"])


def test_both_keys_may_have_passphrases(run: Path) -> None:
    encrypt = ["ledger", "key", "--encrypt", "--passphrase-fd"]
    assert cli.run([*encrypt, str(reading("one two three"))]) == 0
    assert cli.run([*encrypt, str(reading("four five six")), "--file", "second.key"]) == 0
    keyed = ["--key", "second.key", "--set", "guard.max_kl=30", "--passphrase-fd"]
    assert enter(run, *keyed, str(reading("four five six", "one two three"))) == 2
    assert enter(run, *keyed, str(reading("one two three", "four five six"))) == 0


def test_a_passphrase_is_changed_and_taken_off(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public, path = open_signing_key().public, home / "signing.key"
    for option in ("--change-passphrase", "--decrypt"):
        assert cli.run(["ledger", "key", option]) == 2
        assert "is not encrypted" in capsys.readouterr().err
    assert cli.run(["ledger", "key", "--encrypt", "--decrypt"]) == 2
    fd = reading("first one")
    assert cli.run(["ledger", "key", "--encrypt", "--passphrase-fd", str(fd)]) == 0
    change = ["ledger", "key", "--change-passphrase", "--passphrase-fd"]
    before = path.read_bytes()
    assert cli.run([*change, str(reading("wrong", "second one"))]) == 2
    assert cli.run([*change, str(reading("first one"))]) == 2  # and no new one
    assert path.read_bytes() == before
    assert cli.run([*change, str(reading("first one\r", "second one"))]) == 0
    assert read_signing_key(path, passphrase=b"second one").public == public
    decrypt = ["ledger", "key", "--decrypt", "--passphrase-fd"]
    assert cli.run([*decrypt, str(reading("first one"))]) == 2
    assert cli.run([*decrypt, str(reading("second one"))]) == 0
    assert read_signing_key(path).public == public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in home.iterdir()] == ["signing.key"]


def test_a_key_that_can_not_be_replaced_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "signing.key" / "in the way").mkdir(parents=True)
    with pytest.raises(ResourceError, match="cannot be replaced"):
        rewrite_signing_key(SigningKey.generate(), tmp_path / "signing.key", b"one two")
    assert [each.name for each in tmp_path.iterdir()] == ["signing.key"]
