"""The page that fixes the format of attestations is true: its example, its fields, and its way to check one by hand."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kleash.audit.attestation import (
    NON_CLAIMS,
    PREDICATE_TYPE,
    ROLES,
    STATEMENT_TYPE,
    attest,
    binding_digest,
    list_files,
    statement,
)
from kleash.ledger.envelope import MAX_ENVELOPE, MAX_SIGNATURES, PAYLOAD_TYPE
from tests.audit.compared import ALL, KEY, OTHER, TIME, document, files_of, limit, write_models

PAGE = (Path(__file__).parents[2] / "docs" / "attestation-format.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_worked_example(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}\n")
    (tmp_path / "model.safetensors").write_bytes(b"kleash\n")
    files = list_files(tmp_path)
    (listing,) = blocks("json")
    assert json.loads(listing) == [each.to_json() for each in files]
    digest = hashlib.sha256(listing.removesuffix("\n").encode()).hexdigest()
    assert binding_digest(files) == digest
    assert f"has the digest `{digest}`" in PAGE


def test_the_page_names_every_field(tmp_path: Path) -> None:
    bound = limit("all", ALL, 4.0, passed=True)
    models = write_models(tmp_path)
    made = json.loads(statement(document(bound, passed=True), files_of(models), TIME))
    predicate = made["predicate"]
    names = {
        *made,
        *made["subject"][0],
        *predicate,
        *bound,
        *predicate["verdict"],
        *predicate["prompts"],
        *predicate["files"]["policy"][0],
        *ROLES,
        *(PAYLOAD_TYPE, STATEMENT_TYPE, PREDICATE_TYPE),
    }
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE and name not in ALL] == [
        PAYLOAD_TYPE
    ]
    assert f'"payloadType":"{PAYLOAD_TYPE}"' in PAGE
    assert [name for name in ALL if not re.search(rf"\b{name}\b", PAGE)] == []
    assert f"at most {MAX_ENVELOPE >> 20} MiB" in PAGE
    assert f"1 to {MAX_SIGNATURES} signatures" in PAGE
    assert predicate["nonClaims"] == list(NON_CLAIMS)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_openssl_agrees(tmp_path: Path) -> None:
    """As the page says it, with nothing of kleash."""
    models = write_models(tmp_path)
    (tmp_path / "attestation").write_bytes(attest(document(), files_of(models), KEY, TIME))
    (command,) = blocks("sh")
    for key, code in ((KEY, 0), (OTHER, 1)):
        script = [sys.executable, "-I", "-c", blocks("python")[0], "attestation", key.public.vkey]
        shown = subprocess.run(script, cwd=tmp_path, capture_output=True, check=True)
        assert json.loads(shown.stdout)["_type"] == STATEMENT_TYPE
        done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == code, done.stderr


def test_securesystemslib_reads_it_so(tmp_path: Path) -> None:
    models = write_models(tmp_path)
    path = tmp_path / "drift.intoto.json"
    path.write_bytes(attest(document(), files_of(models), KEY, TIME))
    for key, code in ((KEY, 0), (OTHER, 1)):
        script = blocks("python")[1].replace('vkey = "..."', f'vkey = "{key.public.vkey}"')
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
