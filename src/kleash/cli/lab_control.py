"""`kleash lab control`: controllers of β on a plant that can be enumerated."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import JustifyMethod
from rich.text import Text

from kleash.cli.console import Screen, plain
from kleash.cli.options import AsJson, ProblemFile, train_extra
from kleash.control import MAX_KL_COEF, MIN_KL_COEF
from kleash.errors import InputError
from kleash.report import write_report
from kleash.report.simulation import render_simulation
from kleash.report.text import DASH, number

if TYPE_CHECKING:
    from kleash.lab.control import Conditions, Figures, ScaleChange, Trace
    from kleash.lab.plant import Plant

TARGET = 2.04046781
"""Nats per response; on the built-in problem it is held by β = 0.2."""
KL_COEF = 0.2
STEPS = 1200
CHANGES = ("600:2",)
COLUMNS: dict[str, JustifyMethod] = {
    "controller": "left",
    "rise": "right",
    "overshoot": "right",
    "settling": "right",
    "rms": "right",
    "peak": "right",
    "recovery": "right",
}
LEAST_TARGET = 1e-6
BLOCKS = "▁▂▃▄▅▆▇█"
AT_TARGET = 3
"""Which block is the target; the others are a third of it apart."""
SPARKS = 60
"""Blocks in a sparkline."""
ScaleChanges = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STEP:FACTOR",
        help="Multiply the reward from that step on; may be repeated.",
        show_default=f"{CHANGES[0]}, none where --steps is given",
    ),
]


def control(  # noqa: PLR0913, PLR0917 - the options of a command line
    mdp: ProblemFile = None,
    target: Annotated[float, typer.Option(help="KL to hold, nats per response.")] = TARGET,
    eta: Annotated[float, typer.Option(help="η, the size of an update.")] = 0.1,
    batch: Annotated[int, typer.Option(help="Sequences in a rollout.")] = 512,
    delay: Annotated[int, typer.Option(help="Updates that a reading is late.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sequences drawn.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Updates.", show_default=str(STEPS))] = None,
    reward_scale_at: ScaleChanges = None,
    kl_coef: Annotated[float, typer.Option(help="β before the first reading.")] = KL_COEF,
    controller: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Draw KL and β by step.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What controllers of β do to the KL, on a simulated run whose KL is known exactly.

    A step of mirror descent on E[R] − β·KL takes π_ref·exp(λR) to (1 − ηβ)λ + η. Readings are sampled as in training,
    and the reward may change its scale on the way; the figures are of the true KL.
    """
    screen = Screen(as_json=as_json)
    _check_options(kl_coef, out)
    with train_extra():
        from kleash.lab.control import Conditions, controllers, simulate
        from kleash.lab.mdp import golden, load_mdp
        from kleash.lab.plant import plant

    default = CHANGES if steps is None else ()
    conditions = Conditions(
        eta=eta,
        batch=batch,
        delay=delay,
        seed=seed,
        steps=STEPS if steps is None else steps,
        changes=_changes(default if reward_scale_at is None else reward_scale_at),
    )
    simulated = plant(golden() if mdp is None else load_mdp(mdp))
    _check_target(simulated, target)  # before anything is run
    configs = controllers(target, kl_coef)
    chosen = _chosen(controller, list(configs))
    traces: dict[str, Trace] = {}
    with screen.progress() as shown:
        for done, name in enumerate(chosen, 1):
            traces[name] = simulate(simulated, configs[name], conditions)
            shown.show("controllers", done, len(chosen), name)
    found = {name: _figures(trace, target, conditions) for name, trace in traces.items()}
    _show(screen, found, traces, target, conditions)
    if out is not None:
        _draw(out, traces, target)
        screen.say(f"plot     {out}")
    document = _facts(simulated, target, conditions) | {"kl_coef": kl_coef}
    each = {name: found[name]._asdict() | _measured(traces[name]) for name in chosen}
    screen.document({"controllers": each, **document})


def _check_target(simulated: "Plant", target: float) -> None:
    """Refuses a target that no policy has, or that the first update is far beyond."""
    from kleash.lab.plant import weight_for

    weight_for(simulated, target)
    if target < LEAST_TARGET:
        raise InputError(
            "the target is wrong",
            expected=f"at least {LEAST_TARGET:g} nats: below, a plant's first step is far beyond it",
            got=f"{target:g}",
        )


def _changes(given: Sequence[str]) -> "tuple[ScaleChange, ...]":
    from kleash.lab.control import ScaleChange

    changes: list[ScaleChange] = []
    for words in given:
        step, _, factor = words.partition(":")
        try:
            changes.append(ScaleChange(int(step), float(factor)))
        except ValueError as error:
            raise InputError(
                "--reward-scale-at is wrong",
                expected="STEP:FACTOR, as in 600:2",
                got=words[:80],
            ) from error
    return tuple(sorted(changes))


def _chosen(wanted: list[str] | None, names: list[str]) -> list[str]:
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise InputError(
            "no such controller on this plant", expected=", ".join(names), got=unknown[0][:80]
        )
    return names if wanted is None else [name for name in names if name in wanted]


def _figures(trace: "Trace", target: float, conditions: "Conditions") -> "Figures":
    """Up to the second change of the reward: no figure is of two disturbances."""
    from kleash.lab.control import figures

    first, second = [*sorted({change.step for change in conditions.changes}), None, None][:2]
    return figures(trace.kl[:second], target, first)


def _facts(simulated: "Plant", target: float, conditions: "Conditions") -> dict[str, object]:
    from kleash.lab.plant import fastest_rise, weight_for

    weight = weight_for(simulated, target)
    return {
        "target": target,
        "eta": conditions.eta,
        "batch": conditions.batch,
        "delay": conditions.delay,
        "seed": conditions.seed,
        "steps": conditions.steps,
        "reward_scale_at": list(conditions.changes),
        "fastest_rise": fastest_rise(simulated, target, conditions.eta),
        "lambda_target": weight,
        "beta_target": 1 / weight,
        "kl_max": simulated.kl_max,
    }


def _measured(trace: "Trace") -> dict[str, object]:
    return {"held": trace.held, "kl": trace.kl, "kl_coef": trace.kl_coef}


def _show(
    screen: Screen,
    found: "dict[str, Figures]",
    traces: "dict[str, Trace]",
    target: float,
    conditions: "Conditions",
) -> None:
    changes = sorted({change.step for change in conditions.changes})
    screen.say(
        f"target {number(target)} nats/response, η = {conditions.eta:g}, {conditions.steps} steps of "
        f"{conditions.batch} sequences, delay {conditions.delay}"
    )
    screen.say()
    screen.table(COLUMNS, [_row(name, each, bool(changes)) for name, each in found.items()])
    screen.say()
    width = max(map(len, traces))
    for name, trace in traces.items():
        line = Text(f"{plain(name):{width}}  ")
        screen.say(line.append_text(sparkline(trace.kl, target, changes)))
    screen.say()
    screen.say(
        f"{BLOCKS[AT_TARGET]} within 10 % of the target, {BLOCKS[-1]} twice the target or more"
    )
    for change in conditions.changes:
        screen.say(f"┊ step {change.step}: the reward times {change.factor:g}")
    for name, trace in traces.items():
        if trace.held:
            screen.say(
                f"{name}: λ was held {trace.held} times where floats end; ηβ reached "
                f"{conditions.eta * max(trace.kl_coef):.3g}, and above 2 a step throws the policy past where it was"
            )


def _row(name: str, found: "Figures", is_disturbed: bool) -> list[str]:
    never = "never"
    after = [_share(found.peak), never if found.recovery is None else f"{found.recovery}"]
    return [
        name,
        never if found.rise is None else f"{found.rise}",
        _share(found.overshoot),
        never if found.settling is None else f"{found.settling}",
        _share(found.rms),
        *(after if is_disturbed else [DASH, DASH]),
    ]


def _share(value: float | None) -> str:
    """A share of the target, in percent."""
    if value is None:
        return DASH
    digits = 1 if abs(value) < 0.1 else 0
    return f"{100 * value:,.{digits}f} %".replace("-", "−") if abs(value) < 1e4 else f"{value:.1e}"


def sparkline(kl: Sequence[float], target: float, changes: Sequence[int] = ()) -> Text:
    """A KL as a row of blocks, green within ±10 % of the target; each shows the step farthest from it.

    Args:
        kl: nats, one a step.
        target: nats.
        changes: steps before which a mark is set.

    Examples:
        >>> sparkline([0.0, 1.0, 2.0, 3.0, 9.0, 2.1], 2.0, changes=[3]).plain
        '▁▂▄┊▆█▄'
    """
    from kleash.lab.control import BAND

    ends = [0, *changes, len(kl)]
    line = Text()
    for start, end in pairwise(ends):
        if start:
            line.append("┊", style="dim")
        blocks = max(1, min(end - start, round(SPARKS * (end - start) / len(kl))))
        cuts = [start + (end - start) * block // blocks for block in range(blocks + 1)]
        for first, last in pairwise(cuts):
            error = max((nats / target - 1 for nats in kl[first:last]), key=abs)
            line.append(BLOCKS[_level(error, BAND)], style="green" if abs(error) <= BAND else "")
    return line


def _level(error: float, band: float) -> int:
    """The block of a relative error: −1 is the lowest, 1 and more the highest."""
    if abs(error) <= band:
        return AT_TARGET
    if error < 0:
        return min(AT_TARGET - 1, int(AT_TARGET * (1 + error)))
    return min(len(BLOCKS) - 1, AT_TARGET + 1 + int(AT_TARGET * min(error, 1)))


def _check_options(kl_coef: float, out: Path | None) -> None:
    if not MIN_KL_COEF <= kl_coef <= MAX_KL_COEF:
        expected = f"{MIN_KL_COEF:g} to {MAX_KL_COEF:g}"
        raise InputError("--kl-coef is wrong", expected=expected, got=f"{kl_coef:g}")
    if out is not None and not out.parent.is_dir():
        raise InputError(
            "--out cannot be written", expected="a file in a folder that is there", got=str(out)
        )


def _draw(out: Path, traces: "dict[str, Trace]", target: float) -> None:
    from kleash.lab.control import BAND

    drawn = {name: {"kl": trace.kl, "kl_coef": trace.kl_coef} for name, trace in traces.items()}
    page = render_simulation(drawn, title="Controllers of β, simulated", target=target, band=BAND)
    write_report(page, out)
