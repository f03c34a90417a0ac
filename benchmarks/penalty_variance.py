"""How noisy the penalty's gradient is, wherever the penalty stands: the embedded model, some nats from its reference.

    OMP_NUM_THREADS=1 python benchmarks/penalty_variance.py [--nats 2 --batches 24 --responses 32]

The policy is trained on the gold reward until it is `--nats` away. Then the gradient of the penalty alone is taken on
fresh rollouts, the same for every placement: its mean is the gradient of the sequence KL (`loss`: of its local part),
and what varies from rollout to rollout is noise. Noise is tr Cov of the gradient over all weights; the ratio of two
noises is the ratio of the responses that they need for the same precision.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kleash.control import ControlConfig
from kleash.functional.penalties import Penalty
from kleash.ledger import Ledger, SigningKey
from kleash.rewards.config import RewardConfig
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded
from kleash.train.algorithms import ALGORITHMS, AlgorithmConfig
from kleash.train.config import OptimizerConfig, RunConfig, TrainConfig
from kleash.train.experience import Experience, meter
from kleash.train.learner import Learner
from kleash.train.loop import run_loop
from kleash.train.loss import minibatch_loss
from kleash.train.run import prepare

PPO = ALGORITHMS["ppo"]
PLACEMENTS = {
    "exact": Penalty("exact", "exact"),
    "reward, exact to go": Penalty("reward", "exact"),
    "reward, k1": Penalty("reward", "k1"),
    "loss (local part only)": Penalty("loss", "exact"),
}
PLAIN = AlgorithmConfig(
    gae_lambda=1.0, scale="none", value_coef=0.0, num_epochs=1, num_minibatches=1
)


def config(responses: int) -> RunConfig:
    """A run on the gold reward, to get away from the reference."""
    return RunConfig(
        rollout=RolloutConfig(num_prompts=responses // 2, group_size=2, max_new_tokens=24),
        reward=RewardConfig(model="tiny-reviews/gold"),
        rl=ControlConfig(controller="fixed", kl_coef=0.05),
        optimizer=OptimizerConfig(learning_rate=3e-4),
        train=TrainConfig(steps=60, device="cpu", trackers=(), num_samples=1, sample_every=1000),
    )


def drifted(nats: float, responses: int) -> tuple[Learner, RunConfig, list[str]]:
    """The learner once its rollout is `nats` per response away."""
    setup = prepare(config(responses))
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger.create(Path(folder) / "ledger", [SigningKey.generate()]) as ledger,
    ):
        for record in run_loop(setup, ledger):
            if record.kl.value >= nats:
                break
    print(f"after {record.step} steps: {record.kl}")
    return setup.learner, setup.config, setup.prompts


def gradient(
    learner: Learner, experience: Experience, penalty: Penalty, settings: RunConfig
) -> Tensor:
    """Of β·KL at β = 1 and no reward, per response, over all weights."""
    targets = PPO.targets(experience, 1.0, settings.algorithm, penalty)
    loss = minibatch_loss(
        learner, PPO, experience, targets, torch.arange(len(experience.scores)), settings
    )
    learner.optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    scale = float(experience.rollout.mask.sum()) / len(experience.scores)
    weights = list(learner.policy.model.parameters())
    found = torch.cat([p.grad.flatten() for p in weights if p.grad is not None])
    return scale * found


def with_baseline(experience: Experience, penalty: Penalty) -> Experience:
    """The mean return of the other responses at each position, as a critic that knows nothing else would learn it."""
    returns = PPO.targets(experience, 1.0, PLAIN, penalty).returns
    mask = experience.rollout.mask
    total, count = returns.sum(0), mask.sum(0)
    others = (total - returns) / (count - 1).clamp(min=1)
    metered = replace(experience.metered, values=torch.where(mask, others, 0.0))
    return replace(experience, metered=metered)


class Moments:
    """Mean and noise of a vector, one sample at a time."""

    def __init__(self) -> None:
        self.count, self.squares, self.total = 0, 0.0, torch.zeros(())

    def add(self, sample: Tensor) -> None:
        """One more."""
        self.count += 1
        self.squares += float(sample.double().square().sum())
        self.total = self.total + sample

    @property
    def mean(self) -> Tensor:
        """Of the samples."""
        return self.total / self.count

    @property
    def noise(self) -> float:
        """tr Cov of one sample."""
        mean = float(self.mean.double().square().sum())
        return (self.squares - self.count * mean) / (self.count - 1)


def measure(
    learner: Learner, settings: RunConfig, prompts: list[str], batches: int, *, baseline: bool
) -> dict[str, Moments]:
    """The moments of every placement's gradient, over the same rollouts."""
    generator, found = seeded(0, "penalty variance"), {name: Moments() for name in PLACEMENTS}
    size = settings.rollout.num_prompts
    for batch in range(batches):
        start = batch * size % (len(prompts) - size)
        asked = prompts[start : start + size]
        rollout = sample(learner.policy, asked, settings.rollout, generator)
        metered = meter(learner, rollout, temperature=1.0, micro_batch_size=64)
        metered = replace(metered, values=torch.zeros_like(metered.values))
        nothing = torch.zeros(len(rollout.mask))
        experience = Experience(
            rollout=rollout, scores=nothing, penalised=nothing, monitor={}, metered=metered
        )
        for name, penalty in PLACEMENTS.items():
            seen = with_baseline(experience, penalty) if baseline else experience
            found[name].add(gradient(learner, seen, penalty, settings))
    return found


def show(found: dict[str, Moments], title: str) -> None:
    """Noise beside that of `exact`, and beside the signal."""
    exact = found["exact"]
    print(f"\n{title}\n{'':>24} {'noise':>10} {'× exact':>8} {'noise/|mean|²':>14} {'cosine':>7}")
    for name, moments in found.items():
        # |mean|² of a few samples holds their noise too.
        signal = float(moments.mean.double().square().sum()) - moments.noise / moments.count
        cosine = float(torch.cosine_similarity(moments.mean, exact.mean, dim=0))
        relative = moments.noise / signal if signal > 0 else math.nan
        print(
            f"{name:>24} {moments.noise:10.3g} {moments.noise / exact.noise:8.2f} "
            f"{relative:14.1f} {cosine:7.2f}"
        )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="The noise of the penalty's gradient.")
    parser.add_argument("--nats", type=float, nargs="+", default=[0.5, 2.0, 8.0])
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--responses", type=int, default=32)
    a = parser.parse_args()
    for nats in a.nats:
        learner, settings, prompts = drifted(nats, a.responses)
        settings = settings.model_copy(update={"ppo": PLAIN})
        for baseline in (False, True):
            found = measure(learner, settings, prompts, a.batches, baseline=baseline)
            show(found, "with a baseline" if baseline else "without a baseline")


if __name__ == "__main__":
    main()
