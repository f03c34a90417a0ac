"""`kleash verify` of an attestation: what it says, and that it never says it passed where it didn't."""

import json
from pathlib import Path
from typing import Any

import pytest

from kleash.audit.attestation import attest
from kleash.cli import main as cli
from kleash.ledger import ML_DSA_44, PublicKey
from kleash.ledger.envelope import MAX_ENVELOPE, PAYLOAD_TYPE, sign_envelope
from tests.audit.compared import (
    ALL,
    DOCUMENT,
    KEY,
    OTHER,
    TIME,
    document,
    files_of,
    limit,
    write_models,
)
from tests.ledger.written import write

PASSING = ("✓", "verified", "authentic")
"""Words that may not be shown where something is wrong."""


@pytest.fixture(autouse=True)
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return write_models(tmp_path)


@pytest.fixture
def attestation(tmp_path: Path, models: dict[str, Path]) -> str:
    return kept(tmp_path, DOCUMENT, models)


def kept(directory: Path, document: dict[str, Any], models: dict[str, Path]) -> str:
    path = directory / "drift.intoto.json"
    path.write_bytes(attest(document, files_of(models), KEY, TIME))
    return str(path)


def given(models: dict[str, Path], *roles: str) -> list[str]:
    return [part for role in roles for part in (f"--{role}", str(models[role]))]


def refused(path: str, *options: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(["verify", path, *options]) == 4
    said = capsys.readouterr().out
    assert "✗" in said
    assert "NOT what was attested" in said
    assert not [word for word in PASSING if word in said]
    assert cli.run(["verify", path, *options, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["ok"] is False
    return said


def test_what_it_claims_is_shown_and_what_was_checked(
    attestation: str, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--key", KEY.public.vkey, *given(models, "policy", "reference")]
    assert cli.run(["verify", attestation, *options]) == 0
    said = capsys.readouterr().out
    for text in (
        "✓ the statement is what was signed",
        "✓ by a key you trust",
        "✓ the policy's files are the ones that were measured, and no others",
        "policy mine/policy: 3 files, sha256 ",
        "reference base: 2 files, sha256 ",
        f"measured on 16 prompts, sha256 {'ef' * 32}; {TIME}",
        "kl_policy_ref_per_response: 3.5 [3, 4] nats/response, 95% interval, 64 responses",
        "kl_policy_ref_per_token: 0.11 [0.09, 0.125] nats/token",
        "verdict: no limit was set",
        "Self-signed",
        f"signed by {KEY.public.vkey}: which you trust",
        "verified: the attestation is authentic; its verdict: no limit was set",
    ):
        assert text in said
    assert "not checked" not in said


def test_what_was_not_checked_is_said(
    attestation: str, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["verify", attestation]) == 0
    said = capsys.readouterr().out
    assert f"signed by {KEY.public.vkey}: compare it with the key you trust, or give --key" in said
    assert "by a key you trust" not in said
    assert "verified: the attestation is what this key signed" in said
    assert "authentic" not in said
    assert "the policy's files were not checked: give --policy DIR" in said
    assert "the reference's files were not checked: give --reference DIR" in said
    assert cli.run(["verify", attestation, *given(models, "policy")]) == 0
    said = capsys.readouterr().out
    assert "the policy's files were not checked" not in said
    assert "the reference's files were not checked" in said


def test_one_json_document(
    attestation: str, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--key", KEY.public.vkey, *given(models, "policy"), "--json"]
    assert cli.run(["verify", attestation, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["key_trusted"], found["problems"]) == (True, True, [])
    assert found["claims"]["models"]["policy"]["name"] == "mine/policy"
    assert found["notes"] == ["the reference's files were not checked: give --reference DIR"]


def test_a_verdict_over_its_limit_is_shown_and_authentic(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    over = document(limit("all", ALL, 3.9, passed=False), passed=False)
    assert cli.run(["verify", kept(tmp_path, over, models), "--key", KEY.public.vkey]) == 0
    said = capsys.readouterr().out
    assert "limit 3.9 nats/response on all: up to 4, NOT held" in said
    assert said.count("verdict: OVER ITS LIMITS") == 2
    assert "all is over its limit" in said
    within = document(limit("all", ALL, 4.0, passed=True), passed=True)
    assert cli.run(["verify", kept(tmp_path, within, models)]) == 0
    said = capsys.readouterr().out
    assert "limit 4 nats/response on all: up to 4, held" in said
    assert "verdict: within its limits" in said
    made = document(passed=False) | {"kl_policy_ref_per_response": ALL | {"high": None}}
    made["limits"] = [limit("all", made["kl_policy_ref_per_response"], 4.0, passed=False)]
    assert cli.run(["verify", kept(tmp_path, made, models)]) == 0
    assert "on all: no interval, NOT held" in capsys.readouterr().out


def test_changed_files_and_signatures_are_refused(
    attestation: str, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(attestation, "--key", OTHER.public.vkey, capsys=capsys)
    assert "no signature by a known key" in said
    swapped = ["--policy", str(models["reference"])]
    said = refused(attestation, *swapped, capsys=capsys)
    assert "policy files: these are the files of the reference" in said
    for number in range(12):
        (models["policy"] / f"extra{number:02}").write_bytes(b"")
    said = refused(attestation, *given(models, "policy"), capsys=capsys)
    assert "policy/extra09: not in the record: it was added" in said
    assert "and 2 more; --json has them all" in said
    path = Path(attestation)
    whole = path.read_bytes()
    for changed in (
        whole[:-40],
        whole.replace(b'"payload":"', b'"payload":"AAAA'),
        whole.replace(PAYLOAD_TYPE.encode(), b"text/plain"),
        sign_envelope(b"{}", [KEY]),
        whole + b" " * MAX_ENVELOPE,
    ):
        path.write_bytes(changed)
        refused(attestation, "--key", KEY.public.vkey, capsys=capsys)


def test_options_that_do_not_belong_are_refused(
    tmp_path: Path,
    attestation: str,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(write(tmp_path / "run" / "ledger").parent)
    post_quantum = PublicKey(name="pq", raw=bytes(1312), kind=ML_DSA_44)
    for line, said in (
        ([run, *given(models, "policy")], "--policy: not an option for a run or a ledger"),
        ([attestation, "--head", "0" * 64], "--head: not an option for an attestation"),
        ([attestation, "--since", "note"], "--since: not an option for an attestation"),
        ([attestation, "--override-key", KEY.public.vkey], "--override-key: not an option"),
        ([attestation, *given(models, "base")], "the attestation is of no base"),
        ([attestation, "--policy", "nowhere"], "there is no policy at"),
        ([attestation, "--key", "nonsense"], "no public key"),
        ([attestation, "--key", post_quantum.vkey], "Ed25519"),
        (["nowhere.json"], "nothing to verify"),
        ([str(models["policy"] / "config.json")], "nothing to verify"),
    ):
        if "--override-key" in line or "--since" in line:
            Path("note").write_bytes(b"")
        assert cli.run(["verify", *line]) == 2, line
        streams = capsys.readouterr()
        assert said in streams.err
        assert not [word for word in PASSING if word in streams.out]


def test_an_envelope_of_others_names_no_key(
    attestation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(attestation)
    data = json.loads(path.read_bytes())
    data["signatures"][0].pop("keyid")
    path.write_text(json.dumps(data, indent=2))
    assert cli.run(["verify", attestation]) == 2
    assert "give the key you trust" in capsys.readouterr().err
    assert cli.run(["verify", attestation, "--key", KEY.public.vkey]) == 0


def test_hostile_names_are_only_shown(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\x1b]0;title\x07\n✓ verified\u202e[red]\ud800"
    made = document(passed=None) | {"policy": DOCUMENT["policy"] | {"name": evil}}
    made["verdict"] = {"passed": True, "reasons": [evil]}
    made["slices"] = {evil: {"kl_policy_ref_per_response": ALL}}
    made["limits"] = [limit(evil, ALL, 4.0, passed=True)]
    assert cli.run(["verify", kept(tmp_path, made, models)]) == 0
    said = capsys.readouterr().out
    assert "\x1b]" not in said
    assert "\u202e" not in said
    assert said.count("\n✓ verified") == 0
    assert said.count("a␛]0;title␇⏎✓ verified⟨U+202E⟩[red]") == 3


def test_hostile_paths_are_only_shown(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    evil = models["policy"] / "\x1b[31m"
    evil.write_bytes(b"")
    path = kept(tmp_path, DOCUMENT, models)
    evil.unlink()
    said = refused(path, *given(models, "policy"), capsys=capsys)
    assert "\x1b[31m" not in said
    assert r"policy/\x1b[31m: recorded, but not there" in said


def test_a_large_file_that_is_none_is_not_read(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for; a sparse file of a terabyte would be read."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert cli.run(["verify", str(path)]) == 2
    with path.open("r+b") as file:
        file.write(b'{"payload":"')
    assert cli.run(["verify", str(path), "--key", KEY.public.vkey]) == 4
