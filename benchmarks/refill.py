"""Sampling with a bound on how many responses run at once: time, and memory for keys and values.

    OMP_NUM_THREADS=1 python benchmarks/refill.py [--rounds 7] [--responses 256] [--running 64] [--tokens 112]

The embedded model answers in three ways, in turn, round by round: all responses at once; `--running` at once, the next
where one ends (`rollout.max_running`); and so many at once, the next when all have ended. Its sentences are of 1 to 112
tokens and more. Time is of the processor, as others may use it too; figures are medians over rounds, and ratios medians
of a round's. The bytes are of the cache and of the prompts last made ready for it, at the most.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample

PROMPTS = ["the film is", "a", "despite its best efforts , this movie", "it's", "one of the best"]
GROUP = 4


class Peak:
    """The most bytes of keys and values that a model was given, with those of prompts that were made ready."""

    def __init__(self) -> None:
        self.bytes = 0
        self.running: Any = None
        self.ready: Any = None

    def __call__(self, _module: Any, _args: Any, given: dict[str, Any]) -> None:
        """Looks at what is there before a pass."""
        if given["input_ids"].shape[1] == 1:
            self.running = given["past_key_values"]
        else:
            self.ready = given["past_key_values"]
        caches = {id(cache): cache for cache in (self.running, self.ready) if cache is not None}
        layers = [layer for cache in caches.values() for layer in cache.layers if layer.room]
        self.bytes = max(self.bytes, sum(x.nbytes for layer in layers for x in layer.room))


def ways(
    policy: LanguageModel, responses: int, running: int, tokens: int
) -> dict[str, Callable[[torch.Generator], list[Rollout]]]:
    """How the responses are sampled, by name."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(responses // GROUP)]
    config = RolloutConfig(num_prompts=len(prompts), group_size=GROUP, max_new_tokens=tokens)
    bounded = config.model_copy(update={"max_running": running})
    wave = running // GROUP
    return {
        "all": lambda generator: [sample(policy, prompts, config, generator)],
        "refill": lambda generator: [sample(policy, prompts, bounded, generator)],
        "waves": lambda generator: [
            sample(policy, prompts[i : i + wave], config, generator)
            for i in range(0, len(prompts), wave)
        ],
    }


def measured(
    policy: LanguageModel, way: Callable[[torch.Generator], list[Rollout]], seed: int
) -> dict[str, float]:
    """One rollout: tokens, tokens a second, bytes."""
    peak = Peak()
    handle = policy.model.register_forward_pre_hook(peak, with_kwargs=True)
    begun = time.process_time()
    rollouts = way(torch.Generator().manual_seed(seed))
    seconds = time.process_time() - begun
    handle.remove()
    tokens = sum(int(rollout.mask.sum()) for rollout in rollouts)
    return {"tokens": tokens, "tokens_per_s": tokens / seconds, "bytes": peak.bytes}


def main() -> None:
    """Prints one line a round, then medians."""
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 7), ("responses", 256), ("running", 64), ("tokens", 112)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_language_model("tiny-reviews/base")
    by_name = ways(policy, given.responses, given.running, given.tokens)
    rounds: list[dict[str, dict[str, float]]] = []
    for seed in range(given.rounds + 1):
        found = {name: measured(policy, way, seed) for name, way in by_name.items()}
        print(json.dumps(found), flush=True)
        if seed:  # the first warms up
            rounds.append(found)
    for name in by_name:
        figures = {
            key: statistics.median(found[name][key] for found in rounds)
            for key in ("tokens", "tokens_per_s", "bytes")
        }
        ratios = {
            f"{key}_of_all": statistics.median(
                found[name][key] / found["all"][key] for found in rounds
            )
            for key in ("tokens_per_s", "bytes")
        }
        print(name, json.dumps(figures | ratios))


if __name__ == "__main__":
    main()
