"""`kleash lab`: what can be known exactly, on problems small enough to enumerate; and studies of what can't."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import JustifyMethod
from rich.text import Text

from kleash.cli.console import Screen, fixed
from kleash.cli.lab_closed_form import closed_form
from kleash.cli.lab_cluster import cluster
from kleash.cli.lab_control import control
from kleash.cli.lab_study import everything, study_command
from kleash.cli.options import AsJson, ProblemFile, train_extra
from kleash.errors import InputError
from kleash.lab.catalogue import STUDIES
from kleash.report.text import number

if TYPE_CHECKING:
    from kleash.lab.estimators import Figures, Measurement

lab = typer.Typer(no_args_is_help=True, help="Closed forms, and studies of what a KL penalty buys.")
lab.command(epilog="Example: kleash lab control --target 1 --delay 2 --out control.html")(control)
lab.command(epilog="Example: kleash lab cluster --model llama-3.1-8b --gpus 8,16,64 --lora 16")(
    cluster
)
lab.command(
    "closed-form", epilog="Example: kleash lab closed-form --algorithms ppo,grpo,rloo --seeds 3"
)(closed_form)

for study in STUDIES.values():
    lab.command(study.name, epilog=f"Example: kleash lab {study.name} --quick")(
        study_command(study)
    )
lab.command("all", epilog="Example: kleash lab all --quick")(everything)

BETA = 0.2
"""β of the policy where neither a table nor a β is given: about 2 nats on the built-in problem."""
SAME = 1e-24
"""Nats per response; below it policy and reference are the same to rounding (as in `lab.estimators`)."""
VALUES = (
    *("k1", "k2", "k3", "k2_sequence", "k3_sequence"),
    *("exact", "exact_regressed", "topk_merged", "topk_sampled"),
)
PLACES = {"loss": "In the loss", "reward": "In the reward", "both": "In both"}
GRADIENTS = {
    "reverse": "KL(π‖π_ref), whole",
    "reverse per token": "KL(π‖π_ref), own token only",
    "forward": "KL(π_ref‖π), whole",
    "forward per token": "KL(π_ref‖π), own token only",
    "own per token": "the bound, own token only",
    "future only": "KL(π‖π_ref), later tokens only",
    "zero": "nothing",
    "wrong": "wrong: no KL's",
}
STALE_VALUES = {
    "unbiased": "unbiased",
    "per token": "of old prefixes",
    None: "of old tokens",
}
VALUE_COLUMNS: dict[str, JustifyMethod] = {
    "estimator": "left",
    "mean": "right",
    "bias": "right",
    "std/KL": "right",
    "as a value": "left",
}
GRADIENT_COLUMNS: dict[str, JustifyMethod] = {
    "placement": "left",
    "cosine": "right",
    "norm": "right",
    "noise": "right",
    "descends": "left",
}


@lab.command(epilog="Example: kleash lab estimators --beta 1")
def estimators(
    mdp: ProblemFile = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The policy's logits, as JSON.")
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Take the optimum of E[R] − β·KL as the policy.", show_default=str(BETA)),
    ] = None,
    stale_beta: Annotated[
        float | None,
        typer.Option(help="Show k1 and k3 also on data that the optimum at this β drew."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every KL estimator's exact bias and spread, and its gradient against that of the sequence KL.

    All by enumeration: nothing is sampled. Under its own name an estimator stands in the loss.
    """
    screen = Screen(as_json=as_json)
    if policy is not None and beta is not None:
        raise InputError("--policy and --beta both name the policy", do="give one of them")
    for option, value in (("--beta", beta), ("--stale-beta", stale_beta)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option} is wrong", expected="a positive number", got=f"{value}")
    with train_extra():
        from kleash.functional.kl import in_tail
        from kleash.lab.estimators import measure, measure_stale
        from kleash.lab.mdp import golden, load_mdp, load_policy, optimum

    problem = golden() if mdp is None else load_mdp(mdp)
    logits = optimum(problem, beta or BETA) if policy is None else load_policy(policy, problem)
    old = None if stale_beta is None else optimum(problem, stale_beta)
    kl, figures, noise = found = measure(problem, logits)
    screen.say(f"KL(π‖π_ref) = {kl:.6g} nats/response, over {problem.num_sequences:,} sequences")
    _show(screen, found)
    tail = int(in_tail(problem.logprobs(logits), problem.logprobs(problem.ref_logits)).sum())
    if tail:
        screen.say(f"k3 is on its straight line at {tail:,} tokens of all sequences: it reads low.")
    document: dict[str, object] = {"kl": kl, "estimators": figures, "gradient_noise": noise}
    if old is not None:
        stale = measure_stale(problem, logits, old)
        _show_stale(screen, stale, f"On data from the optimum at β = {stale_beta:g}")
        document["stale"] = {"beta": stale_beta, "estimators": stale.estimators}
    screen.document(document)


def _show(screen: Screen, found: "Measurement") -> None:
    from kleash.functional.kl import LABELS
    from kleash.lab.estimators import gradient_of, place_of

    kl, figures, noise = found
    rows = [[name, *_value(figures[name], kl), LABELS[name].value] for name in VALUES]
    _section(screen, "As a value, of one response", VALUE_COLUMNS, rows)
    for place, title in PLACES.items():
        rows = [
            [name, *_gradient(each), number(noise[name]), GRADIENTS[label]]
            for name, each in figures.items()
            if place_of(name) == place and (label := gradient_of(name)) is not None
        ]
        _section(screen, title, GRADIENT_COLUMNS, rows)
    screen.say()
    screen.say("cosine, norm: of the expected gradient, against the true one of KL(π‖π_ref).")
    screen.say("noise: the std of one response's gradient, over the norm of the true one.")
    screen.say("ratio: times ρ = π/π_old, on the policy's own data; detached: ρ as a number.")


def _show_stale(screen: Screen, found: "Measurement", title: str) -> None:
    from kleash.functional.kl import LABELS

    rows = [
        [
            name,
            *_value(each, found.kl)[1:],
            *_gradient(each),
            STALE_VALUES[LABELS[name].value if "ratio" in name else None],
        ]
        for name, each in found.estimators.items()
    ]
    columns: dict[str, JustifyMethod] = {
        "in the loss": "left",
        "bias": "right",
        "std/KL": "right",
        "cosine": "right",
        "norm": "right",
        "as a value": "left",
    }
    _section(screen, title, columns, rows)


def _section(
    screen: Screen, title: str, columns: dict[str, JustifyMethod], rows: Iterable[list[str]]
) -> None:
    screen.say()
    screen.say(Text(title, style="bold underline"))
    screen.table(columns, list(rows))


def _value(found: "Figures", kl: float) -> list[str]:
    if kl <= SAME:
        return [number(found.mean), number(None), number(None)]
    bias = round(100 * (found.mean / kl - 1), 2)
    shown = f"{bias:+,.2f}" if abs(bias) < 1e4 else f"{bias:+.1e}"
    said = f"{shown} %".replace("-", "−") if bias else "0"
    return [number(found.mean), said, number(found.std / kl)]


def _gradient(found: "Figures") -> list[str]:
    ratio = 0.0 if found.gradient_cosine is None else found.gradient_norm_ratio
    shown = fixed(ratio) if ratio < 1000 else number(ratio)
    return [fixed(found.gradient_cosine).replace("-", "−"), shown]
