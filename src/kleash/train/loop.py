"""The loop, on one screen. It yields records; whoever wants to watch iterates them."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kleash import control
from kleash.control import Signals
from kleash.errors import LimitError
from kleash.guard import judge
from kleash.ledger import Ledger, UpdateEntry, encode
from kleash.records import KLReading, StepRecord, Verdict
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.train.algorithms import ALGORITHMS
from kleash.train.config import RunConfig
from kleash.train.data import prompt_batches
from kleash.train.evaluate import collect, sample_lines
from kleash.train.experience import Experience
from kleash.train.learner import Learner
from kleash.train.metrics import step_metrics
from kleash.train.update import propose_update


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """All that the loop needs, loaded and checked."""

    config: RunConfig
    learner: Learner
    prompts: list[str]
    reward: Scorer
    monitors: Sequence[Scorer]


def run_loop(setup: Setup, ledger: Ledger) -> Iterator[StepRecord]:
    """Samples, scores, meters, proposes, judges, records and applies, `train.steps` times.

    Each record is durable in the ledger before the update it describes is kept, and yielded after.

    Raises:
        LimitError: the guard halted the run; the record of the last step has been yielded.
    """
    config, learner = setup.config, setup.learner
    algorithm, generator = ALGORITHMS["ppo"], seeded(config.train.seed, "training")
    batches = prompt_batches(setup.prompts, config.rollout.num_prompts, generator)
    state = control.init(config.rl)
    watch = _Samples(setup)
    for step, prompts in zip(range(1, config.train.steps + 1), batches, strict=False):
        started = time.perf_counter()
        experience = _collect(setup, prompts, generator)
        collected = time.perf_counter()
        kl = experience.reading("response", learner.reference.name)
        kl_token = experience.reading("token", learner.reference.name)
        seen = kl if config.rl.kl_unit == "response" else kl_token
        rate = _set_learning_rate(setup, step)
        targets = algorithm.targets(experience, state.kl_coef, config.ppo)
        proposal = propose_update(learner, algorithm, experience, targets, config, generator)
        verdict = judge(config.guard, kl, proposal.facts)
        after = control.update(state, seen, Signals(num_responses=seen.n))
        settings = {
            "kl_coef": state.kl_coef,
            "kl_target": config.rl.kl_target,
            "learning_rate": rate,
        }
        metrics = step_metrics(
            step, experience, (kl, kl_token), targets, proposal, verdict, settings
        )
        entry = UpdateEntry(
            step=step,
            kl=kl,
            kl_control=None if seen is kl else seen,
            kl_coef=state.kl_coef,
            facts=proposal.facts,
            verdict=verdict,
            control=after.to_json(),
            rollout_sha256=experience.rollout.sha256(),
            metrics_sha256=hashlib.sha256(metrics_line(metrics)).hexdigest(),
        )
        ledger.append("update", entry.to_json())
        if verdict.action != "accept":
            learner.restore(proposal.snapshot)
        state = after
        updated = time.perf_counter()
        yield StepRecord(
            step=step,
            kl=kl,
            kl_coef=settings["kl_coef"] or 0.0,
            verdict=verdict,
            metrics=metrics,
            seconds={"collect": collected - started, "update": updated - collected},
            samples=watch.draw(step) if watch.due(step) else (),
        )
        if verdict.action == "halt":
            raise _halted(step, verdict, kl)


def _collect(setup: Setup, prompts: Sequence[str], generator: torch.Generator) -> Experience:
    config = setup.config
    return collect(
        setup.learner,
        prompts,
        config.rollout,
        (setup.reward, setup.monitors),
        generator,
        missing_eos_penalty=config.reward.missing_eos_penalty,
        micro_batch_size=config.train.micro_batch_size,
    )


def _halted(step: int, verdict: Verdict, kl: KLReading) -> LimitError:
    return LimitError(
        f"training halted at step {step}: {verdict.reasons[0]}",
        expected="a KL under guard.max_kl",
        got=str(kl),
        do="raise rl.kl_coef or lower the learning rate; the policy is saved as it was",
    )


def metrics_line(metrics: Any) -> bytes:
    """A step's line of metrics.jsonl, LF included: the bytes whose hash the ledger holds."""
    return encode(metrics) + b"\n"


def seeded(seed: int, purpose: str) -> torch.Generator:
    """An independent stream of random numbers for each purpose of one seed."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _set_learning_rate(setup: Setup, step: int) -> float:
    rate = setup.config.optimizer.rate_at(step, setup.config.train.steps)
    for group in setup.learner.optimizer.param_groups:
        group["lr"] = rate
    return rate


class _Samples:
    """The same prompts and the same random numbers each time, so that what changes is the policy."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.prompts = setup.prompts[: setup.config.train.num_samples]
        self.config = RolloutConfig.model_validate(
            {**setup.config.rollout.model_dump(), "num_prompts": len(self.prompts), "group_size": 1}
        )
        reference = sample(setup.learner.reference, self.prompts, self.config, self._generator())
        self.reference = {
            "responses": reference.responses,
            "scores": setup.reward.score(reference.prompts, reference.responses),
        }

    def _generator(self) -> torch.Generator:
        return seeded(self.setup.config.train.seed, "samples")

    def due(self, step: int) -> bool:
        train = self.setup.config.train
        return step % train.sample_every == 0 or step in (1, train.steps)

    def draw(self, step: int) -> tuple[dict[str, Any], ...]:
        setup = self.setup
        experience = collect(
            setup.learner,
            self.prompts,
            self.config,
            (setup.reward, setup.monitors),
            self._generator(),
        )
        return sample_lines(step, experience, setup.learner.policy, self.reference)
