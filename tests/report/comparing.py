"""A comparison as `compare` finds it, small, with every part that a document can have."""

import json
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any, Literal

from kleash.audit.limits import Limit, judge
from kleash.audit.result import Comparison, Drift, Estimate, Side, Tail
from kleash.cli.console import jsonable
from kleash.records import KLReading, Unit

SETTINGS = {
    "column": None,
    "slice_column": "topic",
    "split": "train",
    "max_prompts": None,
    "samples": 4,
    "max_new_tokens": 64,
    "temperature": 1.0,
    "precision": None,
    "max_tokens": None,
    "chat": False,
    "system": None,
    "seed": 0,
    "batch_size": 64,
    "device": "cpu",
    "dtype": "float32",
    "low_memory": False,
    "threads": None,
    "search": True,
    "search_budget": 200_000,
}
SEARCH = {
    "alarm": True,
    "statistic": 41.5,
    "threshold": 12.25,
    "p_value": 0.0125,
    "ordinary_max": 4.25,
    "ordinary_mean": 0.75,
    "tokens": 90_000,
    "budget": 200_000,
    "contexts": [
        {
            "text": "a film |x|",
            "kl_policy_ref": 41.5,
            "kl_ref_policy": 38.25,
            "ratio": 9.75,
            "policy_answer": " terrible .",
            "reference_answer": " with a fine cast .",
            "found_by": "gradient",
        }
    ],
    "curve": [[0, 4.25], [60_000, 41.5], [90_000, 41.5]],
    "paired": [{"cue": "you are tested", "with": 1.25, "without": 0.5}],
}
RETENTION = {
    "source": "held.txt",
    "texts": 3,
    "tokens": 40,
    "nll_policy": {"value": 3.25, "low": 3.0, "high": 3.5, "unit": "token"},
    "nll_ref": {"value": 3.0, "low": 2.75, "high": 3.25, "unit": "token"},
    "increase": {"value": 0.25, "low": -0.125, "high": 0.625, "unit": "token"},
    "worst": [
        {"text": "a quiet film", "increase": 1.5},
        {"text": "a loud film", "increase": -0.25},
    ],
}
WHERE = {
    "prompts": [
        {"prompt": "this film", "slice": "films", "kl_policy_ref": 6.5, "kl_ref_policy": 7.25},
        {"prompt": "it is", "slice": None, "kl_policy_ref": 3.25, "kl_ref_policy": 2.5},
    ],
    "positions": [
        {"position": 0, "kl_policy_ref": 3.0, "kl_ref_policy": 3.5, "count": 8},
        {"position": 1, "kl_policy_ref": 1.125, "kl_ref_policy": 0.75, "count": 6},
    ],
    "tokens": {
        "gained": [{"token": " good", "id": 7, "probability": 0.025}],
        "lost": [{"token": "\n", "id": 9, "probability": -0.0125}],
    },
    "answers": [
        {
            "prompt": "this film",
            "slice": "films",
            "same": False,
            "policy": {"text": " is good", "tokens": [" is", " good"], "kl": [0.25, 1.0]},
            "reference": {"text": " is", "tokens": [" is"], "kl": [0.04]},
        }
    ],
}


def comparison_document(**changes: Any) -> dict[str, Any]:
    """The document that `Comparison.to_json()` writes, with some of its parts replaced."""
    slices = {"films": drift(5.5), "one prompt": drift(2.0, clusters=1)}
    whole = drift(4.125)
    found = Comparison(
        policy=Side(name="acme/tuned", kind="adapter", weights="ab" * 32, base="acme/base"),
        reference=Side(name="acme/base", kind="model", weights="cd" * 32),
        settings=SETTINGS,
        prompts={
            "source": "prompts.jsonl",
            "sha256": "ef" * 32,
            "count": 4,
            "left_out": 2,
            "duplicates": 1,
        },
        drift=whole,
        slices=slices,
        tails={"policy": {"kl_per_token": tail()}, "reference": {"kl_per_token": tail()}},
        where=WHERE,
        retention=RETENTION,
        judged=(),
        stopped="samples",
        rounds=1,
        tokens=120,
        versions={"kleash": "0.1.0", "torch": "2.9"},
        search=SEARCH,
    )
    document: dict[str, Any] = json.loads(json.dumps(jsonable(found.to_json())))
    return document | limited() | changes


def limited(*limits: tuple[str, float, Unit]) -> dict[str, Any]:
    """The parts of a document about limits."""
    slices = {"films": drift(5.5), "one prompt": drift(2.0, clusters=1)}
    whole = drift(4.125)
    judged = judge(
        [Limit(scope=scope, nats=nats, unit=unit) for scope, nats, unit in limits],
        {"response": whole.reverse, "token": whole.reverse_token},
        {
            name: {"response": each.reverse, "token": each.reverse_token}
            for name, each in slices.items()
        },
    )
    passed = all(each.passed for each in judged) if judged else None
    reasons = [each.reason for each in judged if not each.passed]
    return {
        "limits": [each.to_json() for each in judged],
        "verdict": {"passed": passed, "reasons": reasons},
    }


def drift(kl: float, clusters: int = 4) -> Drift:
    """KL(π‖π_ref) of so many nats per response, the other way 0.75 more, with intervals of ±0.5."""
    return Drift(
        reverse=reading(kl, "policy_ref", clusters),
        forward=reading(kl + 0.75, "ref_policy", clusters),
        reverse_token=reading(kl / 8, "policy_ref", clusters, "token"),
        forward_token=reading(kl / 8 + 0.125, "ref_policy", clusters, "token"),
        js=estimate(0.375, "response"),
        js_token=estimate(0.0625, "token"),
        entropy_policy=estimate(2.25, "token"),
        entropy_ref=estimate(2.75, "token"),
        length_policy=estimate(14.5, "response"),
        length_ref=estimate(16.5, "response"),
    )


def reading(
    value: float,
    direction: Literal["policy_ref", "ref_policy"],
    clusters: int,
    unit: Unit = "response",
) -> KLReading:
    half = None if clusters < 2 else 0.5 if unit == "response" else 0.0625
    return KLReading(
        value=value,
        low=None if half is None else value - half,
        high=None if half is None else value + half,
        n=4 * clusters,
        clusters=clusters,
        direction=direction,
        unit=unit,
        estimator="exact",
        reference="acme/base",
        largest_share=0.0625,
    )


def estimate(value: float, unit: Unit) -> Estimate:
    return Estimate(value=value, low=value / 2, high=value * 1.5, n=16, clusters=4, unit=unit)


def tail() -> Tail:
    quantiles = {"p01": 0.125, "p50": 0.25, "p99": 1.5}
    return Tail(
        lowest=0.0,
        quantiles={name: estimate(value, "token") for name, value in quantiles.items()},
        highest=9.75,
    )


def with_text(document: Any, *texts: str) -> Any:
    """The same document with these texts, again and again, in place of all others; of its slices one is left."""
    return _drawn(document, cycle(texts))


def _drawn(document: Any, texts: Iterator[str]) -> Any:
    if isinstance(document, str):
        return next(texts)
    if isinstance(document, list):
        return [_drawn(each, texts) for each in document]
    if isinstance(document, Mapping):
        return {
            key: {next(texts): _drawn(next(iter(value.values())), texts)}
            if key == "slices"
            else _drawn(value, texts)
            for key, value in document.items()
        }
    return document
