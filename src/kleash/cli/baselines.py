"""`kleash sft` and `kleash dpo`: TRL's training under our meter, into the same run directory as `kleash train`."""

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from kleash.cli.console import Screen, Steps, fixed, kl_text, line
from kleash.cli.options import (
    AsJson,
    ConfigFile,
    Overrides,
    PassphraseFd,
    signing_key,
    trl_extra,
    vacant_directory,
)
from kleash.cli.train import final_drift, write_run_report
from kleash.config import load
from kleash.errors import KleashError
from kleash.ledger import SigningKey
from kleash.records import StepRecord
from kleash.replay import Verification
from kleash.report import RunView
from kleash.report.text import interval, number

if TYPE_CHECKING:
    from kleash.integrations.trl.config import DPORunConfig, SFTRunConfig

RunOption = Annotated[
    Path | None,
    typer.Option(help="Run directory, new or empty.", show_default="runs/<name of CONFIG>"),
]


def sft(
    config_file: ConfigFile,
    overrides: Overrides = None,
    run: RunOption = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on texts with TRL, and measure how far that drifts.

    Leaves a run directory like that of kleash train; kleash verify and kleash report take it.
    """
    with trl_extra():
        from kleash.integrations.trl.config import SFTRunConfig

        config = load(SFTRunConfig, config_file, overrides or ())
    screen = Screen(as_json=as_json)
    _run(
        config, vacant_directory(run, config_file.stem), signing_key(screen, passphrase_fd), screen
    )


def dpo(
    config_file: ConfigFile,
    overrides: Overrides = None,
    run: RunOption = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Train on preference pairs with TRL's DPO, and measure how far that drifts.

    Leaves a run directory like that of kleash train; kleash verify and kleash report take it.
    """
    with trl_extra():
        from kleash.integrations.trl.config import DPORunConfig

        config = load(DPORunConfig, config_file, overrides or ())
    screen = Screen(as_json=as_json)
    _run(
        config, vacant_directory(run, config_file.stem), signing_key(screen, passphrase_fd), screen
    )


def _run(
    config: "DPORunConfig | SFTRunConfig", directory: Path, signer: SigningKey, screen: Screen
) -> None:
    with trl_extra():
        from kleash.integrations.trl.run import train_baseline
    interrupted = False
    try:
        # Closing it ends the run as Ctrl-C inside it does.
        training = train_baseline(config, directory, signers=[signer])
        with closing(training) as records, screen.progress() as steps:
            _watch(records, config.train.steps, screen, steps)
    except KeyboardInterrupt:
        interrupted = True
    except KleashError:
        if (directory / "ledger").is_dir():
            # What ended the run is the news, whatever becomes of its report.
            with suppress(KleashError, OSError):
                write_run_report(directory)
            screen.note(f"what was done up to here is in {directory}")
        raise
    if not (directory / "ledger").is_dir():  # stopped while models were loading
        raise typer.Exit(130)
    _show_end(screen, directory, *write_run_report(directory))
    if interrupted:
        raise typer.Exit(130)


def _watch(records: Iterator[StepRecord], total: int, screen: Screen, steps: Steps) -> None:
    """Draws each record as it comes."""
    for record in records:
        if record.note:
            screen.note(line(record.note))
        steps.show("training", record.step, total, _figures(record))


def _figures(record: StepRecord) -> Text:
    """What a person watches: the loss, the reward where there is one, and the KL that nothing holds."""
    metrics, kl = record.metrics, record.kl
    parts = [
        f"{label} {fixed(value)}  "
        for label, name in (("loss", "trl/loss"), ("reward", "reward_mean"))
        if (value := metrics.get(name)) is not None
    ]
    figures = Text.assemble(*parts, "KL ", kl_text(kl.value, kl.low, kl.high, None))
    if record.verdict.action != "accept":
        figures.append(f"  {record.verdict.action}", style="bold red")
    return figures


def _show_end(screen: Screen, directory: Path, view: RunView, verification: Verification) -> None:
    name = "kl_policy_ref_per_response"
    measured = [view.last(f"{name}{end}") for end in ("", "_low", "_high")]
    drift, report = final_drift(directory), directory / "report.html"
    screen.say(f"{verification.status} after {verification.steps} steps")
    if (reward := view.last("reward_mean")) is not None:
        screen.say("  reward  ", number(reward))
    screen.say("  KL      ", interval(*measured), "nats per response; nothing holds it")
    if drift is not None:
        screen.say(f"  final/   KL {drift}: the drift of the weights that are saved")
    screen.check(passed=verification.ok, text=f"ledger verified, head {verification.head}")
    screen.say(f"model    {directory / 'final'}")
    screen.say(f"report   {report}")
    screen.document(
        {
            "run": str(directory),
            "status": verification.status,
            "steps": verification.steps,
            "verified": verification.ok,
            "head": verification.head,
            "final_kl": None if drift is None else drift.to_json(),
            "metrics": {metric: view.last(metric) for metric in view.metrics},
            "report": str(report),
        }
    )
