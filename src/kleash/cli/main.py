"""`kleash`: the commands, and what every one of them does when something goes wrong.

Exit codes: 0 fine · 2 bad input or configuration · 3 a limit was breached · 4 tampering found · 5 a resource failed ·
1 a bug · 130 stopped by Ctrl-C.
"""

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from kleash import __version__
from kleash.cli.audit import report, verify
from kleash.cli.baselines import dpo, sft
from kleash.cli.compare import compare
from kleash.cli.console import Screen
from kleash.cli.demo import demo
from kleash.cli.lab import lab
from kleash.cli.ledger import ledger
from kleash.cli.migrate import migrate_trl
from kleash.cli.models import models
from kleash.cli.override import override
from kleash.cli.reward import reward, score
from kleash.cli.train import train
from kleash.errors import InputError, KleashError, ResourceError, is_out_of_memory

DEBUG = "KLEASH_DEBUG"
"""Environment variable: when set, a bug's traceback is shown rather than put in a file."""

app = typer.Typer(
    name="kleash",
    no_args_is_help=True,
    add_completion=False,
    help="Reinforcement learning from human feedback on a measured leash.",
    epilog="Example: kleash demo",
)
app.command(epilog="Example: kleash demo --seed 1")(demo)
app.command(epilog="Example: kleash train examples/tiny_ppo.toml --set rl.kl_target=4")(train)
app.command(epilog="Example: kleash sft examples/tiny_sft.toml --set train.steps=20")(sft)
app.command(epilog="Example: kleash dpo examples/tiny_dpo.toml --set dpo.beta=0.3")(dpo)
app.command(epilog="Example: kleash reward examples/tiny_reward.toml --out runs/proxy")(reward)
app.command(epilog="Example: kleash score tiny-reviews/gold texts.jsonl --json")(score)
app.command(epilog="Example: kleash compare runs/mine --limit 4.0 --out compared")(compare)
app.command(epilog="Example: kleash verify runs/tiny_ppo")(verify)
app.command(epilog="Example: kleash report runs/tiny_ppo runs/tiny_ppo-2 --out both.html")(report)
app.command("migrate-trl", epilog="Example: kleash migrate-trl ppo.yaml --out ppo.toml")(
    migrate_trl
)
app.add_typer(models, name="models")
app.add_typer(lab, name="lab")
ledger.command(
    epilog="Example: kleash ledger override RUN --set guard.max_kl=30 --reason WHY --key second.key"
)(override)
app.add_typer(ledger, name="ledger")


def _version(wanted: bool) -> None:
    if wanted:
        Screen().say(f"kleash {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a bug's traceback.")] = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"  # the processes a command starts should know too


def main() -> NoReturn:
    """The `kleash` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks β still gets the line
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. Nothing but a bug under `--debug` leaves it as an exception.

    Examples:
        >>> run(["--version"])
        kleash ...
        0
    """
    screen = Screen(as_json="--json" in arguments)
    try:
        code = app(list(arguments) or ["--help"], prog_name="kleash", standalone_mode=False)
    except TyperException as error:
        return _usage(screen, error)
    except KleashError as error:
        screen.error(error)
        return error.exit_code
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        unexpected = _unexpected(error)
        screen.error(unexpected)
        return unexpected.exit_code
    return code if isinstance(code, int) else 0


def _usage(screen: Screen, error: TyperException) -> int:
    """A command line that says nothing: the same screen as for any bad input."""
    if error.format_message():  # empty where typer showed the help instead
        context = getattr(error, "ctx", None)
        command = "kleash" if context is None else context.command_path
        screen.error(InputError(error.format_message(), do=f"{command} --help shows how"))
    return InputError.exit_code


def _unexpected(error: Exception) -> KleashError:
    """What nobody foresaw: the system's refusal where it is one, else a bug. The traceback goes to a file."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="kleash-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    got, where = f"{type(error).__name__}: {error}", f"the traceback is in {file.name}"
    if is_out_of_memory(error):
        return ResourceError(
            "there is not enough memory",
            got=got[:300],
            do="set rollout.max_running, or lower rollout.num_prompts, rollout.group_size or rollout.max_new_tokens",
        )
    if isinstance(error, OSError):
        return ResourceError(
            "the system refused something", got=got, do=f"{where}; kleash --debug shows it here"
        )
    return KleashError("this is a bug in kleash", got=got, do=f"report it; {where}")
