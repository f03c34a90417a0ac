"""Controllers of β on the simulated plant: every target, step size, batch and delay, over seeds.

    python benchmarks/control_plant.py [--controller ziegler ...] [--seeds 10] [--json OUT.json]

Prints a Markdown table for each controller and target: the median over seeds and, in brackets, the worst. A median
that misses its goal is bold. Before the change of the reward: rise, overshoot, settling, rms, mean. After it has
doubled (×2) or halved (×½): peak and recovery. Then settling from the β that is right and from 100 times more and less,
and, over all these runs, the updates after which the plant had run away and was held: an ηβ above 2 does that, and no
reading then tells a controller that it must lower β. `floor` is a peak that no controller avoids: with a delay of D it
learns of the change D updates late.

The whole grid takes minutes a controller; name a few values for less.
"""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import torch

from kleash.lab.control import Conditions, ScaleChange, Trace, controllers, figures, simulate
from kleash.lab.mdp import golden
from kleash.lab.plant import Plant, fastest_rise, plant, weight_for

TARGETS = (0.5, 2.04046781)
ETAS = (0.02, 0.1, 0.3)
BATCHES = (64, 512)
DELAYS = (0, 1, 2)
KL_COEF = 0.2
WRONG = {"right": 1.0, "100× β": 100.0, "β/100": 0.01}
"""Where β starts, times the one that holds the target."""
CHANGES = {"×2": 2.0, "×½": 0.5}
AFTER = 600
"""Steps that are watched after the change."""
NEVER = "never"

Found = dict[str, float | None]


class Cell(NamedTuple):
    """What a controller is put to, but for the seed."""

    controller: str
    target: float
    eta: float
    batch: int
    delay: int


@dataclass(frozen=True)
class Bounds:
    """What the plant allows in a cell, and the goals that follow from it."""

    fastest: int
    floors: dict[str, float]
    """Peak after each change that comes before a controller can know of it."""
    goals: dict[str, float]


@cache
def the_plant() -> Plant:
    """The golden problem's, made once a process."""
    torch.set_num_threads(1)
    return plant(golden())


def before(cell: Cell, weight: float) -> int:
    """Steps before the change: enough for a plant that is slow."""
    return max(600, int(6 * weight / cell.eta))


def run(job: tuple[Cell, int]) -> tuple[Cell, Found]:
    """Every figure of one cell and seed."""
    cell, seed = job
    weight = weight_for(the_plant(), cell.target)
    half = before(cell, weight)

    def trace(kl_coef: float, steps: int, changes: tuple[ScaleChange, ...] = ()) -> Trace:
        config = controllers(cell.target, kl_coef)[cell.controller]
        conditions = Conditions(
            eta=cell.eta,
            batch=cell.batch,
            delay=cell.delay,
            seed=seed,
            steps=steps,
            changes=changes,
        )
        return simulate(the_plant(), config, conditions)

    found: Found = {}
    held = 0
    for name, factor in CHANGES.items():
        done = trace(KL_COEF, half + AFTER, (ScaleChange(half, factor),))
        held += done.held
        each = figures(done.kl, cell.target, half)
        found |= {
            "rise": each.rise,
            "overshoot": each.overshoot,
            "settling": each.settling,
            "rms": each.rms,
            "mean": abs(each.mean_error),
            f"peak {name}": each.peak,
            f"recovery {name}": each.recovery,
        }
    for name, factor in WRONG.items():
        done = trace(factor / weight, half)
        held += done.held
        found[f"settling, {name}"] = figures(done.kl, cell.target).settling
    return cell, found | {"held": held}


def bounds(cell: Cell) -> Bounds:
    """The fastest rise, the floors and the goals of a cell."""
    plant = the_plant()
    weight = weight_for(plant, cell.target)
    law = plant.law(weight)
    totals = law.kl_at[plant.prefixes].sum(-1)
    noise = float((law.probs @ (totals - law.kl).square() / cell.batch).sqrt()) / cell.target
    floors = {name: _floor(cell, weight, factor) for name, factor in CHANGES.items()}
    fastest = fastest_rise(plant, cell.target, cell.eta)
    goals = {
        "rise": 1.2 * fastest,
        "overshoot": 0.1,
        "settling": 1.5 * weight / cell.eta,
        "rms": max(0.02, noise),
        "mean": 0.02,
        **{f"peak {name}": max(0.15, floor) for name, floor in floors.items()},
        **{f"recovery {name}": 100 for name in CHANGES},
    }
    return Bounds(fastest, floors, goals)


def _floor(cell: Cell, weight: float, factor: float) -> float:
    """|KL/T − 1| where β stays as it was for D updates after the change."""
    moved = weight
    for _ in range(cell.delay):
        moved = (1 - cell.eta / weight) * moved + cell.eta * factor
    return abs(the_plant().law(moved).kl / cell.target - 1)


def summary(values: Iterable[float | None]) -> dict[str, float]:
    """Median and worst; never is inf."""
    known = [math.inf if value is None else value for value in values]
    return {"median": statistics.median_high(known), "worst": max(known)}


def shown(name: str, value: float) -> str:
    """A figure as the table shows it."""
    if math.isinf(value):
        return NEVER
    if name.split()[0] in {"overshoot", "rms", "mean", "peak"}:
        digits = 1 if name in {"rms", "mean"} else 0
        return f"{100 * value:.{digits}f} %"
    return f"{value:.0f}"


def entry(name: str, each: dict[str, float], goal: float) -> str:
    """Median and worst of a figure, bold where the median misses its goal."""
    text = f"{shown(name, each['median'])} ({shown(name, each['worst'])})"
    return f"**{text}**" if each["median"] > goal else text


def tables(cells: dict[Cell, dict[str, dict[str, float]]]) -> str:
    """A Markdown table for each controller and target."""
    lines: list[str] = []
    heading = None
    for cell, each in cells.items():
        if heading != cell[:2]:
            heading = cell[:2]
            columns = ["η", "batch", "delay", "fastest", *each, *(f"floor {x}" for x in CHANGES)]
            lines += ["", f"### {cell.controller}, T = {cell.target:g}", ""]
            lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        limit = bounds(cell)
        row = [f"{cell.eta:g}", f"{cell.batch}", f"{cell.delay}", f"{limit.fastest}"]
        row += [entry(name, x, limit.goals.get(name, math.inf)) for name, x in each.items()]
        row += [shown("peak", limit.floors[name]) for name in CHANGES]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def document(cells: dict[Cell, dict[str, dict[str, float]]], seeds: int) -> dict[str, object]:
    """All of it for JSON, which has no inf: null is never."""
    rows: list[dict[str, object]] = []
    for cell, each in cells.items():
        limit = bounds(cell)
        found = {
            name: {key: None if math.isinf(x) else x for key, x in values.items()}
            for name, values in each.items()
        }
        rows.append(
            {
                **cell._asdict(),
                "fastest_rise": limit.fastest,
                "floors": limit.floors,
                "goals": limit.goals,
                "figures": found,
            }
        )
    return {"seeds": seeds, "kl_coef": KL_COEF, "cells": rows}


def main() -> None:
    """The whole grid, or the part of it that was asked for."""
    names = list(controllers(1.0, KL_COEF))
    parser = argparse.ArgumentParser(description="Controllers of β on the simulated plant.")
    parser.add_argument("--controller", nargs="+", default=names, choices=names)
    parser.add_argument("--target", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--eta", nargs="+", type=float, default=ETAS)
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--delay", nargs="+", type=int, default=DELAYS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    given = parser.parse_args()
    grid = [
        Cell(*each)
        for each in product(given.controller, given.target, given.eta, given.batch, given.delay)
    ]
    jobs = [(cell, seed) for cell in grid for seed in range(given.seeds)]
    runs: dict[Cell, list[Found]] = defaultdict(list)
    with Pool(given.processes) as pool:
        for done, (cell, found) in enumerate(pool.imap(run, jobs), 1):
            runs[cell].append(found)
            if done % given.seeds == 0:
                print(f"{done}/{len(jobs)} {cell}", file=sys.stderr, flush=True)
    cells = {
        cell: {name: summary(found[name] for found in runs[cell]) for name in runs[cell][0]}
        for cell in grid
    }
    print(tables(cells))
    if given.json is not None:
        text = json.dumps(
            document(cells, given.seeds), indent=2, allow_nan=False, ensure_ascii=False
        )
        given.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
