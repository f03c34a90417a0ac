"""`kleash ledger override`: other limits for a run that goes on, with a second key and a reason. No torch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kleash.cli.console import Screen, line
from kleash.cli.ledger import Run, locate
from kleash.cli.options import AsJson, PassphraseFd, passphrase, signing_key
from kleash.config import build
from kleash.config import override as assign
from kleash.errors import ConfigError
from kleash.guard import GuardConfig
from kleash.ledger import default_key_path, needs_passphrase, read_signing_key
from kleash.replay import override as enter


def override(
    run: Run,
    assignments: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A limit, as guard.max_kl=30; none takes it away."
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why; it is in the record for good.")],
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The second key: any but the one that signs the ledger."),
    ],
    until: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="The last step under it.", show_default="all"),
    ] = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Change limits, budget or alarms of a run that stands still, from its next step on.

    The record then holds what was changed, why, and the signature of the second key, which kleash ledger key --file
    makes. kleash train CONFIG.toml --resume, with the configuration as it was, goes on under the new limits.
    --passphrase-fd gives the passphrase of the ledger's key and then the second's, a line each, where they have one.
    """
    screen = Screen(as_json=as_json)
    own = signing_key(screen, _asked(passphrase_fd, default_key_path()))
    second = read_signing_key(key, passphrase=passphrase(screen, _asked(passphrase_fd, key), key))
    entered = enter(
        locate(run),
        [own],
        second,
        lambda limits: _amended(limits, assignments),
        reason=reason,
        until=until,
    )
    screen.say(line(str(entered)))
    screen.note("kleash train, with --resume and the configuration as it was, goes on with this")
    screen.document(entered.to_json())


def _asked(passphrase_fd: int | None, path: Path) -> int | None:
    """Where a key's passphrase is read, if it has one."""
    return passphrase_fd if path.exists() and needs_passphrase(path) else None


def _amended(limits: GuardConfig, assignments: list[str]) -> GuardConfig:
    tables: dict[str, Any] = {"guard": limits.model_dump(mode="json", exclude_none=True)}
    asked = assign(tables, assignments)
    if others := sorted(asked.keys() - tables.keys()):
        raise ConfigError(
            f"{others[0]} can't be overridden",
            expected="a limit, budget or alarm: guard.something=value",
            got=", ".join(assignments),
            do="begin another run",
        )
    return build(GuardConfig, _without_none(asked["guard"]), "--set")


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """The table without what was set to none."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in table.items()
        if value != "none"
    }
