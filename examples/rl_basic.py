"""The run of `rl_loop.py` through the library: judged, recorded, verifiable, saved.

    python examples/rl_basic.py [RUN]

`kleash train` does the same from a TOML file.
"""

import sys
from pathlib import Path

from kleash.config import build
from kleash.train.config import RunConfig
from kleash.train.run import train

STEPS = 20
SETTINGS = {
    "rollout": {"num_prompts": 16, "group_size": 4, "max_new_tokens": 24},
    "reward": {"model": "tiny-reviews/gold"},
    "rl": {"controller": "pid", "kl_coef": 0.1, "kl_target": 6.0},
    "algorithm": {"name": "ppo"},
    "optimizer": {"learning_rate": 3e-4},
    "train": {"steps": STEPS, "seed": 0, "device": "cpu", "threads": 1},
}


if __name__ == "__main__":
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/rl_basic")
    for record in train(build(RunConfig, SETTINGS, "rl_basic.py"), run):
        reward = record.metrics["reward_mean"]
        print(f"{record.step:3}  reward {reward:+.2f}  KL {record.kl}  β {record.kl_coef:.3g}")
