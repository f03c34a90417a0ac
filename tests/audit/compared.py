"""A comparison as `kleash compare --json` says it, and two small models on disk that it might be of."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kleash.audit.attestation import FileDigest, list_files
from kleash.ledger import SigningKey

KEY = SigningKey.generate()
OTHER = SigningKey.generate()
TIME = "2030-01-02T03:04:05Z"
SECRET = "what the model was asked"
"""Text of a prompt: it may be nowhere in an attestation."""


def reading(value: float, low: float | None, high: float | None, unit: str = "response") -> dict:
    return {
        "value": value,
        "low": low,
        "high": high,
        "level": 0.95,
        "n": 64,
        "clusters": 16,
        "direction": "policy_ref",
        "unit": unit,
        "estimator": "exact",
        "reference": "base",
    }


def limit(scope: str, of: Mapping[str, Any], bound: float, *, passed: bool) -> dict[str, Any]:
    figures = {key: of[key] for key in ("value", "low", "high")}
    return {"scope": scope, "unit": of["unit"], "limit": bound, **figures, "passed": passed}


ALL = reading(3.5, 3.0, 4.0)
TOKEN = reading(0.11, 0.09, 0.125, "token")
CODE = reading(5.0, 4.5, 6.0)
CODE_TOKEN = reading(0.2, 0.15, 0.25, "token")
DOCUMENT: dict[str, Any] = {
    "format": "kleash-comparison/1",
    "policy": {"name": "mine/policy", "kind": "directory", "weights": "ab" * 32},
    "reference": {"name": "base", "kind": "directory", "weights": "cd" * 32},
    "settings": {"samples": 4, "max_new_tokens": 32, "seed": 0},
    "prompts": {"source": "prompts.txt", "sha256": "ef" * 32, "count": 16, "left_out": [SECRET]},
    "kl_policy_ref_per_response": ALL,
    "kl_ref_policy_per_response": reading(2.5, 2.0, 3.0) | {"direction": "ref_policy"},
    "js_per_response": reading(0.5, 0.25, 0.75),
    "per_token": {"kl_policy_ref": TOKEN, "js": reading(0.02, None, None, "token")},
    "log_ratio": {"p99": 3.25, "largest": {"value": 9.5, "text": SECRET, "tokens": [SECRET]}},
    "entropy": {"policy": float("inf"), "reference": "nan"},
    "tokens": 2048,
    "slices": {
        "code": {
            "kl_policy_ref_per_response": CODE,
            "per_token": {"kl_policy_ref": CODE_TOKEN},
            "worst": [{"prompt": SECRET}],
            "text": SECRET,
        }
    },
    "where": {"prompts": [{"text": SECRET, "kl": 9.0}]},
    "retention": {"nll": {"policy": 2.0, "reference": 1.5}, "text": SECRET},
    "limits": [],
    "verdict": {"passed": None, "reasons": []},
    "versions": {"kleash": "0.2.0", "torch": "2.10"},
}


def document(*limits: dict[str, Any], passed: bool | None = None) -> dict[str, Any]:
    """The comparison under these limits."""
    made = copy.deepcopy(DOCUMENT)
    made["limits"] = list(limits)
    reasons = [f"{each['scope']} is over its limit" for each in limits if not each["passed"]]
    made["verdict"] = {"passed": passed, "reasons": reasons}
    return made


def write_models(directory: Path) -> dict[str, Path]:
    """A policy, a reference and a base: the policy's config.json is the reference's too."""
    contents = {
        "policy": {"config.json": b"{}", "model.safetensors": b"policy", "sub/a.txt": b""},
        "reference": {"config.json": b"{}", "model.safetensors": b"reference"},
        "base": {"model.gguf": b"base"},
    }
    for role, files in contents.items():
        for name, content in files.items():
            path = directory / role / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return {role: directory / role for role in contents}


def files_of(models: Mapping[str, Path], *roles: str) -> dict[str, tuple[FileDigest, ...]]:
    return {role: list_files(models[role]) for role in roles or ("policy", "reference")}
