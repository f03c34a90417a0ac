"""What the guard and the ledger cost a step of PPO on the embedded model.

    OMP_NUM_THREADS=1 python benchmarks/guard_step.py [--rounds 15] [--directory DIR]

Runs that draw the same responses and learn nearly nothing from them go step by step in turn, so that each does the same
work: times are medians over rounds, ratios medians of a round's. `neither` measures nothing of an update but whether it
is finite, and keeps no record; `ledger` has the record alone, two entries a step with their signatures, on DIR's disk;
`limits` measures the updated policy on the rollout's states, `canary` on a canary set of 16 prompts too, for a budget.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kleash.control import ControlConfig
from kleash.guard import AlarmConfig, AlarmsConfig, GuardConfig
from kleash.ledger import Ledger, SigningKey
from kleash.records import StepRecord, UpdateFacts
from kleash.rewards.config import RewardConfig
from kleash.rollout.config import RolloutConfig
from kleash.train import update
from kleash.train.config import OptimizerConfig, RunConfig, TrainConfig
from kleash.train.loop import run_loop
from kleash.train.run import prepare

FAR = 1e6
"""Of a limit that is never met."""
ALARMS = AlarmsConfig(kl=AlarmConfig(mean=5.0), kl_new_old=AlarmConfig(mean=0.05))
LIMITS: dict[str, Any] = {
    "max_kl": FAR,
    "max_kl_new_old": FAR,
    "max_kl_new_old_token": FAR,
    "max_log_ratio": FAR,
    "alarms": ALARMS,
}
VARIANTS = {
    "neither": GuardConfig(),
    "ledger": GuardConfig(),
    "limits": GuardConfig(**LIMITS),
    "canary": GuardConfig(**LIMITS, max_kl_canary=FAR, max_path_log_ratio=FAR),
}
UNMEASURED = ("neither", "ledger")


def count_e(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(text.count("e")) for text in responses]


class Nothing:
    """A ledger that keeps no record."""

    def append(self, type: str, body: Mapping[str, Any]) -> None:
        """Forgets the entry."""


@contextmanager
def measured_as(name: str) -> Iterator[None]:
    """Measures of an update what the variant does."""
    exact = update._located

    def unmeasured(given: Any, facts: UpdateFacts) -> UpdateFacts:
        return facts

    if name in UNMEASURED:
        update._located = unmeasured
    try:
        yield
    finally:
        update._located = exact


def start(name: str, steps: int, directory: Path) -> Iterator[StepRecord]:
    """A run of the variant."""
    config = RunConfig(
        rollout=RolloutConfig(num_prompts=16, group_size=4, max_new_tokens=32),
        reward=RewardConfig(model=f"{__name__}:count_e"),
        rl=ControlConfig(controller="fixed"),
        optimizer=OptimizerConfig(learning_rate=1e-12),
        guard=VARIANTS[name],
        train=TrainConfig(steps=steps, device="cpu", trackers=(), sample_every=10**6),
    )
    ledger: Any = Nothing()
    if name != "neither":
        ledger = Ledger.create(directory / name, [SigningKey.generate()])
    return run_loop(prepare(config), ledger)


def measure(rounds: int, directory: Path) -> dict[str, list[float]]:
    """Seconds of each step of each variant, round by round; the first step, which draws samples too, is left out."""
    runs = {name: start(name, rounds + 2, directory) for name in VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            with measured_as(name):
                started = time.perf_counter()
                next(run)
                times[name].append(time.perf_counter() - started)
    return {name: found[1:] for name, found in times.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What guard and ledger cost a PPO step.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--directory", type=Path, help="where the ledgers are written")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.directory) as directory:
        times = measure(a.rounds, Path(directory))
    figures = {
        name: {
            "seconds": statistics.median(found),
            "of neither": statistics.median(
                x / y for x, y in zip(found, times["neither"], strict=True)
            ),
        }
        for name, found in times.items()
    }
    print(f"64 responses of at most 32 tokens, {torch.get_num_threads()} thread(s)")
    print(f"{'':>10} {'seconds':>8} {'of neither':>11}")
    for name, found in figures.items():
        print(f"{name:>10} {found['seconds']:8.3f} {found['of neither']:11.3f}")
    if a.out:
        a.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
