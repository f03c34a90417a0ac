"""SFT and DPO watched: every so many steps the policy is asked the same prompts, and its drift is recorded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleash.errors import ConfigError, LimitError
from kleash.guard import GuardConfig, judge_policy
from kleash.integrations.trl.attached import Models, evaluating, learner_of
from kleash.integrations.trl.directory import card_of, digests_of, open_directory, told
from kleash.integrations.trl.supported import Method
from kleash.ledger import MeasurementEntry
from kleash.records import KLReading, StepRecord
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import encode_prompts, sample
from kleash.rollout.seeds import seeded
from kleash.train.directory import Conclusion, Ending, RunDirectory
from kleash.train.evaluate import fresh_drift
from kleash.train.experience import locate_drift, meter, read_drift
from kleash.train.learner import Learner
from kleash.train.loop import metrics_line
from kleash.train.metrics import drift_metrics, response_metrics
from kleash.train.run import sha256_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """What SFT and DPO are asked, and how often.

    Examples:
        >>> Watch(prompts=["the film is"]).every
        10
    """

    prompts: Sequence[str]
    """Texts, as the policy is to be asked them: with a chat template applied where it has one."""
    every: int = 10
    """Optimiser steps between measurements; the policy as it is and the one that is left are always measured."""
    group_size: int = 4
    """Responses to each prompt."""
    max_new_tokens: int = 32
    """Tokens of a response, at most."""
    temperature: float = 1.0


class Watcher:
    """Measures between TRL's steps. It changes no weight, and draws its random numbers elsewhere.

    Args:
        trainer: TRL's.
        method: which of its trainers that is.
        models: policy and reference.
        guard: `max_kl` alone.
        run: the run directory.
        watch: what is asked.

    Raises:
        ConfigError: there is nothing to ask.
        InputError: a prompt is longer than the context.
    """

    def __init__(
        self,
        trainer: Any,
        method: Method,
        models: Models,
        guard: GuardConfig,
        run: Path,
        watch: Watch,
    ) -> None:
        if not watch.prompts or watch.every < 1:
            raise ConfigError(
                "a watch that asks nothing",
                expected="at least one prompt, and every ≥ 1",
                got=f"{len(watch.prompts)} prompts, every = {watch.every}",
            )
        encode_prompts(models.policy, watch.prompts, watch.max_new_tokens)
        self.trainer, self.method, self.models = trainer, method, models
        self.guard, self.run, self.watch = guard, run, watch
        self.rollout = RolloutConfig(
            num_prompts=len(watch.prompts),
            group_size=watch.group_size,
            max_new_tokens=watch.max_new_tokens,
            temperature=watch.temperature,
        )
        self.made, self.measured = 0, -1
        self.is_open = False
        self.halt: LimitError | None = None
        self.learner: Learner
        self.directory: RunDirectory

    def begin(self) -> None:
        """Opens the run directory, and measures the policy as it is."""
        self.learner = learner_of(self.trainer, self.models)
        config = {
            "trl": told(self.trainer),
            self.method: {"beta": float(getattr(self.trainer, "beta", 0.0)) or None},
            "model": {"policy": self.models.policy.name, "reference": self.models.reference.name},
            "rollout": self.rollout.model_dump(mode="json"),
            "guard": self.guard.model_dump(mode="json"),
            "train": {
                "steps": int(self.trainer.state.max_steps),
                "meter_every": self.watch.every,
                "seed": self.trainer.args.seed,
            },
        }
        digests = digests_of(self.models, None) | {"prompts": sha256_of(list(self.watch.prompts))}
        self.directory = open_directory(self.run, config, digests, None, self._conclude)
        self.is_open = True
        self._measure()

    def optimised(self) -> dict[str, float] | None:
        """Notes that TRL has stepped; measures where that is due.

        Returns:
            Figures for TRL's log; None where nothing was measured.
        """
        self.made += 1
        is_due = self.made % self.watch.every == 0 or self.made == self.trainer.state.max_steps
        return self._measure() if is_due else None

    def settle(self) -> None:
        """There is nothing under way at an end."""

    def close(self, error: BaseException | None) -> None:
        """Ends the run: `final/` is written, and the ledger's ending with why it ended."""
        self.is_open = False
        if error is None and self.halt is None and self.made < self.trainer.state.max_steps:
            error = KeyboardInterrupt()  # another callback stopped it: it is not finished
        error = error or self.halt
        self.directory.__exit__(None if error is None else type(error), error, None)

    def _measure(self) -> dict[str, float]:
        step = self.made
        generator = seeded(self.trainer.args.seed, f"measurement {step}")
        with evaluating(self.learner):
            rollout = sample(self.learner.policy, self.watch.prompts, self.rollout, generator)
            metered = meter(
                self.learner,
                rollout,
                temperature=self.watch.temperature,
                micro_batch_size=self._micro_batch,
            )
        readings = read_drift(self.learner, rollout, metered)
        found = locate_drift(self.learner.policy, rollout, metered)
        verdict = judge_policy(self.guard, readings.response)
        metrics = {
            "step": step,
            **drift_metrics(readings),
            **response_metrics(rollout, metered),
            "response_length": float(rollout.mask.sum(-1).double().mean()),
        }
        entry = MeasurementEntry(
            step=step,
            kl=readings.response,
            verdict=verdict,
            rollout_sha256=rollout.sha256(),
            metrics_sha256=hashlib.sha256(metrics_line(metrics)).hexdigest(),
        )
        self.directory.ledger.append("measurement", entry.to_json())
        self.directory.write(
            StepRecord(
                step=step,
                kl=readings.response,
                kl_coef=None,
                verdict=verdict,
                metrics=metrics,
                breakdown={"step": step, **found},
            )
        )
        if verdict.action == "halt":
            self.halt = LimitError(
                f"training halted at step {step}: {verdict.reasons[0]}",
                expected="a KL under max_kl",
                got=f"{readings.response}; the policy as it is was left in place",
                do="lower the learning rate or the number of steps, or raise max_kl",
            )
        return _shown(readings.response, halted=verdict.action == "halt")

    @property
    def _micro_batch(self) -> int:
        return int(self.trainer.args.per_device_train_batch_size)

    def _conclude(self, ending: Ending) -> Conclusion:
        drift = None
        if ending.measured:
            with evaluating(self.learner):
                drift = fresh_drift(
                    self.learner,
                    self.watch.prompts,
                    self.rollout,
                    seeded(self.trainer.args.seed, "final drift"),
                    micro_batch_size=self._micro_batch,
                )
        card = card_of(type(self.trainer).__name__, self.models, ending, drift)
        return Conclusion(self.models.policy, card, drift)


def _shown(kl: KLReading, *, halted: bool) -> dict[str, float]:
    figures = {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "verdict": 4.0 * halted}
    return {f"kleash/{name}": value for name, value in figures.items() if value is not None}
