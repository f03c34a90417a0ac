"""What exact KL costs a whole PPO step on the embedded model: sampling, metering, update, against the same with k1.

    OMP_NUM_THREADS=1 python benchmarks/ppo_step.py [--rounds 7]

All variants start from the same weights and draw the same responses, in turn; times are medians over rounds, ratios of
rounds. `k1` has the sampled log-ratio in the reward and differentiates no KL; its meter is exact all the same, as it
always is here. `k1, nothing exact` meters the log-probabilities of the drawn tokens only, as other trainers do.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kleash.control import ControlConfig
from kleash.functional.chunks import TokenKL
from kleash.functional.penalties import Penalty
from kleash.models.policy import Head
from kleash.rewards.config import RewardConfig
from kleash.rollout.config import RolloutConfig
from kleash.rollout.seeds import seeded
from kleash.train.algorithms import ALGORITHMS
from kleash.train.config import RunConfig, TrainConfig
from kleash.train.evaluate import collect
from kleash.train.run import prepare
from kleash.train.setup import Setup
from kleash.train.update import propose_update

PPO = ALGORITHMS["ppo"]
EXACT, K1 = Penalty("exact", "exact"), Penalty("reward", "k1")
VARIANTS = {"exact": EXACT, "k1": K1, "k1, nothing exact": K1}


def count_e(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(text.count("e")) for text in responses]


def sampled_read(
    self: Head, hidden: Tensor, ref: Head, ref_hidden: Tensor, tokens: Tensor, temperature: float
) -> TokenKL:
    """What a meter without exact KL reads: the drawn tokens' log-probabilities; there is no KL and no entropy in it."""
    own, theirs = (
        logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        for logits in (self(hidden) / temperature, ref(ref_hidden) / temperature)
    )
    return TokenKL(own, theirs, torch.zeros_like(own), torch.zeros_like(own))


@contextmanager
def meter_of(name: str) -> Iterator[None]:
    """Reads heads as the variant does."""
    exact = Head.read
    if name == "k1, nothing exact":
        Head.read = sampled_read
    try:
        yield
    finally:
        Head.read = exact


def step(setup: Setup, name: str, prompts: list[str]) -> dict[str, float]:
    """Seconds of one step, undone."""
    config, learner, generator = setup.config, setup.learner, seeded(0, "step")
    with meter_of(name):
        started = time.perf_counter()
        experience = collect(
            learner, prompts, config.rollout, (setup.reward, []), generator, micro_batch_size=64
        )
        collected = time.perf_counter()
        targets = PPO.targets(experience, 0.1, config.algorithm, VARIANTS[name])
        proposal = propose_update(learner, PPO, experience, targets, config, generator)
        ended = time.perf_counter()
    learner.restore(proposal.snapshot)
    return {
        "collect": collected - started,
        "update": ended - collected,
        "step": ended - started,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What exact KL costs a PPO step.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    a = parser.parse_args()
    setup = prepare(
        RunConfig(
            rollout=RolloutConfig(num_prompts=16, group_size=4, max_new_tokens=32),
            reward=RewardConfig(model=f"{__name__}:count_e"),
            rl=ControlConfig(controller="fixed"),
            train=TrainConfig(device="cpu", trackers=()),
        )
    )
    prompts = setup.prompts[: setup.config.rollout.num_prompts]
    times: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(a.rounds + 1):
        for name in VARIANTS:
            times[name].append(step(setup, name, prompts))
    phases = ("collect", "update", "step")
    medians = {
        name: {phase: statistics.median(x[phase] for x in found[1:]) for phase in phases}
        for name, found in times.items()
    }
    print(f"64 responses of at most 32 tokens, {torch.get_num_threads()} thread(s)")
    print(f"{'':>18} {'collect':>8} {'update':>8} {'step':>8} {'exact / it':>11}")
    for name, found in medians.items():
        # Round by round: neighbours in time shared the machine's mood.
        pairs = zip(times["exact"][1:], times[name][1:], strict=True)
        ratio = statistics.median(x["step"] / y["step"] for x, y in pairs)
        seconds = " ".join(f"{found[phase]:8.3f}" for phase in phases)
        print(f"{name:>18} {seconds} {ratio:11.3f}")
    if a.out:
        a.out.write_text(json.dumps(medians, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
