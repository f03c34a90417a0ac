"""Attestations: what is stated of a comparison, that it holds of these files and no others, and in whose word."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kleash.audit.attestation import (
    NON_CLAIMS,
    Attested,
    FileDigest,
    attest,
    binding_digest,
    check,
    list_files,
    statement,
)
from kleash.audit.claims import read_claims
from kleash.errors import InputError, TamperError
from kleash.ledger import ML_DSA_44, PublicKey, encode
from kleash.ledger.envelope import open_envelope, sign_envelope
from tests.audit.compared import (
    ALL,
    CODE,
    CODE_TOKEN,
    DOCUMENT,
    KEY,
    OTHER,
    SECRET,
    TIME,
    TOKEN,
    document,
    files_of,
    limit,
    write_models,
)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return write_models(tmp_path)


@pytest.fixture
def envelope(models: dict[str, Path]) -> bytes:
    return attest(DOCUMENT, files_of(models), KEY, TIME)


def stated(models: dict[str, Path]) -> dict[str, Any]:
    return json.loads(statement(DOCUMENT, files_of(models), TIME))


def signed(statement: dict[str, Any]) -> Attested:
    return check(sign_envelope(encode(statement), [KEY]), [KEY.public])


def wrong(found: Attested) -> list[str]:
    return [str(problem) for problem in found.problems]


def test_what_was_attested_is_found_so(models: dict[str, Path], envelope: bytes) -> None:
    found = check(envelope, [KEY.public], policy=models["policy"], reference=models["reference"])
    assert found.ok
    assert found.trusted
    assert found.notes == ()
    assert found.keys == (KEY.public,)
    assert found.checks[-2:] == ("policy files", "reference files")
    claims = found.claims
    assert claims is not None
    assert claims.names == {"policy": "mine/policy", "reference": "base"}
    assert (claims.time, claims.prompts, claims.prompts_sha256) == (TIME, 16, "ef" * 32)
    assert [(each.name, str(each)) for each in claims.figures] == [
        ("js_per_response", "0.5 [0.25, 0.75] nats/response"),
        ("kl_policy_ref_per_response", "3.5 [3, 4] nats/response"),
        ("kl_ref_policy_per_response", "2.5 [2, 3] nats/response"),
        ("js_per_token", "0.02 nats/token"),
        ("kl_policy_ref_per_token", "0.11 [0.09, 0.125] nats/token"),
    ]
    assert claims.passed is None
    assert claims.non_claims == NON_CLAIMS


def test_the_statement_is_of_in_toto_and_has_what_was_measured(models: dict[str, Path]) -> None:
    made = stated(models)
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert made["predicateType"] == "urn:kleash:policy-drift:v1"
    files = files_of(models)
    assert made["subject"] == [
        {"name": "mine/policy", "digest": {"sha256": binding_digest(files["policy"])}},
        {"name": "base", "digest": {"sha256": binding_digest(files["reference"])}},
    ]
    predicate = made["predicate"]
    measured = predicate["measurements"]
    assert measured["kl_policy_ref_per_response"] == ALL
    assert measured["per_token"] == DOCUMENT["per_token"]
    assert measured["slices"]["code"] == {
        "kl_policy_ref_per_response": CODE,
        "per_token": {"kl_policy_ref": CODE_TOKEN},
    }
    assert measured["entropy"] == {"policy": "inf", "reference": "nan"}
    assert measured["log_ratio"] == {"p99": 3.25, "largest": {"value": 9.5}}
    assert measured["retention"] == {"nll": {"policy": 2.0, "reference": 1.5}}
    assert measured["tokens"] == 2048
    assert predicate["settings"] == DOCUMENT["settings"]
    assert predicate["prompts"] == {"sha256": "ef" * 32, "count": 16}
    assert predicate["weights"] == {"policy": "ab" * 32, "reference": "cd" * 32}
    assert predicate["versions"] == DOCUMENT["versions"]
    assert predicate["files"]["base"] is None
    assert predicate["time"] == TIME


def test_no_text_of_a_prompt_or_an_answer_is_stated(models: dict[str, Path]) -> None:
    assert SECRET in json.dumps(DOCUMENT)
    assert SECRET.encode() not in statement(DOCUMENT, files_of(models), TIME)


def test_one_statement_has_one_encoding(models: dict[str, Path], envelope: bytes) -> None:
    payload = open_envelope(envelope, [KEY.public]).payload
    assert payload == encode(json.loads(payload))
    assert envelope == attest(DOCUMENT, files_of(models), KEY, TIME)


def test_a_digest_binds_names_sizes_and_bytes(models: dict[str, Path]) -> None:
    """Also two names that swap their bytes: over digests alone they would be the same."""
    files = list_files(models["policy"])
    assert [each.path for each in files] == ["config.json", "model.safetensors", "sub/a.txt"]
    assert files[1].size == 6
    assert files[1].sha256 == hashlib.sha256(b"policy").hexdigest()
    written = json.dumps(
        [{"path": each.path, "sha256": each.sha256, "size": each.size} for each in files],
        separators=(",", ":"),
    )
    assert binding_digest(files) == hashlib.sha256(written.encode()).hexdigest()
    assert binding_digest(reversed(files)) == binding_digest(files)
    one, other = models["policy"] / "config.json", models["policy"] / "model.safetensors"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert binding_digest(list_files(models["policy"])) != binding_digest(files)


def test_a_model_of_one_file_and_the_base_of_an_adapter(models: dict[str, Path]) -> None:
    file = models["base"] / "model.gguf"
    assert list_files(file) == list_files(models["base"])
    made = attest(DOCUMENT, files_of(models, "policy", "reference", "base"), KEY, TIME)
    found = check(made, [KEY.public], base=file)
    assert found.ok
    assert found.notes == (
        "the policy's files were not checked: give --policy DIR",
        "the reference's files were not checked: give --reference DIR",
    )
    assert found.claims is not None
    assert found.claims.names["base"] == "base"
    named = DOCUMENT | {"policy": DOCUMENT["policy"] | {"base": "a/base"}}
    made = attest(named, files_of(models, "policy", "reference", "base"), KEY, TIME)
    claims = check(made, [KEY.public]).claims
    assert claims is not None
    assert claims.names["base"] == "a/base"


def changed(path: Path) -> None:
    (path / "config.json").write_bytes(b"[]")


def grown(path: Path) -> None:
    (path / "config.json").write_bytes(b"{}\n")


def missing(path: Path) -> None:
    (path / "config.json").unlink()


def extra(path: Path) -> None:
    (path / "sub" / "évil\n.py").write_bytes(b"")


def renamed(path: Path) -> None:
    (path / "config.json").rename(path / "Config.json")


def linked_out(path: Path) -> None:
    content = (path / "config.json").rename(path.parent / "config.json")
    (path / "config.json").symlink_to(content)


def linked_directory(path: Path) -> None:
    (path / "more").symlink_to(path.parent / "reference")


def dangling(path: Path) -> None:
    (path / "more").symlink_to("nothing")


def pipe(path: Path) -> None:
    os.mkfifo(path / "more")


def not_utf8(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path) + b"/\xff")).write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (changed, ["policy/config.json: changed since it was recorded"]),
        (grown, ["policy/config.json: changed since it was recorded: 3 bytes, where it had 2"]),
        (missing, ["policy/config.json: recorded, but not there"]),
        (extra, [r"policy/sub/\xe9vil\n.py: not in the record: it was added"]),
        (
            renamed,
            [
                "policy/Config.json: not in the record: it was added",
                "policy/config.json: recorded, but not there",
            ],
        ),
        (
            linked_out,
            ["policy/config.json: the path leads out of the model's directory; it was not opened"],
        ),
        (linked_directory, ["policy/more: a link to a directory; it was not followed"]),
        (dangling, ["policy/more: it cannot be read: not a regular file"]),
        (pipe, ["policy/more: it cannot be read: not a regular file"]),
        (not_utf8, [r"policy/\udcff: its name is not UTF-8; it was not opened"]),
    ],
)
def test_files_that_are_not_the_recorded_ones_are_named(
    models: dict[str, Path], envelope: bytes, change: Callable[[Path], None], problems: list[str]
) -> None:
    change(models["policy"])
    found = check(envelope, [KEY.public], policy=models["policy"])
    assert wrong(found) == problems
    assert check(envelope, [KEY.public], reference=models["reference"]).ok
    if change in (linked_out, linked_directory, dangling, pipe, not_utf8):
        with pytest.raises(InputError, match="cannot be listed"):
            list_files(models["policy"])


def test_a_directory_that_cannot_be_listed_may_hold_anything(
    models: dict[str, Path], envelope: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = check(envelope, [KEY.public], policy=models["policy"])
    assert "policy/sub: it cannot be read: Permission denied" in wrong(found)


def test_the_links_of_a_hub_cache_are_followed_and_no_others(tmp_path: Path) -> None:
    model = tmp_path / "models--a--b"
    snapshot = model / "snapshots" / "0123"
    blobs = model / "blobs"
    for directory in (snapshot, blobs):
        directory.mkdir(parents=True)
    (blobs / "ab").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/ab")
    (snapshot / "again").symlink_to("model.safetensors")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert list_files(snapshot) == (
        FileDigest(path="again", size=7, sha256=sha256),
        FileDigest(path="model.safetensors", size=7, sha256=sha256),
    )
    (tmp_path / "main").symlink_to(snapshot)
    assert list_files(tmp_path / "main") == list_files(snapshot)
    (model / "secret").write_bytes(b"")
    (snapshot / "out").symlink_to("../../secret")
    with pytest.raises(InputError, match="leads out"):
        list_files(snapshot)
    (snapshot / "out").unlink()
    elsewhere = blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(elsewhere)
    with pytest.raises(InputError, match="leads out"):
        list_files(snapshot)


def test_where_there_is_no_model(tmp_path: Path, envelope: bytes) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files"):
        list_files(tmp_path / "empty")
    with pytest.raises(InputError, match="No such file"):
        list_files(tmp_path / "nothing")
    with pytest.raises(InputError, match="no policy at"):
        check(envelope, [KEY.public], policy=tmp_path / "nothing")
    with pytest.raises(InputError, match="of no base"):
        check(envelope, [KEY.public], base=tmp_path)


def test_models_given_for_each_other(models: dict[str, Path], envelope: bytes) -> None:
    found = check(envelope, [KEY.public], policy=models["reference"], reference=models["policy"])
    assert wrong(found) == [
        "policy files: these are the files of the reference",
        "reference files: these are the files of the policy",
    ]


def test_a_signature_by_another_or_over_another_is_a_problem(envelope: bytes) -> None:
    found = check(envelope, [OTHER.public])
    assert (found.ok, found.trusted, found.claims, found.keys) == (False, False, None, ())
    assert "no signature by a known key" in wrong(found)[0]
    assert check(envelope, [OTHER.public, KEY.public]).ok
    data = json.loads(envelope)
    payload = open_envelope(envelope, [KEY.public]).payload
    other = sign_envelope(payload.replace(b'"count":16', b'"count":99'), [OTHER])
    forged = encode(data | {"payload": json.loads(other)["payload"]})
    for keys in ([KEY.public], None):
        found = check(forged, keys)
        assert found.claims is None
        assert "a signature does not hold" in wrong(found)[0]


def test_without_a_key_the_envelope_has_only_its_own_word(envelope: bytes) -> None:
    found = check(envelope, None)
    assert (found.ok, found.trusted, found.keys) == (True, False, (KEY.public,))
    assert "key" not in found.checks
    bare = json.loads(envelope)
    bare["signatures"][0]["keyid"] = "somebody"
    assert check(encode(bare), [KEY.public]).ok
    with pytest.raises(InputError, match="does not say which key"):
        check(encode(bare), None)


def test_keys_after_the_quantum_computer_are_refused(envelope: bytes) -> None:
    with pytest.raises(InputError, match="Ed25519"):
        check(envelope, [PublicKey(name="pq", raw=bytes(1312), kind=ML_DSA_44)])


def test_it_is_verified_as_it_is_stored(models: dict[str, Path]) -> None:
    """Written with spaces and in another order by somebody's tool: the bytes are what counts."""
    payload = json.dumps(dict(reversed(stated(models).items())), indent=2).encode()
    assert check(sign_envelope(payload, [KEY]), [KEY.public], policy=models["policy"]).ok


def test_a_statement_that_can_be_read_in_two_ways_is_refused(models: dict[str, Path]) -> None:
    payload = statement(DOCUMENT, files_of(models), TIME)
    twice = payload.replace(b'"count":16', b'"count":16,"count":99')
    found = check(sign_envelope(twice, [KEY]), [KEY.public])
    assert found.claims is None
    assert "twice" in wrong(found)[0]


LIMITS = [
    (limit("all", ALL, 4.0, passed=True), True),
    (limit("all", ALL, 3.9, passed=False), False),
    (limit("all", TOKEN, 0.2, passed=True), True),
    (limit("code", CODE, 4.0, passed=False), False),
    (limit("code", CODE_TOKEN, 0.25, passed=True), True),
]


@pytest.mark.parametrize(("bound", "passed"), LIMITS)
def test_the_upper_end_of_the_interval_decides(
    models: dict[str, Path], bound: dict[str, Any], passed: bool
) -> None:
    """Whether it passed or not, the attestation is authentic."""
    made = document(bound, passed=passed)
    found = check(attest(made, files_of(models), KEY, TIME), [KEY.public])
    assert found.ok
    assert found.claims is not None
    assert found.claims.passed is passed
    assert found.claims.limits[0].holds is passed
    assert found.claims.reasons == tuple(made["verdict"]["reasons"])
    for other in (not passed, None):
        with pytest.raises(InputError, match="contradicts itself"):
            attest(document(bound, passed=other), files_of(models), KEY, TIME)


def test_a_limit_without_an_interval_is_not_shown_to_hold(models: dict[str, Path]) -> None:
    made = document(passed=False)
    for high in (None, float("nan"), float("inf")):
        made["kl_policy_ref_per_response"] = ALL | {"high": high}
        bound = limit("all", made["kl_policy_ref_per_response"], 1e9, passed=False)
        found = check(attest(made | {"limits": [bound]}, files_of(models), KEY, TIME), [KEY.public])
        assert found.ok
        assert found.claims is not None
        assert not found.claims.limits[0].holds
        with pytest.raises(InputError, match="contradicts"):
            attest(made | {"limits": [bound | {"passed": True}]}, files_of(models), KEY, TIME)


def edit(made: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    inner: Any = made
    for part in parents:
        inner = inner[part]
    inner[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("predicate/verdict/passed", False, "verdict: says failed, where limits and measurements"),
        ("predicate/verdict/passed", None, "verdict: says no limit"),
        (
            "predicate/limits",
            [],
            "verdict: says passed, where limits and measurements say no limit",
        ),
        ("predicate/limits/0/passed", False, "limit on all: says failed"),
        ("predicate/limits/0/limit", 3.0, "limit on all: says passed"),
        ("predicate/limits/0/high", 3.9, "limit on all: its figures are not the measured"),
        ("predicate/limits/0/scope", "law", "limit on law: there is no measurement per response"),
        ("predicate/limits/0/unit", "token", "limit on all: its figures are not the measured"),
        ("predicate/measurements/per_token", {}, "limit on all: there is no measurement per token"),
        (
            "predicate/measurements/kl_policy_ref_per_response/high",
            4.5,
            "limit on all: its figures are not the measured",
        ),
        ("predicate/files/policy/0/path", "other", "subject policy: its digest is not"),
        ("predicate/files/reference/1/size", 1, "subject reference: its digest is not"),
        ("subject/0/digest/sha256", "0" * 64, "subject policy: its digest is not"),
    ],
)
def test_a_statement_that_contradicts_itself_is_a_problem(
    models: dict[str, Path], path: str, value: Any, problem: str
) -> None:
    """However well it is signed."""
    limits = (limit("all", ALL, 4.0, passed=True), limit("all", TOKEN, 0.2, passed=True))
    made = json.loads(statement(document(*limits, passed=True), files_of(models), TIME))
    assert signed(made).ok
    found = signed(edit(made, path, value))
    assert any(each.startswith(problem) for each in wrong(found))


def test_subjects_that_change_places_are_found(models: dict[str, Path]) -> None:
    made = stated(models)
    made["subject"].reverse()
    assert [problem.where for problem in signed(made).problems] == [
        "subject policy",
        "subject reference",
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1"),
        ("predicateType", "https://slsa.dev/provenance/v1"),
        ("subject", []),
        ("subject", None),
        ("subject/0", "policy"),
        ("subject/0/name", 1),
        ("subject/0/digest", {"sha512": "0"}),
        ("subject/0/digest/sha256", "AB" * 32),
        ("predicate", []),
        ("predicate/files", {}),
        ("predicate/files/policy", None),
        ("predicate/files/policy", []),
        ("predicate/files/policy/0/size", True),
        ("predicate/files/policy/0/size", -1),
        ("predicate/files/policy/1/path", "config.json"),
        ("predicate/files/base", [{"path": "a", "size": 0, "sha256": "0" * 64}]),
        ("predicate/time", "2030-01-02"),
        ("predicate/prompts/count", "16"),
        ("predicate/prompts/sha256", None),
        ("predicate/verdict", None),
        ("predicate/verdict/passed", 1),
        ("predicate/verdict/reasons", [1]),
        ("predicate/nonClaims", None),
        ("predicate/limits", None),
        ("predicate/limits", [{}]),
        ("predicate/limits", [limit("all", ALL, 4.0, passed=True) | {"limit": None}]),
        ("predicate/limits", [limit("all", ALL, 4.0, passed=True) | {"unit": "word"}]),
        ("predicate/limits", [limit("all", ALL, 4.0, passed=True) | {"passed": None}]),
        ("predicate/limits", [limit("all", ALL, 4.0, passed=True) | {"high": 10**400}]),
        ("predicate/measurements", None),
        ("predicate/measurements/kl_policy_ref_per_response/value", "3.5"),
        ("predicate/measurements/kl_policy_ref_per_response/value", False),
        ("predicate/measurements/kl_policy_ref_per_response/n", 1.5),
        ("predicate/measurements/kl_policy_ref_per_response/unit", None),
    ],
)
def test_a_field_of_another_form_is_a_problem_and_no_error(
    models: dict[str, Path], path: str, value: Any
) -> None:
    found = signed(edit(stated(models), path, value))
    assert (found.ok, found.claims, found.keys) == (False, None, (KEY.public,))
    assert [problem.where for problem in found.problems] == ["statement"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"limits": None}, "cannot be attested"),
        ({"policy": {}}, "KeyError"),
        ({"prompts": {"sha256": "no", "count": 16}}, "cannot be attested"),
        ({"slices": {"code": 1}}, "cannot be attested"),
    ],
)
def test_a_document_of_another_form_is_not_attested(
    models: dict[str, Path], change: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        statement(DOCUMENT | change, files_of(models), TIME)


def test_what_is_not_attested(models: dict[str, Path]) -> None:
    files = files_of(models)
    for given in ({"policy": files["policy"]}, files | {"policy": ()}):
        with pytest.raises(InputError, match="cannot be attested"):
            statement(DOCUMENT, given, TIME)
    with pytest.raises(InputError, match="files of other, policy, reference"):
        statement(DOCUMENT, files | {"other": files["policy"]}, TIME)
    with pytest.raises(InputError, match="cannot be attested"):
        statement(DOCUMENT, files, "yesterday")


def test_a_figure_that_was_not_measured_is_none(models: dict[str, Path]) -> None:
    made = DOCUMENT | {"js_per_response": ALL | {"value": None, "low": None, "high": None}}
    claims, problems = read_claims(statement(made, files_of(models), TIME))
    assert problems == []
    assert str(claims.figures[0]) == "not measured nats/response"


def test_what_was_found_as_json(models: dict[str, Path], envelope: bytes) -> None:
    (models["policy"] / "config.json").unlink()
    broken = json.loads(encode(check(envelope, [KEY.public], policy=models["policy"]).to_json()))
    found = json.loads(encode(check(envelope, [KEY.public]).to_json()))
    # Of a statement that something speaks against nothing is given on.
    assert (broken["ok"], broken["claims"], found["ok"]) == (False, None, True)
    assert found["key_trusted"] is True
    assert found["keys"] == [KEY.public.vkey]
    missing = {"where": "policy/config.json", "what": "recorded, but not there"}
    assert broken["problems"] == [missing]
    assert found["claims"]["models"]["policy"]["files"] == 3
    assert found["claims"]["figures"]["kl_policy_ref_per_response"] == {
        "value": 3.5,
        "low": 3.0,
        "high": 4.0,
        "level": 0.95,
        "n": 64,
        "unit": "response",
    }
    assert json.loads(encode(check(b"", [KEY.public]).to_json()))["claims"] is None


def test_an_auditor_needs_no_torch() -> None:
    script = (
        "import sys, kleash.audit.attestation\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy'} & sys.modules.keys()\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_statement_at_all() -> None:
    with pytest.raises(TamperError, match="not an attestation"):
        read_claims(b"{}")
