"""Reward against exact KL of every algorithm on a language model, beside best-of-n and the sampled optimum frontier.

    python benchmarks/algorithms_tiny.py [--seeds 0 1 2] [--tokens 40000] [--beta 0.5] [--plot page.html]

Each run trains the embedded model on its gold reward, on 32 prompts, until so many tokens were sampled, with its
algorithm's own defaults and β held. The table is of its last policy on fresh responses to those prompts; the frontier
and best-of-n are worked out from the reference's (`functional.frontier`, `functional.best_of_n`).
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import replace
from itertools import product
from multiprocessing import Pool
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch

from kleash.config import build, override
from kleash.functional.best_of_n import best_of_n_kl_bound, best_of_n_reward
from kleash.functional.frontier import sampled_frontier
from kleash.ledger import Ledger, SigningKey
from kleash.report.figures import Chart, Figure, Label, margin_for, place
from kleash.report.html import render_charts
from kleash.report.theme import run_colour
from kleash.rollout.config import RolloutConfig
from kleash.rollout.seeds import seeded
from kleash.train.algorithms import ALGORITHMS
from kleash.train.config import RunConfig
from kleash.train.evaluate import collect
from kleash.train.experience import Metered
from kleash.train.loop import run_loop
from kleash.train.run import prepare
from kleash.train.setup import Setup

PROMPTS, LENGTH, FRESH = 32, 24, 16
"""Prompts of a rollout and of every figure, tokens of a response, responses per prompt behind a figure."""
COLOURS = 5
"""Of algorithms, before lines are dotted; the sixth of the palette is that of what is no algorithm."""
TILTS = [0.05 * k for k in range(121)]


class Case(NamedTuple):
    """One run."""

    algorithm: str
    seed: int
    beta: float
    tokens: int
    settings: tuple[str, ...]
    """`section.key=value`, over everything else."""


def configure(case: Case) -> RunConfig:
    """What `kleash train` would be told of it."""
    settings: dict[str, Any] = {
        "rollout": {"num_prompts": 16, "group_size": 4, "max_new_tokens": LENGTH},
        "reward": {"model": "tiny-reviews/gold"},
        "rl": {"controller": "fixed", "kl_coef": case.beta},
        "algorithm": {"name": case.algorithm},
        "optimizer": {"learning_rate": 1e-4},
        # More steps than there will be: a run ends by the tokens it sampled.
        "train": {
            "steps": 10_000,
            "seed": case.seed,
            "device": "cpu",
            "threads": 1,
            "trackers": [],
        },
    }
    return build(RunConfig, override(settings, case.settings), "benchmark")


def prepared(case: Case) -> Setup:
    """A run of that case, on the prompts of every figure only."""
    setup = prepare(configure(case))
    return replace(setup, prompts=setup.prompts[:PROMPTS])


def run(case: Case) -> dict[str, Any]:
    """The KL and the reward of every rollout, and of the last policy on fresh responses."""
    setup = prepared(case)
    trace: list[dict[str, float]] = []
    sampled = 0.0
    with (
        tempfile.TemporaryDirectory() as directory,
        Ledger.create(Path(directory), [SigningKey.generate()]) as ledger,
    ):
        for record in run_loop(setup, ledger):
            reward, length = record.metrics["reward_mean"], record.metrics["response_length"]
            assert reward is not None
            assert length is not None
            trace.append({"kl": record.kl.value, "reward": reward})
            sampled += length * 64
            if sampled >= case.tokens:
                break
    return {**case._asdict(), "trace": trace, "sampled": sampled, **last_policy(setup)}


def last_policy(setup: Setup) -> dict[str, float]:
    """Reward and exact KL on fresh responses, with their standard errors."""
    metered, scores = fresh(setup, seeded(0, "fresh"))
    found = {"kl": metered.kl.sum(-1), "reward": scores}
    # Of responses about their prompt's mean: the prompts are the same for all.
    errors = {
        name: float(values.view(PROMPTS, FRESH).var(-1).mean() / len(values)) ** 0.5
        for name, values in found.items()
    }
    return {
        **{name: float(values.mean()) for name, values in found.items()},
        **{f"{name}_error": error for name, error in errors.items()},
    }


def bounds(per_prompt: int) -> dict[str, Any]:
    """The frontier and best-of-n, from samples of the reference."""
    torch.set_num_threads(1)
    setup = prepared(Case("rloo", 0, 1.0, 0, ()))
    lots = [fresh(setup, seeded(lot, "reference"))[1] for lot in range(per_prompt // FRESH)]
    rewards = torch.cat([scores.view(PROMPTS, FRESH) for scores in lots], 1)
    frontier = sampled_frontier(rewards, torch.tensor(TILTS))
    draws = [2**k for k in range(rewards.shape[1].bit_length())]
    best = best_of_n_reward(rewards, n=torch.tensor(draws)).mean(0)
    return {
        "frontier": {name: values.tolist() for name, values in frontier._asdict().items()},
        "best_of_n": {
            "n": draws,
            "kl": [best_of_n_kl_bound(n) for n in draws],
            "reward": best.tolist(),
        },
    }


def fresh(setup: Setup, generator: torch.Generator) -> tuple[Metered, torch.Tensor]:
    """Responses of a run's policy to its prompts, metered, and their scores [prompts · FRESH], a prompt's together."""
    config = RolloutConfig(num_prompts=PROMPTS, group_size=FRESH, max_new_tokens=LENGTH)
    found = collect(setup.learner, setup.prompts, config, (setup.reward, []), generator)
    return found.metered, found.scores


def above(found: dict[str, Any], frontier: dict[str, list[float]]) -> float:
    """Reward over the frontier at the same KL, in standard errors of both: under 2 or so is none."""
    kl, reward = frontier["kl"], frontier["reward"]
    k = next((k for k, nats in enumerate(kl) if nats >= found["kl"]), len(kl) - 1)
    share = (found["kl"] - kl[k - 1]) / (kl[k] - kl[k - 1]) if k else 0.0
    best = reward[k - 1] + share * (reward[k] - reward[k - 1]) if k else reward[0]
    slope = (reward[k] - reward[k - 1]) / (kl[k] - kl[k - 1]) if k else 0.0
    return (found["reward"] - best) / math.hypot(found["reward_error"], slope * found["kl_error"])


def main() -> None:
    """Runs them two at a time, and prints a table."""
    parser = argparse.ArgumentParser(description="Every algorithm, on a language model.")
    names = [name for name in ALGORITHMS if name != "trpo"]  # a natural step takes minutes here
    parser.add_argument("--algorithms", nargs="+", default=names, choices=ALGORITHMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=40_000, help="sampled by each run")
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--per-prompt", type=int, default=512, help="samples behind the frontier")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--plot", type=Path, help="the picture, as a page")
    asked = parser.parse_args()
    cases = [
        Case(name, seed, asked.beta, asked.tokens, tuple(asked.settings))
        for seed, name in product(asked.seeds, asked.algorithms)
    ]
    done: list[dict[str, Any]] = []
    with Pool(asked.processes) as pool:
        known = pool.apply_async(bounds, [asked.per_prompt])
        for found in pool.imap(run, cases):
            done.append(found)
            print(f"{len(done)} of {len(cases)}: {found['algorithm']}", file=sys.stderr)
            if asked.out is not None:  # what is done stays, whatever becomes of the rest
                asked.out.write_text(json.dumps({"runs": done}), encoding="utf-8")
        limits = known.get()
    print(
        f"| algorithm | rollouts | reward | KL | over the frontier, standard errors (β = {asked.beta:g}) |"
    )
    print("|---|---|---|---|---|")
    for name in asked.algorithms:
        runs = [found for found in done if found["algorithm"] == name]
        over = ", ".join(f"{above(found, limits['frontier']):+.1f}" for found in runs)
        figures = (median(found[key] for found in runs) for key in ("reward", "kl"))
        print(
            f"| {name} | {len(runs[0]['trace'])} | {' | '.join(f'{x:.3f}' for x in figures)} | {over} |"
        )
    if asked.out is not None:
        asked.out.write_text(json.dumps({"runs": done, **limits}), encoding="utf-8")
    if asked.plot is not None:
        asked.plot.write_text(page(done, limits, asked.beta), encoding="utf-8")


def page(done: list[dict[str, Any]], limits: dict[str, Any], beta: float) -> str:
    """The mean path of each algorithm's seeds, with the frontier and best-of-n."""
    names = list(dict.fromkeys(found["algorithm"] for found in done))
    paths = {name: path([r["trace"] for r in done if r["algorithm"] == name]) for name in names}
    furthest = 1.15 * max(x for points in paths.values() for x, _ in points)
    frontier, best = (
        [
            (x, y)
            for x, y in zip(limits[key]["kl"], limits[key]["reward"], strict=True)
            if x <= furthest
        ]
        for key in ("frontier", "best_of_n")
    )
    data = [
        line(frontier, "the optimum", "#77787c", "solid"),
        line(best, "best of n", "#77787c", "6px,3px"),
    ]
    labels = [
        Label(x=frontier[-1][0], y=frontier[-1][1], text="the optimum", colour="#77787c"),
        Label(x=best[-1][0], y=best[-1][1], text="best of n", colour="#77787c"),
    ]
    for index, (name, points) in enumerate(paths.items()):
        colour = run_colour(index % COLOURS)
        data.append(line(points, name, colour, "solid" if index < COLOURS else "2px,3px"))
        labels.append(Label(x=points[-1][0], y=points[-1][1], text=name, colour=colour))
    ys = [y for trace in data for y in trace["y"]]
    low, high = min(ys) - 0.1, max(ys) + 0.1
    layout: Figure = {
        "xaxis": {
            "title": {"text": "KL(π‖π_ref), nats per response"},
            "range": [0, furthest],
            "showgrid": True,
        },
        "yaxis": {"title": {"text": "mean reward"}, "range": [low, high]},
        "annotations": place(labels, pixels_per_unit=420 / (high - low)),
        "margin": {"r": margin_for(labels)},
        "hovermode": "closest",
    }
    chart = Chart(
        title="Reward against exact KL",
        reading=f"Each line is the mean path of {len(done) // len(names)} runs at β = {beta:g}, from the "
        "reference at the left, smoothed over five rollouts. Grey: the most reward that any policy has at that KL, "
        "from samples of the reference; dashed, best of n at its bound.",
        figure={"data": data, "layout": layout},
        size="hero",
    )
    return render_charts((chart,), title="Every algorithm, on a language model")


def path(traces: list[list[dict[str, float]]]) -> list[tuple[float, float]]:
    """KL and reward by rollout, means over the seeds and five rollouts in a row."""
    steps = min(len(trace) for trace in traces)
    means = [
        tuple(mean(trace[t][key] for trace in traces) for key in ("kl", "reward"))
        for t in range(steps)
    ]
    return [
        (mean(x for x, _ in means[t : t + 5]), mean(y for _, y in means[t : t + 5]))
        for t in range(steps - 4)
    ]


def line(points: list[tuple[float, float]], name: str, colour: str, dash: str) -> Figure:
    """A line of the picture."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "name": name,
        "line": {"color": colour, "width": 2, "dash": dash},
    }


if __name__ == "__main__":
    main()
