"""`kleash models`: what ships with the package."""

import typer

from kleash.cli.console import Screen
from kleash.cli.options import AsJson, train_extra

models = typer.Typer(help="The embedded models.", no_args_is_help=True)


@models.command("list", epilog="Example: kleash models list --json")
def list_embedded(as_json: AsJson = False) -> None:
    """List the embedded models; each is a plain Hugging Face directory."""
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.models.embedded import list_models

    found = list_models()
    rows = [[each.name, f"{each.parameters:,}", each.description] for each in found]
    screen.table({"name": "left", "parameters": "right", "description": "left"}, rows)
    for each in found:
        screen.say(f"{each.name}: {each.path}")
    screen.document({"models": [each.to_json() for each in found]})
