"""`kleash train`: one run, from a configuration to a verified directory."""

import re
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from kleash.cli.console import LEASH, Screen, Steps, fixed, kl_text, line
from kleash.cli.guarded import show_guard
from kleash.cli.options import (
    AsJson,
    ConfigFile,
    Overrides,
    PassphraseFd,
    signing_key,
    train_extra,
    vacant_directory,
)
from kleash.config import load
from kleash.errors import InputError, KleashError, LimitError, TamperError
from kleash.integrations.prometheus import Endpoint
from kleash.ledger import read
from kleash.records import KLReading, StepRecord
from kleash.replay import ENDINGS, Verification, verify_run
from kleash.report import RunView, load_run, render_run, write_report
from kleash.report.text import number

if TYPE_CHECKING:
    from kleash.train.config import RunConfig

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of what a signal ended: 128 and its number."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that no other machine reaches."""
SETTLING = 10
"""Steps of a run below which nobody expects its KL to be at the target."""


SkipSelfTest = Annotated[
    bool,
    typer.Option(
        "--skip-self-test", help="Train without the checks before step 1; the ledger says so."
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option(help="Run directory, new or empty.", show_default="runs/<name of CONFIG>"),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run in its directory; begin where there is none."
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Serve figures to Prometheus at this port; 0: any that is free.",
        show_default="not served",
    ),
]
MetricsHost = Annotated[
    str, typer.Option(help="Address to serve them at: whoever reaches it reads them, unasked.")
]


def train(  # noqa: PLR0913, PLR0917 - the options of a command line
    config_file: ConfigFile,
    overrides: Overrides = None,
    run: RunOption = None,
    skip_self_test: SkipSelfTest = False,
    resume: Resume = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = LOOPBACK[0],
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Train a policy against a reward, on a measured leash.

    Leaves a run directory: metrics, samples, the ledger, final/ and report.html.

    Ctrl-C and SIGTERM end the run cleanly: what was done is saved and still verifies, and --resume goes on with it.

    Several processes of accelerate launch or torchrun make one run together: docs/distributed.md.
    """
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.train.config import RunConfig
        from kleash.train.run import train as run_training
        from kleash.train.world import launched

    config = load(RunConfig, config_file, overrides or ())
    world = launched(config.train.device)
    if not world.is_first:  # it says nothing: what there is to say, the first says
        raise typer.Exit(_made_by_another(run_training(config, Path(), world=world)))
    usual = Path("runs", config_file.stem)
    directory = run or usual if resume else vacant_directory(run, config_file.stem)
    signers = [signing_key(screen, passphrase_fd)]
    interrupted = 0
    try:
        # Closing it ends the run as Ctrl-C inside it does.
        how = {"skip_self_test": skip_self_test, "resume": resume}
        training = run_training(config, directory, **how, signers=signers, world=world)
        published = _publishing(config, directory, (metrics_host, metrics_port), screen)
        with terminable(), closing(training) as records, screen.progress() as steps, published as p:
            watch(p(noting(_noting_start(records, directory, screen), screen)), config, steps)
    except Terminated:
        interrupted = TERMINATED
    except KeyboardInterrupt:
        interrupted = INTERRUPTED
    except InputError:  # what can't be gone on with is left as it is
        raise
    except KleashError:
        _report_what_there_is(screen, directory)
        raise
    if not (directory / "ledger").is_dir():  # stopped while models were loading
        raise typer.Exit(interrupted)
    verification = _conclude(screen, directory)
    if not verification.ok:
        raise typer.Exit(TamperError.exit_code)
    if interrupted:
        screen.note(f"to go on: kleash train {config_file} --run {directory} --resume")
        raise typer.Exit(interrupted)


def _report_what_there_is(screen: Screen, directory: Path) -> None:
    """The report of a run that failed. What ended it is the news, whatever becomes of this."""
    if (directory / "ledger").is_dir():
        with suppress(KleashError, OSError):
            write_run_report(directory)
        screen.note(f"what was done up to here is in {directory}")


def _made_by_another(records: Generator[StepRecord]) -> int:
    """The exit code of a process that takes part in a run which another one writes.

    A halt is that one's to tell of.
    """
    try:
        with terminable(), closing(records):
            for _ in records:
                pass
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except LimitError as error:
        return error.exit_code
    return 0


def watch(records: Iterator[StepRecord], config: "RunConfig", steps: Steps) -> None:
    """Draws each record as it comes."""
    steps.show("training", 0, config.train.steps)
    for record in records:
        steps.show("training", record.step, config.train.steps, step_figures(record, config))


Publish = Callable[[Iterator[StepRecord]], Iterator[StepRecord]]


@contextmanager
def _publishing(
    config: "RunConfig", directory: Path, at: tuple[str, int | None], screen: Screen
) -> Generator[Publish]:
    """Serves what passes through what this gives, where a port was asked for."""
    host, port = at
    if port is None:
        yield iter
        return
    with Endpoint(config, directory, host=host, port=port) as endpoint:
        screen.note(f"metrics at {endpoint.url}")
        if host not in LOOPBACK:
            screen.note("whoever reaches that address can read them: nobody is asked who they are")
        yield endpoint.watch


class Terminated(KeyboardInterrupt):
    """SIGTERM: the run ends as by Ctrl-C, and the exit code says which it was."""


@contextmanager
def terminable() -> Generator[None]:
    """Has SIGTERM end what runs as Ctrl-C does; where handlers can't be set, as in a thread, it stays what it was."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _noting_start(
    records: Iterator[StepRecord], directory: Path, screen: Screen
) -> Iterator[StepRecord]:
    """The records, with a line before the first about how the run began or goes on: it is in the ledger by then."""
    for index, record in enumerate(records):
        if index == 0:
            for text in _start_lines(directory):
                screen.note(text)
        yield record


def noting(records: Iterator[StepRecord], screen: Screen) -> Iterator[StepRecord]:
    """The records, with a line for what the controller has to say, the first time it does, whatever its numbers."""
    told = {""}
    for record in records:
        said = re.sub(r"[0-9.]+", "#", record.note)
        if said not in told:
            told.add(said)
            screen.note(f"step {record.step}: {line(record.note)}")
        yield record


def _start_lines(directory: Path) -> list[str]:
    entries = read(directory / "ledger")
    resumed = [entry.body for entry in entries if entry.type == "run.resumed"]
    if resumed:
        step, notes = resumed[-1]["step"], resumed[-1]["notes"]
        where = f"after step {step}" if step else "from its beginning: no checkpoint is there"
        return [f"the run goes on {where}", *(line(note) for note in notes)]
    tested = entries[0].body["self_test"]
    if tested == "skipped":
        return ["self-test skipped, as asked; the ledger says so"]
    value = {check["name"]: check["value"] for check in tested["checks"]}
    noise, start = (number(value[name]) for name in ("noise floor", "KL at step 0"))
    figures = f"noise floor {noise} and KL at step 0 {start} nats/token"
    return [f"self-test passed, {len(value)} checks: {figures}"]


def step_figures(record: StepRecord, config: "RunConfig") -> Text:
    """What a person watches: reward, KL against its target in the target's unit, β."""
    name = f"kl_policy_ref_per_{config.rl.kl_unit}"
    kl, low, high = (record.metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    figures = Text.assemble(
        f"reward {fixed(record.metrics.get('reward_mean'))}  KL ",
        kl_text(kl, low, high, record.metrics.get("kl_target")),
        f"  β {record.kl_coef:.3g}",
    )
    if not record.kl.is_trusted:
        share = record.kl.largest_share
        what = "no number" if share is None else f"one response holds {share:.0%} of it"
        figures.append(f"  {what}", style="yellow")
    if record.verdict.action != "accept":
        figures.append(f"  {record.verdict.action}", style="bold red")
    return figures


def write_run_report(directory: Path) -> tuple[RunView, Verification]:
    """Verifies a run, and writes its report.html with what that found."""
    verification = verify_run(directory)
    view = load_run(directory)
    write_report(render_run(view, verification.to_json()), directory / "report.html")
    return view, verification


def _conclude(screen: Screen, directory: Path) -> Verification:
    """Reports a run that is over, and shows how it ended."""
    view, verification = write_run_report(directory)
    _show_end(screen, directory, view, verification)
    return verification


def _show_end(screen: Screen, directory: Path, view: RunView, verification: Verification) -> None:
    kl, low, high = (
        view.last(f"kl_policy_ref_per_{view.unit}{end}") for end in ("", "_low", "_high")
    )
    report = directory / "report.html"
    screen.say(f"{verification.status} after {verification.steps} steps")
    screen.say("  reward  ", number(view.last("reward_mean")))
    screen.say("  KL      ", kl_text(kl, low, high, view.target), f"per {view.unit}")
    screen.say("  β       ", number(view.last("kl_coef")))
    if (verdict := held(view)) is not None:
        screen.say(verdict)
    if unsure := view.series("kl_policy_ref_per_response_trusted").count(0):
        text = f"  interval at {unsure} of {len(view.steps)} steps one response held over a tenth of the KL"
        screen.say(Text(f"{text}: don't rest on it; sample more responses", style="yellow"))
    refused = view.series("accepted").count(0)
    show_guard(screen, verification.governed)
    drift = final_drift(directory)
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
            "refused": refused,
            "metrics": _last_metrics(view),
            "report": str(report),
        }
    )


def held(view: RunView) -> Text | None:
    """Whether the leash held: KL on average over the last third of the steps, against its target there."""
    at_most = view.setting("rl", "kl_at_most") is True
    read = view.series(f"kl_policy_ref_per_{view.unit}{'_high' if at_most else ''}")
    count = len(read) // 3
    last = [
        (kl, target)
        for kl, target in zip(read[-count:], view.series("kl_target")[-count:], strict=True)
        if kl is not None and target is not None
    ]
    if len(read) < SETTLING or not last:
        return None
    kl, target = (sum(each) / len(last) for each in zip(*last, strict=True))
    what = "interval's upper end on average" if at_most else "on average"
    text = f"  leash    {fixed(kl)} {what} over the last third, for {target:.4g}"
    if abs(kl / target - 1) <= LEASH:
        return Text(f"{text}: held", style="green")
    hint = "docs/control.md; often optimizer.learning_rate is large or train.steps small for it"
    return Text(f"{text}: not held; see {hint}", style="yellow")


def final_drift(directory: Path) -> KLReading | None:
    """What the ledger's ending says of the saved weights; None where that was not measured."""
    *_, ending = read(directory / "ledger")
    kl = ending.body.get("kl") if ending.type in ENDINGS else None
    return None if kl is None else KLReading.from_json(kl)


def _last_metrics(view: RunView) -> dict[str, Any]:
    return {name: view.last(name) for name in view.metrics}
