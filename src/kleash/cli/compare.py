"""`kleash compare`: how far two models are apart, where, and whether a limit holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleash.cli.console import Screen, Steps, fixed, jsonable, line
from kleash.cli.options import AsJson, train_extra
from kleash.config import build
from kleash.errors import LimitError, ResourceError
from kleash.ledger.durable import replace_file
from kleash.records import KLReading
from kleash.report.text import interval, number, shorten, token_text

if TYPE_CHECKING:
    from kleash.audit.result import Comparison

WIDEST = 60
"""Characters of a prompt or an answer in a table."""
LISTED = 5
"""Prompts, and tokens either way, in the terminal; --out has more."""
STOPPED = {
    "samples": "one round, as asked",
    "precision": "the interval is narrow enough",
    "max_tokens": "the budget of tokens is spent",
    "prompts": "more responses to these prompts would not narrow it further: add prompts",
}


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
    show: Annotated[int, typer.Option(help="Prompts with greedy answers side by side.")] = 8,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Responses at a time.")] = 64,
    device: Annotated[str, typer.Option(help="Where the models run.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="One model in memory at a time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """How far is POLICY from REFERENCE? Exact KL per token, both ways, with intervals clustered by prompt.

    Exit code 3: a limit may be exceeded; the upper end of the interval decides.
    """
    given = {**locals()}
    screen = Screen(as_json=given.pop("as_json"))
    out, limits = given.pop("out"), tuple(given.pop("limit") or ())
    with train_extra():
        from kleash.audit.compare import compare as run_comparison
        from kleash.audit.config import CompareConfig

    config = build(CompareConfig, {**given, "limits": limits}, "the command line")
    if out is not None:
        _make(out)
    with screen.progress() as steps:
        found = run_comparison(config, Watched(steps))
    document = jsonable(found.to_json())
    show_comparison(screen, found)
    if out is not None:
        write_files(screen, out, document)
    screen.document(document)
    if found.passed is False:
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


def show_comparison(screen: Screen, found: "Comparison") -> None:
    """What a person reads first: the KLs with their intervals, where they come from, and every limit."""
    screen.say(f"{found.policy.name} against {found.reference.name}")
    drift = found.drift
    rows = [
        ("KL(π‖π_ref), nats per response", drift.reverse),
        ("KL(π_ref‖π), nats per response", drift.forward),
        ("KL(π‖π_ref), nats per token", drift.reverse_token),
        ("KL(π_ref‖π), nats per token", drift.forward_token),
        ("Jensen-Shannon of whole responses, nats (at most 0.69)", drift.js),
        ("entropy of the policy, nats per token", drift.entropy_policy),
        ("entropy of the reference, nats per token", drift.entropy_ref),
    ]
    cells = [(name, interval(x.value, x.low, x.high)) for name, x in rows]
    screen.table({"": "left", "95 % interval": "right"}, cells)
    _show_slices(screen, found)
    _show_where(screen, found.where)
    _show_retention(screen, found.retention)
    if not drift.reverse.is_trusted:
        screen.say(
            "! one response holds much of the KL: the interval may be too narrow; more --samples say more"
        )
    asked = f"{drift.reverse.n} responses of each model to {drift.reverse.clusters} prompts"
    screen.say(f"{asked}, {number(found.tokens)} tokens; {STOPPED[found.stopped]}")
    for key, text in (
        ("left_out", "prompts were left out"),
        ("duplicates", "prompts were there twice"),
    ):
        if found.prompts[key]:
            screen.say(f"{number(found.prompts[key])} {text}")
    for each in found.judged:
        where = "all prompts" if each.limit.scope == "all" else f"slice {each.limit.scope}"
        within = f"{where}: {_between(each.reading)}, at most {each.limit.nats:g} nats per {each.limit.unit}"
        screen.check(passed=each.passed, text=within if each.passed else each.reason)


def write_files(screen: Screen, out: Path, document: Mapping[str, Any]) -> None:
    """The comparison as JSON, as one HTML page, and as a block for a model card.

    Raises:
        ResourceError: the disk failed.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        replace_file(out / "comparison.json", text.encode())
    except OSError as error:
        raise _disk(out, error) from error
    screen.say(f"{out}: comparison.json")


def _make(out: Path) -> None:
    """The directory, before anything is computed that would be lost without it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _disk(out, error) from error


def _disk(out: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"nothing can be written to {out}",
        expected="a directory that can be written",
        got=error.strerror or str(error),
        do="name another with --out",
    )


def _show_slices(screen: Screen, found: "Comparison") -> None:
    if not found.slices:
        return
    columns = {
        "slice": "left",
        "KL(π‖π_ref) per response": "right",
        "per token": "right",
        "prompts": "right",
    }
    rows = [
        (
            shorten(name, WIDEST),
            interval(each.reverse.value, each.reverse.low, each.reverse.high),
            interval(each.reverse_token.value, each.reverse_token.low, each.reverse_token.high),
            str(each.reverse.clusters),
        )
        for name, each in found.slices.items()
    ]
    screen.table(dict(columns), rows)  # pyright: ignore[reportArgumentType] - "left" and "right" are what it takes


def _show_where(screen: Screen, where: Mapping[str, Any]) -> None:
    worst = [
        (shorten(line(each["prompt"]), WIDEST), number(each["kl_policy_ref"]))
        for each in where["prompts"][:LISTED]
    ]
    screen.table({"prompts that drifted most": "left", "nats per response": "right"}, worst)
    for name, text in (("gained", "likelier"), ("lost", "less likely")):
        tokens = where["tokens"][name][:LISTED]
        if tokens:
            said = ", ".join(
                f"{token_text(each['token'])} {abs(100 * each['probability']):.2g}"
                for each in tokens
            )
            screen.say(f"{text}, in points of a hundred: {said}")


def _show_retention(screen: Screen, found: Mapping[str, Any] | None) -> None:
    if found is None:
        return
    names = ("nll_policy", "nll_ref", "increase")
    words = ("of the policy", "of the reference", "increase")
    rows: Sequence[tuple[str, str]] = [
        (text, interval(*(found[name][key] for key in ("value", "low", "high"))))
        for name, text in zip(names, words, strict=True)
    ]
    screen.table(
        {f"NLL of {found['texts']} held-out texts": "left", "nats per token": "right"}, rows
    )


def _between(reading: KLReading) -> str:
    if reading.low is None or reading.high is None:
        return fixed(reading.value)
    return f"{fixed(reading.value)} [{fixed(reading.low)}, {fixed(reading.high)}]"
