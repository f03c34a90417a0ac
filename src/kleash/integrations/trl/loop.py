"""Another trainer's run, metered: the policy is read as loaded, every so many steps, and as it is saved."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from kleash.errors import LimitError
from kleash.guard import judge_policy
from kleash.integrations.trl.config import DPORunConfig, SFTRunConfig
from kleash.integrations.trl.trainers import Optimised, optimisation
from kleash.ledger import Ledger, MeasurementEntry
from kleash.records import KLReading, StepRecord
from kleash.rewards.scorers import Scorer
from kleash.rollout.seeds import seeded
from kleash.train.evaluate import Observed, Samples, fresh_drift, observe
from kleash.train.experience import Readings, locate_drift, read_drift
from kleash.train.learner import Learner, Snapshot
from kleash.train.loop import held_prompts, metrics_line
from kleash.train.metrics import Metrics, drift_metrics, response_metrics

_LATEST = ("learning_rate", "num_tokens")
"""Of what TRL logs, what is stated as at the last step; the rest is a mean over the steps between."""
_NAMES = {"learning_rate": "learning_rate", "grad_norm": "grad_norm"}
"""What means here what it means in every run; the rest is TRL's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """All that a run needs, loaded and checked."""

    config: DPORunConfig | SFTRunConfig
    method: Literal["dpo", "sft"]
    learner: Learner
    trainer: Any
    """TRL's."""
    prompts: list[str]
    scorers: tuple[Scorer | None, Sequence[Scorer]]
    samples: Samples
    digests: dict[str, str]
    note: str
    """What there is to say of the data; empty when nothing."""


def run_loop(setup: Setup, ledger: Ledger) -> Iterator[StepRecord]:
    """Yields the record of each measurement, from the policy as loaded to the one that is saved.

    Each is durable in the ledger before it is yielded, and before the next step is made.

    Raises:
        LimitError: the policy is over `guard.max_kl`, or its KL is no number; its record has been yielded.
    """
    train, learner = setup.config.train, setup.learner
    under: Snapshot | None = None
    since: list[Optimised] = []
    with closing(optimisation(setup.trainer, learner.policy)) as made:
        step, started = 0, time.perf_counter()
        while True:
            if step % train.meter_every == 0 or step == train.steps:
                record = _measured(setup, step, since, time.perf_counter() - started, ledger)
                yield record
                if record.verdict.action == "halt":
                    raise _breached(setup, record, under)
                if setup.config.guard.max_kl is not None:
                    under = learner.snapshot()
                since, started = [], time.perf_counter()
            if step == train.steps:
                return
            step += 1
            since.append(next(made))


def final_drift(setup: Setup) -> KLReading:
    """KL(π‖π_ref) of the policy as it stands, on the prompts and random numbers of `kleash train` with that seed."""
    config = setup.config
    prompts, generator = held_prompts(setup.prompts, config.rollout, config.train.seed)
    setup.learner.policy.model.eval()
    return fresh_drift(
        setup.learner,
        prompts,
        config.rollout,
        generator,
        micro_batch_size=config.train.micro_batch_size,
    )


def _measured(
    setup: Setup, step: int, since: Sequence[Optimised], trained: float, ledger: Ledger
) -> StepRecord:
    """Reads the policy, and records what was read."""
    config, learner, began = setup.config, setup.learner, time.perf_counter()
    learner.policy.model.eval()
    prompts, _ = held_prompts(setup.prompts, config.rollout, config.train.seed)
    observed = observe(
        learner,
        prompts,
        config.rollout,
        setup.scorers,
        seeded(config.train.seed, f"measurement {step}"),
        micro_batch_size=config.train.micro_batch_size,
    )
    readings = read_drift(learner, observed.rollout, observed.metered)
    verdict = judge_policy(config.guard, readings.response)
    metrics = _metrics(step, observed, readings, since)
    entry = MeasurementEntry(
        step=step,
        kl=readings.response,
        verdict=verdict,
        rollout_sha256=observed.rollout.sha256(),
        metrics_sha256=hashlib.sha256(metrics_line(metrics)).hexdigest(),
    )
    ledger.append("measurement", entry.to_json())
    return StepRecord(
        step=step,
        kl=readings.response,
        kl_coef=None,
        note=setup.note if step == 0 else "",
        verdict=verdict,
        metrics=metrics,
        seconds={"train": trained, "meter": time.perf_counter() - began},
        # The policy as loaded says what its reference says.
        samples=setup.samples.draw(step) if step else (),
        breakdown={
            "step": step,
            **locate_drift(learner.policy, observed.rollout, observed.metered),
        },
    )


def _metrics(
    step: int, observed: Observed, readings: Readings, since: Sequence[Optimised]
) -> Metrics:
    scores = observed.scores
    count = 0 if scores is None else len(scores)
    return {
        "step": step,
        "reward_mean": None if scores is None else float(scores.mean()),
        "reward_std": float(scores.std()) if scores is not None and count > 1 else None,
        **{f"monitor/{name}": float(x.mean()) for name, x in observed.monitor.items()},
        **drift_metrics(readings),
        **response_metrics(observed.rollout, observed.metered),
        "response_length": float(observed.rollout.mask.sum(-1).double().mean()),
        **_trl_metrics(since),
    }


def _trl_metrics(since: Sequence[Optimised]) -> Metrics:
    """What TRL logged since the last measurement; nothing before the first step."""
    logged = [made.logs for made in since]
    names = [name for name in (logged[-1] if logged else ()) if name != "epoch"]
    return {
        _NAMES.get(name, f"trl/{name}"): logged[-1][name]
        if name in _LATEST
        else sum(logs[name] for logs in logged) / len(logged)
        for name in names
    }


def _breached(setup: Setup, record: StepRecord, under: Snapshot | None) -> LimitError:
    """Goes back to the last policy under the limit, and says so."""
    if under is not None:
        setup.learner.restore(under)
    saved = "the policy measured before it is saved" if under else "there is no policy before it"
    knob = "raise dpo.beta, " if setup.method == "dpo" else ""
    return LimitError(
        f"training halted at step {record.step}: {record.verdict.reasons[0]}",
        expected="a KL under guard.max_kl",
        got=f"{record.kl}; {saved}",
        do=f"{knob}lower optimizer.learning_rate or train.steps, or raise guard.max_kl",
    )
