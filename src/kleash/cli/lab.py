"""`kleash lab`: what can be known exactly, on problems small enough to enumerate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import JustifyMethod

from kleash.cli.console import Screen
from kleash.cli.options import AsJson, train_extra
from kleash.errors import InputError
from kleash.report.text import number

if TYPE_CHECKING:
    from kleash.lab.estimators import Figures

lab = typer.Typer(no_args_is_help=True, help="Closed forms and enumeration.")

BETA = 0.2
"""β of the policy where neither a table nor a β is given: about 2 nats on the built-in problem."""
COLUMNS: dict[str, JustifyMethod] = {
    "estimator": "left",
    "mean": "right",
    "bias": "right",
    "std/KL": "right",
    "gradient: cosine": "right",
    "norm": "right",
}


@lab.callback()
def _group() -> None:
    """Keeps `kleash lab NAME` a group while it has one command."""


@lab.command(epilog="Example: kleash lab estimators --beta 1")
def estimators(
    mdp: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='A problem as JSON: "vocab", "length", "ref_logits", "rewards".',
            show_default="a built-in one, 8 tokens, 4 steps",
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The policy's logits, as JSON.")
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Take the optimum of E[R] − β·KL as the policy.", show_default=str(BETA)),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every KL estimator's exact bias and spread, and its gradient against that of the sequence KL.

    All by enumeration: nothing is sampled. Under its own name an estimator stands in the loss.
    """
    screen = Screen(as_json=as_json)
    if policy is not None and beta is not None:
        raise InputError("--policy and --beta both name the policy", do="give one of them")
    if beta is not None and not 0 < beta < float("inf"):
        raise InputError("--beta is wrong", expected="a positive number", got=f"{beta}")
    with train_extra():
        from kleash.lab.estimators import measure
        from kleash.lab.mdp import golden, load_mdp, load_policy, optimum

    problem = golden() if mdp is None else load_mdp(mdp)
    logits = optimum(problem, beta or BETA) if policy is None else load_policy(policy, problem)
    kl, figures = measure(problem, logits)
    screen.say(f"KL(π‖π_ref) = {kl:.6g} nats/response, over {problem.num_sequences:,} sequences")
    screen.table(COLUMNS, [_row(name, found, kl) for name, found in figures.items()])
    screen.say("1 and 1: the gradient is the true one. No cosine: there is no gradient.")
    screen.document({"kl": kl, "estimators": figures})


def _row(name: str, found: "Figures", kl: float) -> list[str]:
    return [
        name,
        number(found.mean),
        f"{100 * (found.mean / kl - 1):+.2f} %" if kl else number(None),
        number(found.std / kl if kl else None),
        number(found.gradient_cosine),
        number(found.gradient_norm_ratio if found.gradient_cosine is not None else 0.0),
    ]
