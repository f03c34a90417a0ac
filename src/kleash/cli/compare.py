"""`kleash compare`: how far two models are apart, where, and whether a limit holds."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
    policy: Annotated[
        str,
        typer.Argument(help="A hub id, a directory, a LoRA adapter, a kleash run, or a GGUF file."),
    ],
    reference: Annotated[
        str | None,
        typer.Argument(
            help="What it is compared with.",
            show_default="an adapter's base, or the run's own reference",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Text (one a line), JSON lines, chats, or a dataset.",
            show_default="those of the run that POLICY is",
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NATS",
            help="Exit 3 where KL(π‖π_ref) may be above: 4.0, 0.1/token, SLICE=4.0, *=4.0 for each slice.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write comparison.json, report.html and model-card.md there.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Responses of each model to each prompt, a round.")
    ] = 2,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest response.", show_default="64, or the run's")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Divides the logits of both models.", show_default="1, or the run's"),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="More rounds until the interval of KL(π‖π_ref) per response is no wider.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens to sample at most, of both models.", show_default="200000 with --precision"
        ),
    ] = None,
    max_prompts: Annotated[
        int | None, typer.Option(help="Prompts to ask, drawn at random of more.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Where a prompt stands.", show_default="prompt, or messages")
    ] = None,
    slice_column: Annotated[
        str, typer.Option(help="Where the name of its slice stands.")
    ] = "slice",
    split: Annotated[str, typer.Option(help="Of a dataset.")] = "train",
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Put each prompt as a user's message.",
            show_default="no, or as in the run",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message before it.")] = None,
    retain: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Held-out texts: how likely each model finds them."),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Seek contexts where they are far apart: hidden drift, triggers."
        ),
    ] = False,
    search_budget: Annotated[
        int, typer.Option(help="Tokens that this may put through either model.")
    ] = 200_000,
    null: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="comparison.json of a searched fine-tune that hides nothing, for a p-value. Repeatable.",
        ),
    ] = None,
    show: Annotated[int, typer.Option(help="Prompts with greedy answers side by side.")] = 8,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Responses at a time.")] = 64,
    device: Annotated[str, typer.Option(help="Where the models run.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Of a CPU.", show_default="as many as torch takes")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="One model in memory at a time.")
    ] = False,
    attest: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Sign what was measured, of which files: a key file, or `default`. Written to --out.",
        ),
    ] = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """How far is POLICY from REFERENCE? Exact KL per token, both ways, with intervals clustered by prompt.

    Exit code 3: a limit may be exceeded, as the upper end of an interval is above it; or the search raises its alarm.
    """
    given = {**locals()}
    for name in ("as_json", "out", "limit", "attest", "passphrase_fd"):
        del given[name]
    given |= {"limits": tuple(limit or ()), "null": tuple(null or ())}
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.audit.compare import compare as run_comparison
        from kleash.audit.compare import sources
        from kleash.audit.config import CompareConfig

    config = build(CompareConfig, given, "the command line")
    attesting = _attesting(screen, attest, out, passphrase_fd)
    if out is not None:
        _make(out)
    if attesting is not None:
        attesting.begin(*sources(config))
    with screen.progress() as steps:
        found = run_comparison(config, Watched(steps), Watched(steps).search)
    document = jsonable(found.to_json())
    show_comparison(screen, document)
    if out is not None:
        files = written(document)
        if attesting is not None:
            files["attestation.json"] = attesting.end(document)
        _write(screen, out, files)
    screen.document(document)
    if found.passed is False or (found.search or {}).get("alarm"):
        raise typer.Exit(LimitError.exit_code)


class Watched:
    """The progress of the sampling, with the KL so far.

    Args:
        steps: the bars.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __call__(self, done: int, most: int, reading: KLReading | None) -> None:
        """Moves the bar."""
        figures = "" if reading is None else f"KL {_between(reading)} nats"
        self.steps.show("tokens", min(done, most), most, figures)

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
    try:
        for name, content in files.items():
            replace_file(out / name, content)
            screen.say(str(out / name))
    except OSError as error:
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
