"""`kleash lab closed-form`: algorithms against the optimum, on a problem that can be enumerated."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import JustifyMethod

from kleash.cli.console import Screen
from kleash.cli.options import AsJson, ProblemFile, train_extra
from kleash.errors import InputError
from kleash.report.text import DASH, number

if TYPE_CHECKING:
    from kleash.lab.closed_form import Attained
    from kleash.lab.mdp import MDP

BETA = 0.2
COLUMNS: dict[str, JustifyMethod] = {
    "algorithm": "left",
    "J": "right",
    "J* − J": "right",
    "gain lost": "right",
    "reward": "right",
    "KL to ref": "right",
    "KL to π*": "right",
    "seconds": "right",
}
IDENTITY = 1e-6
"""Within which J* − J must be β·KL(π‖π*), of the largest reward where that is over 1."""
MOST_REWARD = 1e6
"""Rewards go through the loop in float32, and differences that matter must be left of them."""


def closed_form(
    mdp: ProblemFile = None,
    algorithms: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Which ones.", show_default="all"),
    ] = None,
    beta: Annotated[float, typer.Option(help="β of the objective, held.")] = BETA,
    seeds: Annotated[int, typer.Option(help="Runs of each.", min=1)] = 1,
    steps: Annotated[
        int | None,
        typer.Option(help="Rollouts of each run.", min=1, show_default="each one's own budget"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How near algorithms come to the best policy there is, J* = β log Z, by the code that trains language models.

    Everything is by enumeration: nothing but the training is sampled. For every policy J* − J = β·KL(π‖π*), which is
    checked.
    """
    screen = Screen(as_json=as_json)
    if not 0 < beta < float("inf"):
        raise InputError("--beta is wrong", expected="a positive number", got=f"{beta}")
    with train_extra():
        from kleash.lab.closed_form import Job, algorithm_names, budget_of, solve_all, standing
        from kleash.lab.mdp import golden, load_mdp, optimum

    names = _chosen(algorithms, algorithm_names())
    problem = golden() if mdp is None else load_mdp(mdp)
    largest = _largest_reward(problem)
    best, reference = (
        standing(problem, table, beta) for table in (optimum(problem, beta), problem.ref_logits)
    )
    screen.say(f"J* = {best.j:.8g}, J of the reference = {reference.j:.8g}, β = {beta:g}")
    jobs = [
        Job(problem, name, beta, seed, budget_of(name, steps))
        for name in names
        for seed in range(seeds)
    ]
    total = sum(job.budget.steps for job in jobs)
    done = count(1)
    with screen.progress() as shown:
        found = solve_all(jobs, lambda event: shown.show("steps", next(done), total, event[0]))
    _check_identity(found, beta, IDENTITY * max(1.0, largest))
    screen.table(COLUMNS, [_row(name, runs) for name, runs in found.items()])
    screen.say()
    screen.say(
        f"Medians of {seeds} seed{'s' if seeds > 1 else ''}; gain lost: of J* − J of the reference."
    )
    screen.document(
        {
            "beta": beta,
            "j_star": best.j,
            "j_reference": reference.j,
            "algorithms": {name: _figures(runs) for name, runs in found.items()},
        }
    )


def _largest_reward(problem: "MDP") -> float:
    largest = float(problem.rewards.abs().max())
    if largest > MOST_REWARD:
        raise InputError(
            "the problem's rewards are too large to be trained on",
            expected=f"at most {MOST_REWARD:,.0f} either way",
            got=f"{largest:.3g}",
            do="divide the rewards and --beta by the same number: the optimum stays",
        )
    return largest


def _chosen(wanted: str | None, names: list[str]) -> list[str]:
    if wanted is None:
        return names
    chosen = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in chosen:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            raise InputError(
                "there is no such algorithm",
                expected=", ".join(names),
                got=name[:80],
                do=f"did you mean {near[0]}?" if near else "",
            )
    return list(dict.fromkeys(chosen)) or names


def _figures(runs: "Sequence[Attained]") -> dict[str, Any]:
    """Medians over the seeds, and the policy of the median one."""
    from kleash.lab.closed_form import median_run

    lost = [run.standing.gain_lost for run in runs if run.standing.gain_lost is not None]
    return {
        "j": median(run.standing.j for run in runs),
        "gap": median(run.standing.gap for run in runs),
        "gain_lost": median(lost) if lost else None,
        "reward": median(run.standing.reward for run in runs),
        "kl": median(run.standing.kl for run in runs),
        "kl_to_optimum": median(run.standing.kl_to_optimum for run in runs),
        "seconds": median(run.seconds for run in runs),
        "policy": median_run(runs).policy,
    }


def _row(name: str, runs: "Sequence[Attained]") -> list[str]:
    found = _figures(runs)
    lost = found["gain_lost"]
    return [
        name,
        *(number(found[key]) for key in ("j", "gap")),
        DASH if lost is None else f"{lost:.2%}",
        *(number(found[key]) for key in ("reward", "kl", "kl_to_optimum")),
        f"{found['seconds']:.0f}",
    ]


def _check_identity(found: "dict[str, list[Attained]]", beta: float, tolerance: float) -> None:
    """A gap that is not β·KL(π‖π*) is a mistake of the enumeration, and none of the figures would hold."""
    for name, runs in found.items():
        for run in runs:
            error = abs(run.standing.gap - beta * run.standing.kl_to_optimum)
            assert error <= tolerance, f"{name}: J* − J is off β·KL(π‖π*) by {error:g}"
