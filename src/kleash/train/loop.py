"""The loop, on one screen. It yields records; whoever wants to watch iterates them."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypedDict

from torch import Generator

from kleash import control, guard
from kleash.errors import LimitError
from kleash.functional.losses import adapted_penalty
from kleash.guard import Breach, Evidence, GuardState, concordance, observed
from kleash.ledger import UpdateEntry, encode
from kleash.records import KLReading, StepRecord, UpdateFacts, refreshed_share
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.seeds import seeded
from kleash.train.algorithms import ALGORITHMS, Targets
from kleash.train.config import RunConfig, TrainConfig
from kleash.train.data import Shuffled
from kleash.train.evaluate import Samples, fresh_drift
from kleash.train.experience import Experience, meter
from kleash.train.metrics import Metrics, Settings, step_metrics
from kleash.train.progress import Mark, Progress
from kleash.train.scoring import score
from kleash.train.setup import Setup
from kleash.train.signals import Measured, measure, out_of_reach
from kleash.train.update import Beside, Proposal, propose_update

GoBack = Callable[[int], None]
"""Gives the learner the weights and the optimiser of the checkpoint after so many steps."""


class Record(Protocol):
    """What takes the entries of a run: a ledger, or what several processes have of one."""

    def append(self, type: str, body: Mapping[str, Any]) -> object:
        """Takes an entry; it is on the disk when this returns."""
        ...


def run_loop(
    setup: Setup,
    ledger: Record,
    progress: Progress | None = None,
    go_back: GoBack | None = None,
) -> Iterator[StepRecord]:
    """Samples, scores, meters, chooses β, proposes, judges, records and applies, `train.steps` times.

    The policy about to be updated is the one whose drift chooses the β of its update (ADR 0007).

    Each record is durable in the ledger before its update is kept, and yielded after; what was not accepted is undone.

    Args:
        setup: of the run.
        ledger: takes an entry a step.
        progress: a run on its way, with this setup; None: it begins.
        go_back: to a checkpoint, where there are any.

    Raises:
        LimitError: the guard halted the run, or refused every update; all records have been yielded.
    """
    learner, progress = setup.learner, progress or Progress(setup)
    algorithm, samples = ALGORITHMS[setup.config.algorithm.name], _samples(progress)
    for step in range(progress.mark.step + 1, setup.config.train.steps + 1):
        setup = progress.govern(step)
        config = setup.config
        started, before = time.perf_counter(), progress.mark
        experience = _read(setup, progress.next_rollout())
        measured = _measure(setup, experience, before)
        state = control.update(before.control, measured.seen, measured.signals)
        collected, rate = time.perf_counter(), _set_learning_rate(setup, step)
        targets = algorithm.targets(
            experience, state.kl_coef, config.algorithm, config.penalty.resolved
        )._replace(step_penalty=before.step_coef)
        kept, held = False, progress.hold()
        ledger.append("update.intent", _intent(step, experience, state))
        given = learner, algorithm, experience, targets, config, progress.generator
        proposal = propose_update(*given, _beside(setup, before.guard, measured))
        try:
            decision = _decide(progress, measured, targets, proposal, state, rate, go_back)
            ledger.append("update", decision.entry.to_json())
            kept = decision.entry.verdict.keeps
        finally:
            if not kept:
                learner.restore(proposal.snapshot)
                progress.rewind(held)
        _apply(progress, decision, proposal, state, go_back)
        yield StepRecord(
            step=step,
            kl=decision.entry.kl,
            kl_coef=state.kl_coef,
            note=_note(config, step, measured, state),
            verdict=decision.entry.verdict,
            metrics=decision.metrics,
            seconds={"collect": collected - started, "update": time.perf_counter() - collected},
            **_shown(setup, samples, experience, step),
        )
        _halt_if_told(progress, decision.entry)
    _check_end(progress)


def _measure(setup: Setup, experience: Experience, before: Mark) -> Measured:
    """Reads a rollout of the policy that is about to be updated."""
    config = setup.config
    refreshed = _refreshed(config, before.step)
    return measure(setup.learner, experience, config, applied=before.kept, refreshed=refreshed)


def _note(config: RunConfig, step: int, measured: Measured, state: control.State) -> str:
    """What there is to say of a step."""
    remark = out_of_reach(measured, config.rl.kl_target) if step == 1 else ""
    return "; ".join(filter(None, (remark, state.note)))


class _Shown(TypedDict):
    samples: tuple[Mapping[str, Any], ...]
    breakdown: Mapping[str, Any] | None


def _shown(setup: Setup, samples: Samples, experience: Experience, step: int) -> _Shown:
    """What is looked at now and then: the policy's answers, and where its KL comes from."""
    if not _is_due(setup.config.train, step):
        return {"samples": (), "breakdown": None}
    found = experience.breakdown(setup.learner.policy)
    return {"samples": samples.draw(step), "breakdown": {"step": step, **found}}


def _halt_if_told(progress: Progress, entry: UpdateEntry) -> None:
    """Raises LimitError where the guard's verdict is to halt, and its limits were not overridden then."""
    if entry.verdict.action == "halt" and not progress.plan.changes_after(entry.step):
        why = "; ".join((*entry.verdict.reasons, *entry.verdict.alarms))
        raise _breached(progress, f"step {entry.step}: {why}", entry.kl)


def _apply(
    progress: Progress,
    decision: "_Decision",
    proposal: Proposal,
    state: control.State,
    go_back: GoBack | None,
) -> None:
    """Takes the run one step further, by what became of its update."""
    setup, tally, verdict = progress.setup, progress.mark.tally, decision.entry.verdict
    config, after = setup.config, decision.guard.state
    if verdict.keeps:
        tally = replace(tally, accepted=tally.accepted + 1)
        spare = proposal.snapshot
        if config.guard.max_kl is not None:
            progress.under, free = spare.parameters, progress.under
            spare = replace(spare, parameters=free or [])
        setup.learner.spare = spare
    else:
        reason = (*verdict.reasons, *verdict.alarms)[0]
        tally = replace(tally, refused=tally.refused + 1, last_refusal=reason)
    if verdict.action == "rollback":
        assert go_back is not None, "there are no checkpoints, so the guard knows of none"
        assert after.good is not None, "it goes back to one that it found good"
        go_back(after.good)
    if verdict.keeps:
        progress.settle_canary(proposal.facts.canary)
    elif verdict.action == "rollback":
        progress.settle_canary()
    if share := _refreshed(config, decision.entry.step):
        setup.learner.refresh(share, decision.entry.step)
    progress.advance(
        state=control.raised(state, decision.guard.raise_by),
        guard=after,
        step_coef=_adapted(progress.mark.step_coef, proposal.facts, config),
        kept=verdict.keeps,
        tally=tally,
    )


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
    guard: guard.Decision
    metrics: Metrics


def _evidence(config: RunConfig, measured: Measured, facts: UpdateFacts) -> Evidence:
    """What the guard is shown of a step."""
    readings = measured.readings
    return Evidence(
        kl=readings.response,
        facts=facts,
        origin=readings.origin if config.model.refresh_every is not None else None,
        sampler=readings.sampler if config.guard.max_mismatch is not None else None,
    )


def _beside(setup: Setup, state: GuardState, measured: Measured) -> Beside:
    """What an update takes beside its rollout; what speaks against it is told by what is measured of it."""
    config = setup.config

    def check(facts: UpdateFacts) -> Breach:
        return guard.check(config.guard, state, _evidence(config, measured, facts))

    return Beside(setup.pretraining, setup.canary, check, setup.world)


def _decide(
    progress: Progress,
    measured: Measured,
    targets: Targets,
    proposal: Proposal,
    state: control.State,
    learning_rate: float,
    go_back: GoBack | None,
) -> _Decision:
    """The guard's verdict, and the record of it with all that it and β were chosen from."""
    config, step, seen = progress.setup.config, progress.mark.step + 1, measured.seen
    evidence = _evidence(config, measured, proposal.facts)
    agreement = _concordance(config, measured.experience)
    decision = guard.decide(
        config.guard,
        progress.mark.guard,
        step,
        evidence,
        observed(evidence, measured.signals, agreement),
        None if go_back is None else config.train.checkpoint_every,
    )
    target = None if config.rl.kl_target is None else config.rl.target_at(step)
    settings = Settings(state.kl_coef, target, learning_rate)
    metrics = step_metrics(step, measured, targets, proposal, decision, settings)
    entry = UpdateEntry(
        step=step,
        kl=evidence.kl,
        kl_control=None if seen is evidence.kl else seen,
        kl_origin=evidence.origin,
        kl_sampler=evidence.sampler,
        concordance=agreement,
        signals=measured.signals,
        kl_coef=state.kl_coef,
        facts=proposal.facts,
        verdict=decision.verdict,
        guard=decision.state.to_json(),
        control=state.to_json(),
        rollout_sha256=measured.experience.rollout.sha256(),
        metrics_sha256=hashlib.sha256(metrics_line(metrics)).hexdigest(),
    )
    return _Decision(entry, decision, metrics)


def _concordance(config: RunConfig, experience: Experience) -> float | None:
    """How far the first monitor agrees with the reward; None where no alarm asks, or there is nothing to agree on."""
    if config.guard.alarms.concordance is None:
        return None
    held_out = experience.monitor[config.reward.monitor[0]]
    groups: list[int] = experience.rollout.prompt_index.tolist()
    return concordance(experience.scores.tolist(), held_out.tolist(), groups)


def _intent(step: int, experience: Experience, state: control.State) -> dict[str, Any]:
    """What the next update is to be, entered before it is made."""
    rollout = experience.rollout.sha256()
    return {"step": step, "rollout_sha256": rollout, "kl_coef": state.kl_coef}


def _read(setup: Setup, rollout: Rollout) -> Experience:
    """A rollout scored, and metered by the policy as it now is; each process of several meters its own rows."""
    config = setup.config
    scored = score(rollout, setup.reward, setup.monitors, config.reward)
    metered = meter(
        setup.learner,
        rollout,
        temperature=config.rollout.temperature,
        micro_batch_size=config.train.micro_batch_size,
        keep_graph=config.algorithm.update == "gradient" and config.algorithm.num_minibatches == 1,
        world=setup.world,
    )
    return Experience(rollout=rollout, metered=metered, **scored._asdict())


def _breached(progress: Progress, where: str, kl: KLReading) -> LimitError:
    """Goes back to the last policy under the limit, and says so."""
    under = progress.under
    if under is not None:
        progress.setup.learner.assign(under)
    saved = "there is no policy before it" if under is None else "the policy before it is saved"
    return LimitError(
        f"training halted at {where}",
        expected="a run within the limits, budget and alarms of [guard]",
        got=f"KL {kl}; {saved}",
        do="begin another with a larger rl.kl_coef or smaller rl.kl_target or optimizer.learning_rate, "
        "or kleash ledger override the limit and go on with --resume",
    )


def _check_end(progress: Progress) -> None:
    """What a run may not end as: without having learnt anything, or over `guard.max_kl`.

    Raises:
        LimitError: it would.
    """
    tally, steps = progress.mark.tally, progress.mark.step
    setup = progress.govern(steps + progress.plan.changes_after(steps))
    max_kl = setup.config.guard.max_kl
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
    kl = final_drift(setup)
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
