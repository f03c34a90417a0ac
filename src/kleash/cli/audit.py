"""`kleash verify` and `kleash report`: for whoever was not there. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kleash.cli.attested import (
    BaseFiles,
    Models,
    PolicyFiles,
    ReferenceFiles,
    is_attestation,
    show_problems,
    verify_attestation,
)
from kleash.cli.console import Screen, line
from kleash.cli.guarded import show_guard
from kleash.cli.options import AsJson
from kleash.errors import InputError
from kleash.ledger import read_public_key
from kleash.ledger.note import MAX_NOTE
from kleash.ledger.paths import open_regular
from kleash.replay import Verification, verify_run
from kleash.report import load_run, render_run, render_runs, write_report

MEANING = {
    "chain": "every entry follows from the one before it",
    "head": "the head is the last entry",
    "signatures": "every checkpoint is signed by the ledger's key, and of these entries",
    "key": "that key is one you trust",
    "checkpoint": "the ledger begins with what the checkpoint you hold was of",
    "expected head": "the head you noted is in the chain",
    "sequence": "one start, every step once and in order, one ending",
    "replay": "every β and every verdict is what the recorded readings lead to",
    "overrides": "every override is signed by a second key, gives a reason, and changes what may be changed",
    "config": "the configuration is the one the ledger holds",
    "metrics": "the metrics are the ones the ledger holds",
    "checkpoints": "the checkpoints are as they were saved",
    "files": "the files are the ones the run left",
}


def verify(  # noqa: PLR0913, PLR0917 - the options of a command line
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run directory, a ledger, or an attestation's file."),
    ],
    head: Annotated[
        str | None, typer.Option(help="A head hash noted earlier; it must be in the chain.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="PUB", help="A vkey you trust, or a file with it: it must sign."),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(metavar="NOTE", help="A signed checkpoint you kept: nothing changed since."),
    ] = None,
    override_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PUB",
            help="A second key you trust: overrides by others are a problem.",
            show_default="anybody's, which are shown",
        ),
    ] = None,
    policy: PolicyFiles = None,
    reference: ReferenceFiles = None,
    base: BaseFiles = None,
    as_json: AsJson = False,
) -> None:
    """Check a run against its ledger: bytes, signatures, and that every decision follows from what was measured.

    Of an attestation of kleash compare: its signature, and the files of the models it is of. A verdict over a limit is
    no tampering: it is shown, and the exit code says only whether the attestation is authentic.

    Exit code 0: it does; 4: it was tampered with.
    """
    screen = Screen(as_json=as_json)
    keys = [read_public_key(each) for each in key] if key else None
    models: Models = {"policy": policy, "reference": reference, "base": base}
    ledger_only = {"--head": head, "--since": since, "--override-key": override_key}
    if is_attestation(path):
        _refuse(ledger_only, "an attestation")
        return verify_attestation(screen, path, keys, models)
    _refuse({f"--{role}": given for role, given in models.items()}, "a run or a ledger")
    second = [read_public_key(each) for each in override_key] if override_key else None
    held = None if since is None else _note(since)
    found = verify_run(path, head, keys=keys, since=held, override_keys=second)
    _show_run(screen, found)
    screen.document(found.to_json())
    if not found.ok:
        raise typer.Exit(4)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file.", show_default="RUN/report.html, or report.html for several"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML file about a run, or several side by side."""
    screen = Screen(as_json=as_json)
    views = [load_run(run) for run in runs]
    checks = [_verification(run) for run in runs]
    if len(runs) == 1:
        page, target = render_run(views[0], checks[0]), out or runs[0] / "report.html"
    else:
        title = ", ".join(view.name for view in views)
        page = render_runs(views, title=title, verifications=checks)
        target = out or Path("report.html")
    write_report(page, target)
    screen.say(str(target))
    screen.document({"report": str(target), "runs": [str(run) for run in runs]})


def _show_run(screen: Screen, found: Verification) -> None:
    for name in found.checks if found.ok else ():
        screen.check(passed=True, text=MEANING.get(name, name))
    show_problems(screen, found.problems)
    for note in found.notes:
        screen.say(f"  {line(note)}")
    for each in found.keys if found.ok else ():
        trust = (
            "which you trust"
            if found.trusted
            else "compare it with the key you trust, or give --key"
        )
        screen.say(f"signed by {each.vkey}: {trust}")
    show_guard(screen, found.governed)
    if found.ok and not found.keys:
        screen.say("not signed: a ledger of version 1; compare its head with one you noted")
    state = "verified" if found.ok else "NOT what was written"
    screen.say(f"{state}: {found.steps} steps, {found.status}, head {found.head}")


def _refuse(options: Mapping[str, object], what: str) -> None:
    """Raises InputError where an option was given that means nothing here: it would seem to have been checked."""
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError(f"{', '.join(given)}: not an option for {what}")


def _note(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(MAX_NOTE + 1)
    except OSError as error:
        raise InputError(
            f"the checkpoint {str(path)!a} cannot be read", got=error.strerror or ""
        ) from error


def _verification(run: Path) -> dict[str, Any] | None:
    """What verifying the run finds; None where it has no ledger, and the page then says so."""
    try:
        return verify_run(run).to_json()
    except InputError:
        return None
