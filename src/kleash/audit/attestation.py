"""The attestation of a comparison: who says that this policy is so far from that reference, and of which bytes.

No torch. An in-toto statement (v1) in a DSSE envelope; docs/attestation-format.md fixes its form. No text of a prompt
or an answer is in it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleash.audit.binding import FileDigest, binding_digest, compare_files, list_files, scan_files
from kleash.audit.claims import (
    PREDICATE_TYPE,
    ROLES,
    STATEMENT_TYPE,
    Claims,
    Figure,
    Limit,
    read_claims,
)
from kleash.errors import InputError, TamperError
from kleash.ledger import Problem, PublicKey, Signer, encode
from kleash.ledger.envelope import carried_keys, open_envelope, sign_envelope

__all__ = [
    "NON_CLAIMS",
    "PREDICATE_TYPE",
    "ROLES",
    "STATEMENT_TYPE",
    "Attested",
    "Claims",
    "Figure",
    "FileDigest",
    "Limit",
    "attest",
    "binding_digest",
    "check",
    "list_files",
    "statement",
]

NON_CLAIMS = (
    "Self-signed: the signature shows whose word this is, and not that the word is true.",
    "It says what was measured on these prompts with these settings, and nothing of others.",
    "A divergence that is small on average can be large in a context that was not tried.",
    "An interval misses the mean now and then, as often as its level says, and more often with few prompts.",
    "A digest says which bytes, and not whether a model is good, safe or lawful.",
    "The time is that of the signer's clock.",
)
"""What an attestation does not show; each one carries these sentences."""

_MEASUREMENT = re.compile(
    r"(kl|js|entropy|log_ratio|nll|tails?|retention)(_[a-z0-9_]+)?|per_token|response_length|search"
)
"""Entries of a comparison that are measurements, and so are its plain numbers; `slices` has the same of each slice."""
_WORDS = ("unit", "direction", "estimator", "reference", "sha256")
"""Fields of a reading that are words; no other text is taken into a statement's measurements."""
_NON_FINITE = ("nan", "inf", "-inf")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.]{0,79}")
_LIMIT = ("scope", "unit", "limit", "value", "low", "high", "passed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Attested:
    """What `check` found."""

    checks: tuple[str, ...]
    """The checks made, by name."""
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    """What was not checked."""
    keys: tuple[PublicKey, ...] = ()
    """By which it is signed."""
    trusted: bool = False
    """Whether these were asked for: else they are the envelope's own word for whose it is."""
    claims: Claims | None = None
    """What it says; None where the signature does not hold, or it can't be read."""

    @property
    def ok(self) -> bool:
        """Whether it is authentic, and the files that were looked at are the recorded ones.

        This is not its verdict: that a policy is over its limits can be attested too.
        """
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "ok": self.ok,
            "keys": [key.vkey for key in self.keys],
            "key_trusted": self.trusted,
            "checks": list(self.checks),
            "problems": [problem.to_json() for problem in self.problems],
            "notes": list(self.notes),
            # Of a statement that something speaks against nothing is given on.
            "claims": None if self.claims is None or not self.ok else self.claims.to_json(),
        }


def statement(
    document: Mapping[str, Any], files: Mapping[str, Sequence[FileDigest]], time: str
) -> bytes:
    """The in-toto statement of a comparison, in canonical JSON.

    Args:
        document: what `kleash compare --json` says. Texts of prompts and answers are left out.
        files: those of `policy` and `reference`, and of the `base` that an adapter among them is for.
        time: when it is made, as `2030-01-02T03:04:05Z`.

    Raises:
        InputError: something is missing, or the document contradicts itself.
    """
    try:
        listed = {role: sorted(files[role]) for role in ROLES if role in files}
        names = {role: _name(document, role) for role in listed}
        made = {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": names[role], "digest": {"sha256": binding_digest(each)}}
                for role, each in listed.items()
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": _predicate(document, listed, time),
        }
        payload = encode(made)
        claims, found = read_claims(payload)
    except (KeyError, TypeError, AttributeError, TamperError) as error:
        raise InputError(
            "this comparison cannot be attested",
            expected="the document of kleash compare --json, and the files of both models",
            got=f"{type(error).__name__}: {error}",
        ) from error
    if found or claims.names.keys() != files.keys():
        raise InputError(
            "the comparison contradicts itself, and is not attested",
            got="; ".join(map(str, found)) or f"files of {', '.join(sorted(files))}",
        )
    return payload


def attest(
    document: Mapping[str, Any],
    files: Mapping[str, Sequence[FileDigest]],
    signer: Signer,
    time: str,
) -> bytes:
    """The statement of a comparison in an envelope that `signer` signed: what the attestation's file holds.

    Raises:
        InputError: it cannot be stated, or the key is not Ed25519.
    """
    return sign_envelope(statement(document, files, time), [signer])


def check(
    envelope: bytes,
    keys: Iterable[PublicKey] | None,
    *,
    policy: Path | None = None,
    reference: Path | None = None,
    base: Path | None = None,
) -> Attested:
    """Check an attestation: its signature, that it does not contradict itself, and the models' files.

    Args:
        envelope: what the file holds.
        keys: those whose word is taken; None: whatever key the envelope itself gives, which anybody can make.
        policy: where the policy's files are; None: they are not looked at.
        reference: where the reference's are.
        base: where those of the adapters' base are.

    Raises:
        InputError: a key is not Ed25519, there is nothing at one of the paths, a base is given and none is recorded, or
            without `keys` the envelope carries none.
    """
    checks = ["signature"] + ([] if keys is None else ["key"])
    try:
        known = carried_keys(envelope) if keys is None else tuple(keys)
        opened = open_envelope(envelope, known)
    except TamperError as error:
        return Attested(checks=tuple(checks), problems=(_problem("envelope", error),))
    checks += ["statement", "subjects", "verdict"]
    try:
        claims, problems = read_claims(opened.payload)
    except TamperError as error:
        return Attested(
            checks=tuple(checks), problems=(_problem("statement", error),), keys=opened.keys
        )
    given = {"policy": policy, "reference": reference, "base": base}
    notes: list[str] = []
    for role in ROLES:
        path = given[role]
        if path is not None:
            checks.append(f"{role} files")
            problems += _check_files(claims, role, path)
        elif role in claims.files:
            notes.append(f"the {role}'s files were not checked: give --{role} DIR")
    return Attested(
        checks=tuple(checks),
        problems=tuple(problems),
        notes=tuple(notes),
        keys=opened.keys,
        trusted=keys is not None,
        claims=claims,
    )


def _problem(where: str, error: TamperError) -> Problem:
    return Problem(where=where, what=str(error))


def _check_files(claims: Claims, role: str, path: Path) -> list[Problem]:
    if role not in claims.files:
        raise InputError(
            f"the attestation is of no {role}", expected=", ".join(claims.files), got=f"--{role}"
        )
    there = scan_files(role, path)
    problems = compare_files(role, there, claims.files[role])
    for other, files in claims.files.items():
        if problems and other != role and not compare_files(other, there, files):
            return [Problem(where=f"{role} files", what=f"these are the files of the {other}")]
    return problems


def _name(document: Mapping[str, Any], role: str) -> str:
    """The name of a model; of a base where the document has one."""
    if role != "base":
        return document[role]["name"]
    return next((x for side in ROLES[:2] if (x := document[side].get("base"))), role)


def _predicate(
    document: Mapping[str, Any], files: Mapping[str, Sequence[FileDigest]], time: str
) -> dict[str, Any]:
    prompts, verdict = document["prompts"], document["verdict"]
    return {
        "measurements": _measurements(document),
        "settings": document["settings"],
        "prompts": {key: prompts[key] for key in ("sha256", "count")},
        "files": {
            role: [each.to_json() for each in files[role]] if role in files else None
            for role in ROLES
        },
        "weights": {role: document[role]["weights"] for role in ("policy", "reference")},
        "versions": document["versions"],
        "time": time,
        "limits": [{key: each[key] for key in _LIMIT} for each in document["limits"]],
        "verdict": {"passed": verdict["passed"], "reasons": list(verdict["reasons"])},
        "nonClaims": list(NON_CLAIMS),
    }


def _measurements(document: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, and no text: neither of prompts and answers nor of tokens."""
    found = {
        key: _figures(value)
        for key, value in document.items()
        if type(value) in (int, float)
        or (_MEASUREMENT.fullmatch(key) and isinstance(value, Mapping))
    }
    if slices := document.get("slices"):
        found["slices"] = {name: _measurements(each) for name, each in slices.items()}
    return found


def _figures(value: Any) -> Any:
    """Numbers as they are, and the words of a reading; no other text, and no list, as of tokens."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _figures(item)
        for key, item in value.items()
        if _NAME.fullmatch(key) and (_is_figure(item) or (key in _WORDS and isinstance(item, str)))
    }


def _is_figure(item: Any) -> bool:
    return item in _NON_FINITE or isinstance(item, Mapping | int | float | None)
