"""`kleash migrate-trl`: an old TRL configuration as one that `kleash train` takes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kleash.cli.console import Screen, line
from kleash.cli.options import AsJson, train_extra
from kleash.config import build
from kleash.errors import InputError, ResourceError


def migrate_trl(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="TRL's: YAML, JSON or TOML, one key a setting.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write it; it must not exist.", show_default="stdout"
        ),
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="ppo-0.11, ppo-0.12, rloo-0.12, rloo or grpo.",
            show_default="told by the keys",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a PPOConfig, RLOOConfig or GRPOConfig of TRL's into a configuration for kleash train.

    Comments in it say what could not be carried over and why, and what means another thing than it did.
    """
    with train_extra():
        from kleash.integrations.trl.dialects import DIALECTS
        from kleash.integrations.trl.migration import migrate, read_settings, render
        from kleash.train.config import RunConfig

        draft = migrate(read_settings(config_file), DIALECTS, dialect)
    screen = Screen(as_json=as_json)
    build(RunConfig, draft.tables, f"what became of {config_file}")
    written = render(draft, config_file.name)
    if out is not None:
        _write(out, written)
        screen.note(f"written to {out}")
    elif not as_json:
        screen.say(written)
    count = len(draft.left) + len(draft.unknown)
    plural = "setting was" if count == 1 else "settings were"
    screen.note(f"{count} {plural} not carried over: the comments at the top say why")
    screen.document(
        {
            "from": draft.dialect.name,
            "config": draft.tables,
            "differs": draft.differs,
            "left": [_said(each) for each in draft.left],
            "unknown": [_said(each) for each in draft.unknown],
            "toml": written,
            "out": None if out is None else str(out),
        }
    )


def _said(left: Any) -> dict[str, Any]:
    return {"key": left.key, "value": line(str(left.value)[:200]), "why": left.why}


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(
            f"{path} is there already",
            expected="a file that doesn't exist yet",
            got="one that does, which was left as it is",
            do="choose another --out",
        ) from error
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}", got=error.strerror or str(error), do="choose another --out"
        ) from error
