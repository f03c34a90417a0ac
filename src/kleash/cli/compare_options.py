"""The options of `kleash compare`."""

from pathlib import Path
from typing import Annotated

import typer

Policy = Annotated[
    str,
    typer.Argument(help="A hub id, a directory, a LoRA adapter, a kleash run, or a GGUF file."),
]
Reference = Annotated[
    str | None,
    typer.Argument(
        help="What it is compared with.",
        show_default="an adapter's base, or the run's own reference",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Text (one a line), JSON lines, chats, or a dataset.",
        show_default="those of the run that POLICY is",
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NATS",
        help="Exit 3 where KL(π‖π_ref) may be above: 4.0, 0.1/token, SLICE=4.0, *=4.0 for each slice.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write comparison.json, report.html and model-card.md there.",
    ),
]
Samples = Annotated[int, typer.Option(help="Responses of each model to each prompt, a round.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="The longest response.", show_default="64, or the run's")
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Divides the logits of both models.", show_default="1, or the run's"),
]
Precision = Annotated[
    float | None,
    typer.Option(
        metavar="NATS",
        help="More rounds until the interval of KL(π‖π_ref) per response is no wider.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Sampled tokens of both models beyond which no round is begun.",
        show_default="200000 with --precision",
    ),
]
MaxPrompts = Annotated[int | None, typer.Option(help="Prompts to ask, drawn at random of more.")]
Column = Annotated[
    str | None, typer.Option(help="Where a prompt stands.", show_default="prompt, or messages")
]
SliceColumn = Annotated[str, typer.Option(help="Where the name of its slice stands.")]
Split = Annotated[str, typer.Option(help="Of a dataset.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Put each prompt as a user's message.",
        show_default="no, or as in the run",
    ),
]
System = Annotated[str | None, typer.Option(help="The system message before it.")]
Retain = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Held-out texts: how likely each model finds them."),
]
Search = Annotated[
    bool,
    typer.Option(
        "--search", help="Seek contexts where they are far apart: hidden drift, triggers."
    ),
]
SearchBudget = Annotated[int, typer.Option(help="Tokens that this may put through either model.")]
Null = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="comparison.json of a searched fine-tune that hides nothing, for a p-value. Repeatable.",
    ),
]
Show = Annotated[int, typer.Option(help="Prompts with greedy answers side by side.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn.")]
BatchSize = Annotated[int, typer.Option(help="Responses at a time.")]
Device = Annotated[str, typer.Option(help="Where the models run.")]
Threads = Annotated[
    int | None, typer.Option(help="Of a CPU.", show_default="as many as torch takes")
]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
LowMemory = Annotated[bool, typer.Option("--low-memory", help="One model in memory at a time.")]
Attest = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Sign what was measured, of which files: a key file, or `default`. Written to --out.",
    ),
]
