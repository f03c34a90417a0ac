"""tools/verify_ledger.py reads attestations with the standard library alone, and is of one mind with ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kleash.audit.attestation import attest, check
from kleash.ledger.envelope import sign_envelope
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
from tests.ledger.test_second_verifier import SCRIPT, SECOND


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return write_models(tmp_path)


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), "--attestation", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_both_take_what_is_whole(tmp_path: Path, models: dict[str, Path]) -> None:
    path = tmp_path / "attestation"
    made = document(limit("all", ALL, 4.0, passed=True), passed=True)
    path.write_bytes(attest(made, files_of(models, "policy", "reference", "base"), KEY, TIME))
    done = run(path, KEY.public.vkey, f"policy={models['policy']}", f"base={models['base']}")
    assert done.returncode == 0, done.stderr
    expected = f"attested of 'mine/policy' and 'base' and 'base': passed True, signed by {KEY.public.vkey}\n"
    assert done.stdout == expected
    file = run(path, KEY.public.vkey, f"base={models['base'] / 'model.gguf'}")
    assert file.returncode == 0, file.stderr


def test_both_refuse_what_is_not(tmp_path: Path, models: dict[str, Path]) -> None:
    path = tmp_path / "attestation"
    whole = attest(DOCUMENT, files_of(models), KEY, TIME)
    extra = models["policy"] / "extra"
    payload = json.dumps({"_type": "x", "predicateType": "y", "subject": [], "predicate": {}})
    trials = (
        (whole, OTHER.public.vkey, None, "not signed by this key"),
        (whole.replace(b'"payload":"e', b'"payload":"f'), KEY.public.vkey, None, "not signed"),
        (whole[:-20], KEY.public.vkey, None, "(?i)unterminated|expecting|delimiter"),
        (whole[:-2] + b',"payload":""}', KEY.public.vkey, None, "twice"),
        (sign_envelope(payload.encode(), [KEY]), KEY.public.vkey, None, "something else"),
        (whole, KEY.public.vkey, models["reference"], "files of the policy"),
        (whole, KEY.public.vkey, models["policy"], "files of the policy"),
    )
    extra.write_bytes(b"")
    for envelope, vkey, policy, said in trials:
        path.write_bytes(envelope)
        with pytest.raises(ValueError, match=said):
            SECOND.verify_attestation(
                str(path), vkey, *([] if policy is None else [f"policy={policy}"])
            )
        key = OTHER if vkey == OTHER.public.vkey else KEY
        assert not check(envelope, [key.public], policy=policy).ok
    done = run(path, OTHER.public.vkey)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not verified: the envelope is not signed by this key" in done.stderr
    assert "usage" in run(path).stderr
