"""`kleash compare`: how far two models are apart, where, and whether a limit holds."""

import json
from pathlib import Path
from typing import Any

import typer

from kleash.cli import compare_options as options
from kleash.cli.attesting import Attesting
from kleash.cli.compared import show_comparison
from kleash.cli.console import Screen, Steps, fixed, jsonable
from kleash.cli.options import AsJson, PassphraseFd, train_extra
from kleash.config import build
from kleash.errors import ConfigError, LimitError, ResourceError
from kleash.ledger.durable import replace_file
from kleash.records import KLReading
from kleash.report import drift_card, render_comparison


def compare(  # noqa: PLR0913, PLR0917 - the options of a command line
    policy: options.Policy,
    reference: options.Reference = None,
    prompts: options.Prompts = None,
    limit: options.Limit = None,
    out: options.Out = None,
    samples: options.Samples = 2,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    precision: options.Precision = None,
    max_tokens: options.MaxTokens = None,
    max_prompts: options.MaxPrompts = None,
    column: options.Column = None,
    slice_column: options.SliceColumn = "slice",
    split: options.Split = "train",
    chat: options.Chat = None,
    system: options.System = None,
    retain: options.Retain = None,
    search: options.Search = False,
    search_budget: options.SearchBudget = 200000,
    null: options.Null = None,
    show: options.Show = 8,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    dtype: options.Dtype = "float32",
    low_memory: options.LowMemory = False,
    attest: options.Attest = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """How far is POLICY from REFERENCE? Exact KL per token, both ways, with intervals clustered by prompt.

    Exit code 3: a limit may be exceeded, as the upper end of an interval is above it; or the search raises its alarm.
    """
    given = {**locals(), "limits": tuple(limit or ()), "null": tuple(null or ())}
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.audit.compare import compare as run_comparison
        from kleash.audit.config import CompareConfig

    settings = {name: given[name] for name in CompareConfig.model_fields}
    config = build(CompareConfig, settings, "the command line")
    attesting = _attesting(screen, attest, out, passphrase_fd)
    if out is not None:
        _make(out)
    if attesting is not None:
        attesting.begin(config)
    with screen.progress() as steps:
        watched = Watched(steps)
        found = run_comparison(config, watched.sampling, watched.search)
    document = jsonable(found.to_json())
    show_comparison(screen, document)
    if out is not None:
        signed = {} if attesting is None else {"attestation.json": attesting.end(document)}
        _write(screen, out, written(document) | signed)
    screen.document(document)
    if found.passed is False or (found.search or {}).get("alarm"):
        raise typer.Exit(LimitError.exit_code)


class Watched:
    """The progress, with the KL so far.

    Args:
        steps: the bars.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def sampling(self, done: int, most: int, reading: KLReading) -> None:
        """Moves the bar of the sampling."""
        self.steps.show("tokens", min(done, most), most, f"KL {_between(reading)} nats")

    def search(self, spent: int, budget: int, best: float) -> None:
        """Moves the bar of the search."""
        self.steps.show("search", spent, budget, f"largest KL {fixed(best)} nats")


def written(document: dict[str, Any]) -> dict[str, bytes]:
    """The files of a comparison by their names: as JSON, as one HTML page, and as a block for a model card."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return {
        "comparison.json": text.encode("utf-8", "backslashreplace"),
        "report.html": render_comparison(document).encode(),
        "model-card.md": drift_card(document).encode(),
    }


def _attesting(
    screen: Screen, key: str | None, out: Path | None, passphrase_fd: int | None
) -> Attesting | None:
    if key is None:
        return None
    if out is None:
        raise ConfigError(
            "an attestation is a file, and there is nowhere to write it",
            expected="--out DIR",
            got=f"--attest {key} alone",
            do="name a directory with --out",
        )
    return Attesting(screen, key, passphrase_fd)


def _make(out: Path) -> None:
    """The directory, before anything is computed that would be lost without it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _disk(out, error) from error


def _write(screen: Screen, out: Path, files: dict[str, bytes]) -> None:
    """Writes a comparison's files; what an earlier one left there, and this one has not, goes."""
    try:
        if "attestation.json" not in files:
            (out / "attestation.json").unlink(missing_ok=True)
        for name, content in files.items():
            replace_file(out / name, content)
            screen.say(str(out / name))
    except OSError as error:
        for name in files:
            (out / f"{name}.tmp").unlink(missing_ok=True)
        raise _disk(out, error) from error


def _disk(out: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"nothing can be written to {out}",
        expected="a directory that can be written",
        got=error.strerror or str(error),
        do="name another with --out",
    )


def _between(reading: KLReading) -> str:
    if reading.low is None or reading.high is None:
        return fixed(reading.value)
    return f"{fixed(reading.value)} [{fixed(reading.low)}, {fixed(reading.high)}]"
