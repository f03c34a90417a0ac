"""The run directory of a trainer that its user built and starts: what it is begun with, and how it is closed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kleash.integrations.trl.attached import Models
from kleash.ledger import open_signing_key
from kleash.models.hub import vocabulary_digest
from kleash.records import KLReading
from kleash.replay import SKIPPED
from kleash.train.card import reading_text
from kleash.train.directory import Conclude, Ending, RunDirectory, begin
from kleash.train.run import LIBRARIES, sha256_of, versions
from kleash.train.trackers import Trackers


def open_directory(
    run: Path,
    config: Mapping[str, Any],
    digests: Mapping[str, str],
    plan: Mapping[str, Any] | None,
    conclude: Conclude,
) -> RunDirectory:
    """A new run, its first entries written.

    Args:
        run: where; nothing is there.
        config: all that its decisions can be made again from, and what TRL was told.
        digests: what it starts from.
        plan: what limits and steers it; None where it is only watched.
        conclude: asked at the end for what is saved.
    """
    started = {
        "config": config,
        "versions": versions((*LIBRARIES, "datasets", "trl")),
        "digests": digests,
        "self_test": SKIPPED,
    }
    ledger = begin(run, started, [open_signing_key()], plan=plan)
    return RunDirectory(run, ledger, conclude, Trackers((), "cpu"))


def digests_of(models: Models, dataset: Any) -> dict[str, str]:
    """Which weights, which tokenizer and, where they can be counted, which rows a run starts from."""
    found = {
        "policy": models.policy.digest(),
        "reference": models.reference.digest(),
        "tokenizer": vocabulary_digest(models.policy.tokenizer),
    }
    names: Sequence[str] = getattr(dataset, "column_names", None) or ()
    if "prompt" in names and hasattr(dataset, "__len__"):
        found["prompts"] = sha256_of(list(dataset["prompt"]))
    return found


def told(trainer: Any) -> dict[str, Any]:
    """What TRL was told, as JSON can carry it; no token of a hub is among it."""
    said = trainer.args.to_dict()
    return {
        name: value if isinstance(value, int | float | bool | type(None)) else str(value)
        for name, value in said.items()
        if not name.endswith("_token")
    }


def card_of(name: str, models: Models, ending: Ending, drift: KLReading | None) -> str:
    """README.md of `final/`.

    Args:
        name: of TRL's trainer.
        models: policy and reference.
        ending: how the run ended.
        drift: KL(π‖π_ref) of the weights that are saved; None when it was not measured.
    """
    last = ending.last
    held = (
        []
        if last is None
        else [f"- last measured, at step {last.step}: {reading_text(last.kl)}"]
        + ([] if last.kl_coef is None else [f"- β at that step: {last.kl_coef:.6g}"])
    )
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [kleash, trl]",
            "---",
            "",
            f"# {models.policy.name}, trained with {name}",
            "",
            f"Trained by TRL's {name}, on kleash's leash ({ending.status}).",
            "",
            "## Drift from the reference",
            "",
            f"- reference: {models.reference.name}",
            f"- KL(π‖π_ref) of these weights: {reading_text(drift)}",
            *held,
            "",
            "A small KL keeps a model near its reference; it doesn't make it right, and it keeps its faults.",
            "",
            "`kleash verify` on the run directory checks the record behind these figures.",
            "",
        ]
    )
