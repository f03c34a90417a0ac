"""The loop, on one screen. It yields records; whoever wants to watch iterates them."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Generator

from kleash import control
from kleash.errors import LimitError
from kleash.functional.losses import adapted_penalty
from kleash.guard import judge
from kleash.ledger import Ledger, UpdateEntry, encode
from kleash.records import KLReading, StepRecord, UpdateFacts, refreshed_share
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.train.algorithms import ALGORITHMS, Targets
from kleash.train.config import RunConfig, TrainConfig
from kleash.train.data import Shuffled
from kleash.train.evaluate import Samples, experience_of, fresh_drift
from kleash.train.experience import Experience
from kleash.train.metrics import Metrics, Settings, step_metrics
from kleash.train.progress import Progress
from kleash.train.setup import Setup, seeded
from kleash.train.signals import Measured, measure, out_of_reach
from kleash.train.update import Proposal, propose_update


def run_loop(
    setup: Setup, ledger: Ledger, progress: Progress | None = None
) -> Iterator[StepRecord]:
    """Samples, scores, meters, chooses β, proposes, judges, records and applies, `train.steps` times.

    The policy about to be updated is the one whose drift chooses the β of its update (ADR 0007).

    Each record is durable in the ledger before its update is kept, and yielded after; what was not accepted is undone.

    Args:
        setup: of the run.
        ledger: takes an entry a step.
        progress: a run on its way; None: it begins.

    Raises:
        LimitError: the guard halted the run, or refused every update; all records have been yielded.
    """
    progress = progress or Progress(setup)
    config, learner = setup.config, setup.learner
    algorithm, samples = ALGORITHMS[config.algorithm.name], _samples(progress)
    for step in range(progress.mark.step + 1, config.train.steps + 1):
        started, before = time.perf_counter(), progress.mark
        experience = _read(setup, progress.next_rollout())
        refreshed = _refreshed(config, step - 1)
        measured = measure(learner, experience, config, applied=before.kept, refreshed=refreshed)
        state = control.update(before.control, measured.seen, measured.signals)
        remark = out_of_reach(measured, config.rl.kl_target) if step == 1 else ""
        collected = time.perf_counter()
        rate = _set_learning_rate(setup, step)
        targets = algorithm.targets(
            experience, state.kl_coef, config.algorithm, config.penalty.resolved
        )._replace(step_penalty=before.step_coef)
        kept = False
        proposal = propose_update(
            learner, algorithm, experience, targets, config, progress.generator, setup.pretraining
        )
        try:
            decision = _decide(setup, step, measured, targets, proposal, state, rate)
            ledger.append("update", decision.entry.to_json())
            kept = decision.entry.verdict.action == "accept"
        finally:
            if not kept:
                learner.restore(proposal.snapshot)
        _apply(progress, decision.entry, proposal, state)
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
        if decision.entry.verdict.action == "halt":
            reason = decision.entry.verdict.reasons[0]
            raise _breached(progress, f"step {step}: {reason}", decision.entry.kl)
    _check_end(progress)


def _apply(
    progress: Progress, entry: UpdateEntry, proposal: Proposal, state: control.State
) -> None:
    """Takes the run one step further, by what became of its update."""
    setup, tally = progress.setup, progress.mark.tally
    config, kept = setup.config, entry.verdict.action == "accept"
    if kept:
        tally = replace(tally, accepted=tally.accepted + 1)
        if config.guard.max_kl is not None:
            progress.under = proposal.snapshot.parameters
    else:
        reason = entry.verdict.reasons[0]
        tally = replace(tally, refused=tally.refused + 1, last_refusal=reason)
    if share := _refreshed(config, entry.step):
        setup.learner.refresh(share, entry.step)
    step_coef = _adapted(progress.mark.step_coef, proposal.facts, config)
    progress.advance(state=state, step_coef=step_coef, kept=kept, tally=tally)


def _refreshed(config: RunConfig, steps: int) -> float:
    """How much of the way the reference comes to the policy after so many steps."""
    return refreshed_share(config.model.refresh_every, config.model.refresh_share, steps)


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


def _breached(progress: Progress, where: str, kl: KLReading) -> LimitError:
    """Goes back to the last policy under the limit, and says so."""
    under = progress.under
    if under is not None:
        progress.setup.learner.assign(under)
    saved = "there is no policy before it" if under is None else "the policy before it is saved"
    return LimitError(
        f"training halted at {where}",
        expected="a KL under guard.max_kl",
        got=f"{kl}; {saved}",
        do="raise rl.kl_coef, lower rl.kl_target or optimizer.learning_rate, or raise guard.max_kl",
    )


def _check_end(progress: Progress) -> None:
    """What a run may not end as: without having learnt anything, or over `guard.max_kl`.

    Raises:
        LimitError: it would.
    """
    tally, max_kl = progress.mark.tally, progress.setup.config.guard.max_kl
    if not tally.accepted:
        raise LimitError(
            "the guard refused every update: nothing was learnt",
            expected="updates that are finite numbers, within the limits",
            got=f"{tally.refused} refused, the last because {tally.last_refusal}",
            do="look at the reward's scale, rollout.temperature, optimizer.learning_rate and [guard]",
        )
    if max_kl is None:
        return
    # What the last update made, as no step after it will.
    kl = final_drift(progress.setup)
    if not kl.value <= max_kl:
        reason = f"{kl.name} is {kl.value:.6g} nats, over the limit max_kl = {max_kl:.6g}"
        raise _breached(progress, f"the end: {reason}", kl)


def final_drift(setup: Setup) -> KLReading:
    """KL(π‖π_ref) of the policy as it stands, on a batch of prompts: the same each time it is asked for."""
    train, rollout = setup.config.train, setup.config.rollout
    prompts, generator = held_prompts(setup.prompts, rollout, train.seed)
    return fresh_drift(
        setup.learner, prompts, rollout, generator, micro_batch_size=train.micro_batch_size
    )


def held_prompts(
    prompts: list[str], config: RolloutConfig, seed: int
) -> tuple[list[str], Generator]:
    """The prompts by which what runs make of one policy is compared, and the random numbers to answer them with."""
    generator = seeded(seed, "final drift")
    return next(Shuffled(prompts, config.num_prompts, generator)), generator


def metrics_line(metrics: Any) -> bytes:
    """A step's line of metrics.jsonl, LF included: the bytes whose hash the ledger holds."""
    return encode(metrics) + b"\n"


def _set_learning_rate(setup: Setup, step: int) -> float:
    rate = setup.config.optimizer.rate_at(step, setup.config.train.steps)
    for group in setup.learner.optimizer.param_groups:
        group["lr"] = rate
    return rate


def _samples(progress: Progress) -> Samples:
    setup, config = progress.setup, progress.setup.config
    samples = Samples(
        setup.learner,
        setup.prompts[: config.train.num_samples],
        config.rollout,
        (setup.reward, setup.monitors),
        lambda: seeded(config.train.seed, "samples"),
        progress.answers,
    )
    progress.answers = samples.reference
    return samples


def _is_due(train: TrainConfig, step: int) -> bool:
    return step % train.sample_every == 0 or step in (1, train.steps)
