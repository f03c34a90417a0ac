"""`kleash verify` of an attestation: whose word it is, what it claims, and whether the files are those. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from kleash.audit.attestation import Attested, Claims, check
from kleash.cli.console import Screen, line
from kleash.errors import InputError
from kleash.ledger import Problem, PublicKey
from kleash.ledger.envelope import MAX_ENVELOPE, looks_like_envelope
from kleash.ledger.paths import open_regular

Models = Mapping[str, Path | None]
"""Where the files of each model are, by role; None: not given."""
PolicyFiles = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Of an attestation: check that these are the policy's files."),
]
ReferenceFiles = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Of an attestation: check that these are the reference's."),
]
BaseFiles = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Of an attestation: check that these are the adapter's base."),
]
MEANING = {
    "signature": "the statement is what was signed",
    "key": "by a key you trust",
    "statement": "it is a statement of a comparison, in the form of its format",
    "subjects": "the digests are those of the files it lists",
    "verdict": "the verdict follows from its limits and measurements",
    "policy files": "the policy's files are the ones that were measured, and no others",
    "reference files": "the reference's files are the ones that were measured, and no others",
    "base files": "the base's files are the ones that were measured, and no others",
}
PROBLEMS_SHOWN = 10
_SNIFFED = 1024
_OVER = "bold red"


def is_attestation(path: Path) -> bool:
    """Whether a path is a regular file that begins as an envelope does, whole or damaged."""
    if not path.is_file():
        return False
    return looks_like_envelope(_read(path, _SNIFFED))


def verify_attestation(
    screen: Screen, path: Path, keys: Sequence[PublicKey] | None, models: Models
) -> None:
    """Checks an attestation, says what it found, and exits with 4 where something is wrong."""
    finals = {role: where and _model_of(where) for role, where in models.items()}
    found = check(_read(path, MAX_ENVELOPE + 1), keys, **finals)
    if found.ok and found.claims is not None:
        for name in found.checks:
            screen.check(passed=True, text=MEANING[name])
        _show_claims(screen, found.claims)
        _show_doubts(screen, found, found.claims)
    show_problems(screen, found.problems)
    if found.ok and found.claims is not None:
        word = "authentic" if found.trusted else "what this key signed"
        rang = found.claims.search is not None and found.claims.search.alarm is True
        said = [
            _verdict(found.claims),
            *([Text("; its search:"), _alarm(found.claims)] if rang else []),
        ]
        screen.say(f"verified: the attestation is {word}; its verdict:", *said)
    else:
        screen.say("NOT what was attested")
    screen.document(found.to_json())
    if not found.ok:
        raise typer.Exit(4)


def show_problems(screen: Screen, problems: Sequence[Problem]) -> None:
    """The first of what was found wrong, one on a line."""
    for problem in problems[:PROBLEMS_SHOWN]:
        screen.check(passed=False, text=str(problem))
    if len(problems) > PROBLEMS_SHOWN:
        screen.say(f"  and {len(problems) - PROBLEMS_SHOWN} more; --json has them all")


def _show_claims(screen: Screen, claims: Claims) -> None:
    screen.say("it claims:")
    for role, name in claims.names.items():
        files = len(claims.files[role])
        counted = f"{files} file{'' if files == 1 else 's'}, sha256 {claims.digests[role]}"
        screen.say(f"  {role} {line(name)}: {counted}")
    screen.say(
        f"  measured on {claims.prompts} prompts, sha256 {claims.prompts_sha256}; {claims.time}"
    )
    for figure in claims.figures:
        level = "" if figure.level is None else f", {figure.level:.0%} interval"
        count = "" if figure.n is None else f", {figure.n} responses"
        screen.say(f"  {line(figure.name)}: {line(figure)}{level}{count}")
    for limit in claims.limits:
        text = f"  limit {limit.limit:g} nats/{limit.unit} on {line(limit.scope)}: "
        shown = "no interval" if limit.high is None else f"up to {limit.high:.4g}"
        held = Text("held", style="green") if limit.holds else Text("NOT held", style=_OVER)
        screen.say(f"{text}{shown},", held)
    if claims.search is not None:
        times = "–" if claims.search.statistic is None else f"{claims.search.statistic:.4g}"
        text = f"  search for hidden drift: {times} times what is usual, alarm above {claims.search.threshold:g},"
        screen.say(text, _alarm(claims))
    screen.say("  verdict:", _verdict(claims))
    for reason in claims.reasons:
        screen.say(f"    {line(reason)}")


def _verdict(claims: Claims) -> Text:
    return {
        True: Text("within its limits", style="green"),
        False: Text("OVER ITS LIMITS", style=_OVER),
        None: Text("no limit was set"),
    }[claims.passed]


def _alarm(claims: Claims) -> Text:
    rang = claims.search is not None and claims.search.alarm is True
    return Text("ALARM", style=_OVER) if rang else Text("no alarm", style="green")


def _show_doubts(screen: Screen, found: Attested, claims: Claims) -> None:
    """What it does not say, what was not checked, and whose word it is."""
    screen.say("it does not claim more:")
    for sentence in claims.non_claims:
        screen.say(f"  {line(sentence)}")
    for note in found.notes:
        screen.say(line(note))
    for key in found.keys:
        trust = (
            "which you trust"
            if found.trusted
            else "compare it with the key you trust, or give --key"
        )
        screen.say(f"signed by {key.vkey}: {trust}")


def _model_of(path: Path) -> Path:
    """A model's directory: of a run of kleash, that of the model it ended with."""
    final = path / "final"
    return final if (path / "ledger").is_dir() and final.is_dir() else path


def _read(path: Path, size: int) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"{str(path)!a} cannot be read", got=error.strerror or "") from error
