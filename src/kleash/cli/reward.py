"""`kleash reward` fits a reward model on preferences; `kleash score` scores texts with one."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kleash.cli.console import Screen, fixed
from kleash.cli.options import AsJson, ConfigFile, Overrides, train_extra, vacant_directory
from kleash.config import build, load
from kleash.report.text import interval, number

if TYPE_CHECKING:
    from kleash.train.reward_report import FitReport


def reward(
    config_file: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory, new or empty.", show_default="runs/<name of CONFIG>"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a Bradley–Terry reward model on preference pairs, and measure it on held-out ones."""
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.train.reward_config import RewardFitConfig
        from kleash.train.reward_fit import fit_reward_model
        from kleash.train.reward_report import FitReport

    config = load(RewardFitConfig, config_file, overrides or ())
    directory = vacant_directory(out, config_file.stem)
    with closing(fit_reward_model(config, directory)) as records, screen.progress() as steps:
        for record in records:
            if isinstance(record, FitReport):
                _show_fit(screen, record)
            else:
                figures = f"loss {fixed(record.loss)}  accuracy {fixed(record.accuracy)}"
                steps.show("fitting", record.step, record.steps, figures)


def score(
    model: Annotated[
        str,
        typer.Argument(
            help="An embedded name, a directory, a hub id, module:function, or a server's http://host:port/path."
        ),
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl", help='Lines {"text"} or {"prompt", "response"}.')
    ],
    label: Annotated[
        str | None, typer.Option(help="Whose log-odds count, where there are several labels.")
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with a bearer token for the server."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score texts with a reward model: one number a line, in order."""
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.rewards.config import ServerConfig
        from kleash.rewards.files import score_file

    settings: dict[str, str] = {} if token_env is None else {"token_env": token_env}
    scores = score_file(
        model,
        file,
        label=int(label) if label and label.isdecimal() else label,
        server=build(ServerConfig, settings, "--token-env"),
    )
    for value in scores:
        screen.say(f"{value:.6f}")
    screen.document({"scores": scores})


def _show_fit(screen: Screen, report: "FitReport") -> None:
    held_out = report.held_out
    accuracy = interval(held_out.accuracy, held_out.accuracy_low, held_out.accuracy_high)
    screen.say(f"fitted on {report.num_pairs} pairs, measured on {held_out.num_pairs} held out")
    screen.say("  accuracy             ", accuracy)
    screen.say("  calibration error    ", number(held_out.ece))
    screen.say("  longer is chosen     ", number(held_out.longer_is_chosen))
    screen.say("  score against length ", f"r = {number(held_out.score_length_correlation)}")
    screen.say(f"model    {report.directory}")
    screen.document({"model": report.directory, "report": asdict(report)})
