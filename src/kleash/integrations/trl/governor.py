"""GRPO and RLOO under control: each rollout chooses its β, and its update is judged before it counts."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kleash import control, guard
from kleash.control import ControlConfig
from kleash.errors import KleashError, LimitError
from kleash.guard import Evidence, GuardConfig
from kleash.integrations.trl.attached import (
    Held,
    Models,
    evaluating,
    give_back,
    hold,
    learner_of,
)
from kleash.integrations.trl.directory import card_of, digests_of, open_directory, told
from kleash.integrations.trl.followed import follow
from kleash.integrations.trl.rollouts import (
    Ids,
    Pace,
    Read,
    moments,
    read,
    read_metrics,
    rollout_of,
)
from kleash.integrations.trl.supported import Method, steps_a_rollout
from kleash.ledger import UpdateEntry
from kleash.records import KLReading, StepRecord, UpdateFacts, Verdict
from kleash.rollout.config import RolloutConfig
from kleash.rollout.seeds import seeded
from kleash.train.directory import Conclusion, Ending, RunDirectory
from kleash.train.evaluate import fresh_drift
from kleash.train.experience import locate_drift, measure_update
from kleash.train.learner import Learner
from kleash.train.loop import metrics_line
from kleash.train.metrics import Metrics, guard_metrics, update_metrics

BREAKDOWN_EVERY = 10
"""Steps between the lines of drift.jsonl."""
Shown = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a leash is to hold, and where it writes."""

    rl: ControlConfig
    guard: GuardConfig
    run: Path
    rollback_every: int | None
    """Steps between the policies that can be gone back to; None: none is kept."""


@dataclass(kw_only=True, slots=True)
class Step:
    """One rollout whose update is under way."""

    number: int
    """1-based."""
    found: Read
    control: control.State
    before: Held
    prompts: Sequence[Any]
    norms: list[float] = field(default_factory=list[float])
    """Of the gradients so far, before clipping."""
    made: int = 0
    """Optimiser steps so far."""
    rate: float = 0.0


class Governor:
    """Between TRL's rollouts and its optimiser. `sampled`, then `optimised` as often as TRL steps, then again.

    Args:
        trainer: TRL's.
        method: which of its trainers that is.
        models: policy and reference.
        terms: what is held.
    """

    def __init__(self, trainer: Any, method: Method, models: Models, terms: Terms) -> None:
        self.trainer, self.method, self.models, self.terms = trainer, method, models, terms
        self.control = control.init(terms.rl)
        self.guard = guard.GuardState()
        self.number, self.applied = 0, True
        self.open: Step | None = None
        self.last: Step | None = None
        self.good: Held | None = None
        """Weights and moments that a rollback goes back to."""
        self.halt: LimitError | None = None
        self.is_open = False
        self.learner: Learner
        self.directory: RunDirectory
        self.pace: Pace

    def begin(self) -> None:
        """Opens the run directory, once TRL has its optimiser and knows how many steps it will make."""
        self.learner = learner_of(self.trainer, self.models)
        self.pace = Pace(moments(self.learner.optimizer), steps_a_rollout(self.trainer.args))
        config = self._config()
        self.guard = guard.start(self.terms.guard, config["train"]["steps"])
        plan = {"guard": config["guard"], "rl": config["rl"], "canary": None}
        digests = digests_of(self.models, self.trainer.train_dataset)
        self.directory = open_directory(self.terms.run, config, digests, plan, self._conclude)
        self.is_open = True

    def sampled(
        self, prompts: Sequence[Any], prompt_ids: Ids, response_ids: Ids, scores: Tensor
    ) -> None:
        """Meters a rollout, chooses its β and announces its update. TRL's β is that one from here on.

        Args:
            prompts: as the dataset has them.
            prompt_ids: B rows, without padding.
            response_ids: B rows, without padding.
            scores: [B, F], of each reward function.
        """
        found = read(
            self.learner,
            rollout_of(self.learner.policy, prompt_ids, response_ids),
            follow(scores, self.trainer, self.method),
            temperature=self.trainer.temperature,
            micro_batch_size=self._micro_batch,
            pace=self.pace,
            applied=self.applied,
        )
        state = control.update(self.control, self._seen(found), found.signals)
        self.number += 1
        self.trainer.beta = state.kl_coef
        intent = {
            "step": self.number,
            "rollout_sha256": found.experience.rollout.sha256(),
            "kl_coef": state.kl_coef,
        }
        self.directory.ledger.append("update.intent", intent)
        self.open = Step(
            number=self.number,
            found=found,
            control=state,
            before=hold(self.learner),
            prompts=prompts,
        )

    def clipped(self, norm: float) -> None:
        """Notes a gradient's norm, as it was before clipping."""
        if self.open is not None:
            self.open.norms.append(norm)

    def optimised(self) -> Shown | None:
        """Notes that TRL has stepped; judges the update where that was its last step.

        Returns:
            Figures for TRL's log; None while the update is under way.
        """
        step = self.open
        if step is None:
            return None
        step.made += 1
        step.rate = float(self.learner.optimizer.param_groups[0]["lr"])
        return self.settle() if step.made == self.pace.steps else None

    def settle(self) -> Shown | None:
        """Judges the update under way, records it, and undoes it where it is refused. None where there is none."""
        step, self.open = self.open, None
        if step is None or not step.made:
            return None
        kept = False
        try:
            facts = self._facts(step)
            evidence = Evidence(kl=step.found.readings.response, facts=facts)
            decision = guard.decide(
                self.terms.guard,
                self.guard,
                step.number,
                evidence,
                guard.observed(evidence, step.found.signals, None),
                self.terms.rollback_every,
            )
            metrics = self._metrics(step, facts, decision)
            self.directory.ledger.append(
                "update", self._entry(step, facts, decision, metrics).to_json()
            )
            kept = decision.verdict.keeps
        finally:
            if not kept:  # also where it could not be judged, or not be recorded
                give_back(self.learner, step.before.copy())
        self._act(step, decision)
        self._write(step, decision.verdict, metrics)
        return shown(step, decision.verdict, metrics)

    def close(self, error: BaseException | None) -> None:
        """Ends the run: `final/` is written, and the ledger's ending with why it ended."""
        if self.open is not None:  # an update that was not finished is not one
            give_back(self.learner, self.open.before)
            self.open = None
        self.is_open = False
        error = error or self.halt
        self.directory.__exit__(None if error is None else type(error), error, None)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.terms.run

    @property
    def _micro_batch(self) -> int:
        return int(self.trainer.args.per_device_train_batch_size)

    def _seen(self, found: Read) -> KLReading:
        readings = found.readings
        return readings.response if self.terms.rl.kl_unit == "response" else readings.token

    def _facts(self, step: Step) -> UpdateFacts:
        """What there is to know of an update before it is judged."""
        norms = step.norms
        finite = all(math.isfinite(norm) for norm in norms) and self.learner.is_finite()
        facts = UpdateFacts(
            finite=finite,
            kl_new_old=None,
            grad_norm=sum(norms) / len(norms) if norms else None,
        )
        if not finite:
            return facts
        with evaluating(self.learner):
            moved = measure_update(
                self.learner,
                step.found.experience,
                temperature=self.trainer.temperature,
                micro_batch_size=self._micro_batch,
                from_reference=self.terms.guard.max_kl is not None,
            )
        return replace(
            facts,
            kl_new_old=moved.reading,
            tails=moved.tails,
            entropy=moved.entropy,
            kl_proposed=moved.from_reference,
        )

    def _metrics(self, step: Step, facts: UpdateFacts, decision: guard.Decision) -> Metrics:
        rl, unit = self.terms.rl, step.found.followed.unit
        return {
            "step": step.number,
            **read_metrics(step.found),
            **update_metrics(facts),
            **guard_metrics(decision),
            "kl_coef": step.control.kl_coef,
            "kl_coef_in_reward": None if unit is None else step.control.kl_coef * unit,
            "kl_target": None if rl.kl_target is None else rl.target_at(step.number),
            "learning_rate": step.rate,
            "grad_norm": facts.grad_norm,
            "accepted": int(decision.verdict.keeps),
        }

    def _entry(
        self, step: Step, facts: UpdateFacts, decision: guard.Decision, metrics: Metrics
    ) -> UpdateEntry:
        found, seen = step.found, self._seen(step.found)
        kl = found.readings.response
        return UpdateEntry(
            step=step.number,
            kl=kl,
            kl_control=None if seen is kl else seen,
            signals=found.signals,
            kl_coef=step.control.kl_coef,
            facts=facts,
            verdict=decision.verdict,
            guard=decision.state.to_json(),
            control=step.control.to_json(),
            rollout_sha256=found.experience.rollout.sha256(),
            metrics_sha256=hashlib.sha256(metrics_line(metrics)).hexdigest(),
        )

    def _act(self, step: Step, decision: guard.Decision) -> None:
        """Takes the run one step further, by what became of its update."""
        verdict = decision.verdict
        if decision.state.good == step.number - 1 and decision.state.good != self.guard.good:
            self.good = step.before  # what this step began from was found within its limits
        if verdict.action == "rollback":
            assert self.good is not None, "it goes back to one that it found good"
            give_back(self.learner, self.good.copy())
        if verdict.action == "halt":
            why = "; ".join((*verdict.reasons, *verdict.alarms))
            self.halt = LimitError(
                f"training halted at step {step.number}: {why}",
                expected="a run within the limits and alarms of the leash",
                got=f"KL {step.found.readings.response}; the policy before that update is in place",
                do="begin another with a smaller target or learning rate, or wider limits",
            )
        self.guard, self.applied, self.last = decision.state, verdict.keeps, step
        self.control = control.raised(step.control, decision.raise_by)

    def _write(self, step: Step, verdict: Verdict, metrics: Metrics) -> None:
        found, is_due = step.found, step.number % BREAKDOWN_EVERY in (0, 1)
        experience = found.experience
        drift = (
            locate_drift(self.learner.policy, experience.rollout, experience.metered)
            if is_due
            else None
        )
        self.directory.write(
            StepRecord(
                step=step.number,
                kl=found.readings.response,
                kl_coef=step.control.kl_coef,
                note=step.control.note,
                verdict=verdict,
                metrics=metrics,
                breakdown=None if drift is None else {"step": step.number, **drift},
            )
        )

    def _conclude(self, ending: Ending) -> Conclusion:
        drift = self._final_drift() if ending.measured else None
        card = card_of(type(self.trainer).__name__, self.models, ending, drift)
        return Conclusion(self.models.policy, card, drift)

    def _final_drift(self) -> KLReading | None:
        """Of the policy as it stands, on fresh responses to the last rollout's prompts.

        None where these are conversations: which tokens TRL makes of them is its own affair.
        """
        if self.last is None or not all(isinstance(prompt, str) for prompt in self.last.prompts):
            return None
        rollout, args = self._config()["rollout"], self.trainer.args
        try:
            with evaluating(self.learner):
                return fresh_drift(
                    self.learner,
                    list(dict.fromkeys(self.last.prompts)),
                    RolloutConfig.model_validate(rollout),
                    seeded(args.seed, "final drift"),
                    micro_batch_size=self._micro_batch,
                )
        except KleashError:  # a prompt that TRL cut, and that is too long whole
            return None

    def _config(self) -> dict[str, Any]:
        """All that β and verdicts can be made again from, by the names that `kleash train` has for it."""
        args, size = self.trainer.args, self.trainer.num_generations
        responses = args.per_device_train_batch_size * args.steps_per_generation
        return {
            "trl": told(self.trainer),
            "model": {
                "policy": self.models.policy.name,
                "reference": self.models.reference.name,
                "refresh_every": None,
            },
            "rollout": {
                "num_prompts": max(1, responses // size),
                "group_size": size,
                "max_new_tokens": args.max_completion_length,
                "temperature": self.trainer.temperature,
            },
            "algorithm": {
                "name": f"{self.method}_by_trl",
                "num_epochs": args.num_iterations,
                "num_minibatches": args.steps_per_generation // args.gradient_accumulation_steps,
            },
            "optimizer": {"beta1": self.pace.beta1},
            "rl": self.terms.rl.model_dump(mode="json"),
            "guard": self.terms.guard.model_dump(mode="json"),
            "train": {
                "steps": math.ceil(self.trainer.state.max_steps / self.pace.steps),
                "checkpoint_every": self.terms.rollback_every,
                "seed": args.seed,
            },
        }


VERDICTS = ("accept", "shrink", "reject", "rollback", "halt")
"""`kleash/verdict` is a place in this: trackers take numbers alone."""


def shown(step: Step, verdict: Verdict, metrics: Metrics) -> Shown:
    """Figures for TRL's log; what was not measured is left out."""
    kl = step.found.readings.response
    figures = {
        "kl": kl.value,
        "kl_low": kl.low,
        "kl_high": kl.high,
        "kl_coef": step.control.kl_coef,
        "kl_coef_in_reward": metrics["kl_coef_in_reward"],
        "kl_target": metrics["kl_target"],
        "kl_new_old": metrics["kl_new_old_per_token"],
        "verdict": float(VERDICTS.index(verdict.action)),
    }
    return {f"kleash/{name}": value for name, value in figures.items() if value is not None}
