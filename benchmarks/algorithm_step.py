"""What a step of each algorithm costs on the embedded model, as a multiple of PPO's without its value pass.

    OMP_NUM_THREADS=1 python benchmarks/algorithm_step.py [--rounds 7] [--algorithms grpo rloo]

All start from the same weights and draw the same responses, in turn, so that ratios are per sampled token too; medians
of rounds. `ppo, values known` updates without looking at the value head. Epochs and minibatches are each one's
defaults, and `passes` says how many times an update goes over the rollout.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from kleash.config import build
from kleash.rollout.seeds import seeded
from kleash.train.algorithms import ALGORITHMS
from kleash.train.config import RunConfig
from kleash.train.evaluate import collect
from kleash.train.run import prepare
from kleash.train.setup import Setup
from kleash.train.update import propose_update

WITHOUT = "ppo, values known"


def count_e(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(text.count("e")) for text in responses]


def set_up(name: str) -> Setup:
    """One algorithm's run."""
    settings = {
        "rollout": {"num_prompts": 16, "group_size": 4, "max_new_tokens": 32},
        "reward": {"model": f"{__name__}:count_e"},
        "rl": {"controller": "fixed", "kl_coef": 0.1},
        "algorithm": {"name": name},
        "train": {"device": "cpu", "trackers": []},
    }
    return prepare(build(RunConfig, settings, "benchmark"))


def step(name: str, setup: Setup) -> float:
    """Seconds of one step, undone."""
    config, learner, generator = setup.config, setup.learner, seeded(0, "step")
    algorithm = ALGORITHMS[config.algorithm.name]
    started = time.perf_counter()
    experience = collect(
        learner,
        setup.prompts[: config.rollout.num_prompts],
        config.rollout,
        (setup.reward, []),
        generator,
        micro_batch_size=64,
    )
    targets = algorithm.targets(experience, 0.1, config.algorithm, config.penalty.resolved)
    if name == WITHOUT:
        algorithm, learner = algorithm._replace(value_loss=None), replace(learner, value_head=None)
    proposal = propose_update(learner, algorithm, experience, targets, config, generator)
    seconds = time.perf_counter() - started
    learner.restore(proposal.snapshot)
    return seconds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What a step of each algorithm costs.")
    names = [name for name in ALGORITHMS if name not in ("ppo", "trpo")]
    parser.add_argument("--algorithms", nargs="+", default=names, choices=ALGORITHMS)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    setups = {name: set_up(name) for name in ("ppo", *asked.algorithms)}
    setups[WITHOUT] = setups["ppo"]
    times: dict[str, list[float]] = {name: [] for name in setups}
    for _ in range(asked.rounds + 1):
        for name, setup in setups.items():
            times[name].append(step(name, setup))
    print(f"64 responses of at most 32 tokens, {torch.get_num_threads()} thread(s)")
    print(f"{'':>18} {'passes':>7} {'seconds':>8} {'of ppo without values':>22}")
    for name, (_, *found) in times.items():
        # Round by round: neighbours in time shared the machine's mood.
        ratio = statistics.median(x / y for x, y in zip(found, times[WITHOUT][1:], strict=True))
        passes = setups[name].config.algorithm.num_epochs
        print(f"{name:>18} {passes:>7} {statistics.median(found):8.3f} {ratio:22.3f}")


if __name__ == "__main__":
    main()
