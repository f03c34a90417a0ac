"""The loop, on one screen. It yields records; whoever wants to watch iterates them."""

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from kleash import control
from kleash.errors import LimitError
from kleash.functional.losses import adapted_penalty
from kleash.guard import judge
from kleash.ledger import Ledger, UpdateEntry, encode
from kleash.records import KLReading, StepRecord, UpdateFacts, refreshed_share
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.train.algorithms import ALGORITHMS, Targets
from kleash.train.config import RunConfig, TrainConfig
from kleash.train.data import prompt_batches
from kleash.train.evaluate import Samples, experience_of, fresh_drift
from kleash.train.experience import Experience
from kleash.train.learner import Learner, Snapshot
from kleash.train.metrics import Metrics, Settings, step_metrics
from kleash.train.ptx import Pretraining
from kleash.train.signals import Measured, measure, out_of_reach
from kleash.train.update import Proposal, propose_update


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """All that the loop needs, loaded and checked."""

    config: RunConfig
    learner: Learner
    prompts: list[str]
    reward: Scorer
    monitors: Sequence[Scorer]
    pretraining: Pretraining | None = None
    """Texts that the policy is not to forget."""


def run_loop(setup: Setup, ledger: Ledger) -> Iterator[StepRecord]:
    """Samples, scores, meters, chooses β, proposes, judges, records and applies, `train.steps` times.

    The policy about to be updated is the one whose drift chooses the β of its update (ADR 0007).

    Each record is durable in the ledger before the update it describes is kept, and yielded after. Whatever happens on
    the way to that, an update that was not accepted is undone.

    Raises:
        LimitError: the guard halted the run, or refused every update; all records have been yielded.
    """
    config, learner = setup.config, setup.learner
    algorithm = ALGORITHMS[config.algorithm.name]
    generator = seeded(config.train.seed, "training")
    rollouts = sampled_ahead(setup, generator)
    state, ending, samples = control.init(config.rl), _Ending(setup), _samples(setup)
    kept, step_coef = True, config.algorithm.step_penalty
    for step in range(1, config.train.steps + 1):
        started = time.perf_counter()
        refreshed = _refresh(setup, step - 1)
        experience = _read(setup, next(rollouts))
        measured = measure(learner, experience, config, applied=kept, refreshed=refreshed)
        state = control.update(state, measured.seen, measured.signals)
        remark = out_of_reach(measured, config.rl.kl_target) if step == 1 else ""
        collected = time.perf_counter()
        rate = _set_learning_rate(setup, step)
        targets = algorithm.targets(
            experience, state.kl_coef, config.algorithm, config.penalty.resolved
        )._replace(step_penalty=step_coef)
        proposal = propose_update(
            learner, algorithm, experience, targets, config, generator, setup.pretraining
        )
        step_coef = _adapted(step_coef, proposal.facts, config)
        kept = False
        try:
            decision = _decide(setup, step, measured, targets, proposal, state, rate)
            ledger.append("update", decision.entry.to_json())
            kept = decision.entry.verdict.action == "accept"
        finally:
            if not kept:
                learner.restore(proposal.snapshot)
        ending.note(decision.entry, proposal.snapshot)
        updated, due = time.perf_counter(), _is_due(config.train, step)
        yield StepRecord(
            step=step,
            kl=decision.entry.kl,
            kl_coef=state.kl_coef,
            note="; ".join(filter(None, (remark, state.note))),
            verdict=decision.entry.verdict,
            metrics=decision.metrics,
            seconds={"collect": collected - started, "update": updated - collected},
            samples=samples.draw(step) if due else (),
            breakdown={"step": step, **experience.breakdown(learner.policy)} if due else None,
        )
        ending.halt_if_told(decision.entry)
    ending.check()


def _refresh(setup: Setup, steps: int) -> float:
    """How much of the way the reference came to the policy after so many steps."""
    model = setup.config.model
    share = refreshed_share(model.refresh_every, model.refresh_share, steps)
    if share:
        setup.learner.refresh(share, steps)
    return share


def _adapted(step_coef: float, facts: UpdateFacts, config: RunConfig) -> float:
    """The weight of KL(old‖new) for the next update."""
    kl = None if facts.kl_new_old is None else facts.kl_new_old.value
    return adapted_penalty(step_coef, kl, config.algorithm.step_kl)


class _Decision(NamedTuple):
    """What became of a proposal, as the ledger will have it."""

    entry: UpdateEntry
    metrics: Metrics


def _decide(
    setup: Setup,
    step: int,
    measured: Measured,
    targets: Targets,
    proposal: Proposal,
    state: control.State,
    learning_rate: float,
) -> _Decision:
    """The guard's verdict, and the record of it with all that it and β were chosen from."""
    config, kl, seen = setup.config, measured.readings.response, measured.seen
    origin = measured.readings.origin if config.model.refresh_every is not None else None
    verdict = judge(config.guard, kl, proposal.facts, origin)
    target = None if config.rl.kl_target is None else config.rl.target_at(step)
    settings = Settings(state.kl_coef, target, learning_rate)
    metrics = step_metrics(step, measured, targets, proposal, verdict, settings)
    entry = UpdateEntry(
        step=step,
        kl=kl,
        kl_control=None if seen is kl else seen,
        kl_origin=origin,
        signals=measured.signals,
        kl_coef=state.kl_coef,
        facts=proposal.facts,
        verdict=verdict,
        control=state.to_json(),
        rollout_sha256=measured.experience.rollout.sha256(),
        metrics_sha256=hashlib.sha256(metrics_line(metrics)).hexdigest(),
    )
    return _Decision(entry, metrics)


def sampled_ahead(setup: Setup, generator: torch.Generator) -> Iterator[Rollout]:
    """Endless rollouts, each of the policy as it is when it is sampled, `rollout.staleness` rollouts before its turn.

    A generator: it samples when it is asked for the next.
    """
    config = setup.config.rollout
    waiting: deque[Rollout] = deque()
    for prompts in prompt_batches(setup.prompts, config.num_prompts, generator):
        waiting.append(sample(setup.learner.policy, prompts, config, generator))
        if len(waiting) > config.staleness:
            yield waiting.popleft()


def _read(setup: Setup, rollout: Rollout) -> Experience:
    config = setup.config
    return experience_of(
        setup.learner,
        rollout,
        (setup.reward, setup.monitors),
        temperature=config.rollout.temperature,
        missing_eos_penalty=config.reward.missing_eos_penalty,
        micro_batch_size=config.train.micro_batch_size,
    )


class _Ending:
    """What a run may not end as: over `guard.max_kl`, or without having learnt anything."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.max_kl = setup.config.guard.max_kl
        self.under: Snapshot | None = None
        """The last policy that was metered under the limit and then changed."""
        self.accepted = 0
        self.refusals: list[str] = []

    def note(self, entry: UpdateEntry, before: Snapshot) -> None:
        """What became of an update, and the policy as it was before."""
        if entry.verdict.action != "accept":
            self.refusals.append(entry.verdict.reasons[0])
            return
        self.accepted += 1
        if self.max_kl is not None:
            self.under = before

    def halt_if_told(self, entry: UpdateEntry) -> None:
        """Raises LimitError where the guard's verdict is to halt."""
        if entry.verdict.action == "halt":
            raise self._breached(f"step {entry.step}: {entry.verdict.reasons[0]}", entry.kl)

    def check(self) -> None:
        """Meters what the last update made, as no step after it will.

        Raises:
            LimitError: it is over the limit, or no update was ever accepted.
        """
        if not self.accepted:
            raise LimitError(
                "the guard refused every update: nothing was learnt",
                expected="updates that are finite numbers, within the limits",
                got=f"{len(self.refusals)} refused, the last because {self.refusals[-1]}",
                do="look at the reward's scale, rollout.temperature, optimizer.learning_rate and [guard]",
            )
        if self.max_kl is None:
            return
        kl = final_drift(self.setup)
        if not kl.value <= self.max_kl:
            reason = f"{kl.name} is {kl.value:.6g} nats, over the limit max_kl = {self.max_kl:.6g}"
            raise self._breached(f"the end: {reason}", kl)

    def _breached(self, where: str, kl: KLReading) -> LimitError:
        """Goes back to the last policy under the limit, and says so."""
        if self.under is not None:
            self.setup.learner.restore(self.under)
        saved = "the policy before it is saved" if self.under else "there is no policy before it"
        return LimitError(
            f"training halted at {where}",
            expected="a KL under guard.max_kl",
            got=f"{kl}; {saved}",
            do="raise rl.kl_coef, lower rl.kl_target or optimizer.learning_rate, or raise guard.max_kl",
        )


def final_drift(setup: Setup) -> KLReading:
    """KL(π‖π_ref) of the policy as it stands, on a batch of prompts: the same each time it is asked for."""
    train, rollout = setup.config.train, setup.config.rollout
    prompts, generator = held_prompts(setup.prompts, rollout, train.seed)
    return fresh_drift(
        setup.learner, prompts, rollout, generator, micro_batch_size=train.micro_batch_size
    )


def held_prompts(
    prompts: list[str], config: RolloutConfig, seed: int
) -> tuple[list[str], torch.Generator]:
    """The prompts by which what runs make of one policy is compared, and the random numbers to answer them with."""
    generator = seeded(seed, "final drift")
    return next(prompt_batches(prompts, config.num_prompts, generator)), generator


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


def _samples(setup: Setup) -> Samples:
    config = setup.config
    return Samples(
        setup.learner,
        setup.prompts[: config.train.num_samples],
        config.rollout,
        (setup.reward, setup.monitors),
        lambda: seeded(config.train.seed, "samples"),
    )


def _is_due(train: TrainConfig, step: int) -> bool:
    return step % train.sample_every == 0 or step in (1, train.steps)
