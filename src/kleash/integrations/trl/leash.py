"""`KLLeash`: the meter, the controller, the guard and the ledger on a trainer of TRL's."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from kleash.control import ControlConfig
from kleash.control.config import WITHOUT_TARGET
from kleash.errors import ConfigError, LimitError
from kleash.guard import GuardConfig
from kleash.integrations.trl.attached import models_of
from kleash.integrations.trl.governor import Governor, Shown, Terms
from kleash.integrations.trl.supported import (
    REINFORCED,
    Method,
    check_process,
    check_reinforced,
    check_version,
    method_of,
)
from kleash.integrations.trl.terms import controller_of, limits_of
from kleash.integrations.trl.watch import Watch, Watcher
from kleash.train.run import check_vacant


class KLLeash:
    """A trainer of TRL's, held to a target in nats and within limits, with a record that verifies.

        leash = KLLeash(trainer, target=6.0, limits={"max_kl": 20.0}, ledger="runs/mine")
        trainer.train()

    GRPO and RLOO: before each update the exact KL(π‖π_ref) of its own rollout is measured, β is chosen from it
    (`trainer.beta`), and after it the guard accepts the update or undoes it, weights and moments bit for bit. SFT and
    DPO: there is no rollout, so the policy is asked the prompts of a `Watch`; what is over `max_kl` ends the training.

    The reference is TRL's own: its `ref_model`, or the policy with its adapter disabled; where TRL has none it is a
    frozen copy, which takes the room of the weights once more. Before each update weights and moments are copied too.

    TRL's β is beside advantages that it may have divided by σ: `kl_coef` is that β, and the metric `kl_coef_in_reward`
    is reward per nat (docs/trl.md has the conversion). Of TRL 1.16, which is checked, the leash wraps `train` and
    `log`, and of GRPO and RLOO also `_generate` and `_calculate_rewards`, as no public place has a rollout's tokens and
    its rewards before β is used (ADR 0010).

    Args:
        trainer: a `GRPOTrainer`, `RLOOTrainer`, `SFTTrainer` or `DPOTrainer`, not yet started.
        target: nats per response to hold; None: β stays as it is. GRPO and RLOO alone.
        controller: the name of what holds it, or a whole `ControlConfig`, which then has the target.
        limits: of `[guard]`; `max_kl` in nats per response, `max_kl_new_old` in nats per token, and so on.
        ledger: the run directory; it must not exist, or be empty.
        rollback_every: updates between policies that the guard may go back to; None: it never does. One is kept.
        watch: what SFT and DPO are asked.

    Raises:
        InputError: another release of TRL, another trainer, a run directory with something in it.
        ConfigError: a trainer, target or limit that can't be held, with the reason.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        target: float | None = None,
        controller: str | ControlConfig | None = None,
        limits: Mapping[str, Any] | GuardConfig | None = None,
        ledger: str | Path = "runs/trl",
        rollback_every: int | None = 10,
        watch: Watch | None = None,
    ) -> None:
        check_version()
        self.trainer, self.method = trainer, method_of(trainer)
        check_process(trainer)
        guard = limits_of(limits, self.method)
        run = Path(ledger)
        check_vacant(run)
        models = models_of(trainer)
        self.session: Governor | Watcher
        if self.method in REINFORCED:
            check_reinforced(trainer)
            rl = controller_of(target, controller, float(trainer.beta))
            _check_penalised(trainer, rl)
            if watch is not None:
                raise _unused("watch", "its own rollouts are what is measured")
            terms = Terms(rl=rl, guard=guard, run=run, rollback_every=rollback_every)
            self.session = Governor(trainer, self.method, models, terms)
        else:
            _refuse_control(self.method, target, controller)
            if watch is None:
                raise _no_watch(self.method)
            self.session = Watcher(trainer, self.method, models, guard, run, watch)
        self.figures: list[Shown] = []
        """For TRL's next log."""
        self._attach()

    @property
    def halted(self) -> LimitError | None:
        """Why the guard ended the training; None where it didn't."""
        return self.session.halt

    def _attach(self) -> None:
        trainer = self.trainer
        trainer.add_callback(_Steps(self))
        trainer.train = self._training(trainer.train)
        trainer.log = self._logging(trainer.log)
        if isinstance(self.session, Governor):
            _observe(trainer, self.session)

    def _training(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """`trainer.train`, after which the run has its ending in the ledger, however it ended."""

        def training(*given: Any, resume_from_checkpoint: Any = None, **named: Any) -> Any:
            if given or resume_from_checkpoint:
                raise ConfigError(
                    "a run on a leash can't be resumed",
                    expected="trainer.train() from its beginning",
                    got="a checkpoint to go on from",
                    do="begin another run; kleash train resumes its own",
                )
            check_vacant(self.session.run)
            error: BaseException | None = None
            try:
                return train(**named)
            except BaseException as raised:
                error = raised
                raise
            finally:
                if self.session.is_open:
                    self.session.close(error)

        return training

    def _logging(self, log: Callable[..., Any]) -> Callable[..., Any]:
        """`trainer.log`, with the figures of the updates since the last."""

        def logging(logs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            if self.trainer.model.training or "loss" in logs:
                logs.update(_means(self.figures))
                self.figures.clear()
            return log(logs, *rest, **named)

        return logging


class _Steps(TrainerCallback):
    """What transformers tells of its training, passed on."""

    def __init__(self, leash: KLLeash) -> None:
        self.leash = leash

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.leash.session.begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        # Between the optimiser's step and the schedule's: what is undone here was never logged, saved or evaluated.
        return self._said(self.leash.session.optimised(), control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        return self._said(self.leash.session.settle(), control)

    def _said(self, figures: Shown | None, control: Any) -> Any:
        if figures is not None:
            self.leash.figures.append(figures)
        if self.leash.halted is not None:
            control.should_training_stop = True
        return control


def _observe(trainer: Any, governor: Governor) -> None:
    """Shows a governor each rollout between its rewards and the first use of β, and each gradient's norm."""
    generate, rewards = trainer._generate, trainer._calculate_rewards
    clip = trainer.accelerator.clip_grad_norm_
    drawn: list[tuple[Any, Any]] = []

    def generating(prompts: Any) -> Any:
        output = generate(prompts)
        drawn[:] = [(output[0], output[1])]
        return output

    def rewarding(inputs: Any, prompts: Any, completions: Any, ids: Any) -> Tensor:
        scores: Tensor = rewards(inputs, prompts, completions, ids)
        if trainer.model.training:  # TRL's own sign of what is no evaluation
            governor.sampled(prompts, *drawn.pop(), scores)
        return scores

    def clipping(*given: Any, **named: Any) -> Any:
        norm = clip(*given, **named)
        governor.clipped(math.nan if norm is None else float(norm))
        return norm

    trainer._generate, trainer._calculate_rewards = generating, rewarding
    trainer.accelerator.clip_grad_norm_ = clipping


def _means(figures: list[Shown]) -> dict[str, float]:
    """Of what was said since the last log; of verdicts the gravest."""
    names = dict.fromkeys(name for each in figures for name in each)
    means: dict[str, float] = {}
    for name in names:
        values = [each[name] for each in figures if name in each]
        means[name] = max(values) if name == "kleash/verdict" else sum(values) / len(values)
    return means


def _check_penalised(trainer: Any, rl: ControlConfig) -> None:
    """That TRL computes what a β is to be multiplied by: with β = 0 at its construction it loads no reference.

    Raises:
        ConfigError: it doesn't.
    """
    moves = rl.controller not in WITHOUT_TARGET or rl.controller == "schedule"
    if float(trainer.beta) == 0.0 and (moves or rl.start > 0.0):
        raise ConfigError(
            "TRL has no reference to hold the policy to",
            expected=f"a trainer that was built with a beta over 0, for the {rl.controller} controller to set anew",
            got="beta = 0.0, with which TRL loads no reference and computes no penalty",
            do=f"set beta=0.04, or any other, in {type(trainer.args).__name__}",
        )


def _refuse_control(method: Method, target: Any, controller: Any) -> None:
    if target is None and controller is None:
        return
    reason = {
        "sft": "it has no penalty",
        "dpo": "its β is of the loss over pairs that others wrote, and no setting of it holds a KL",
    }[method]
    raise ConfigError(
        f"{method.upper()} can't be held to a target: {reason}",
        expected="limits and a watch alone",
        got=f"target = {target!r}, controller = {controller!r}",
        do="leave them out; limits={'max_kl': …} ends the training where the policy has gone too far",
    )


def _unused(name: str, reason: str) -> ConfigError:
    return ConfigError(f"no {name} for GRPO and RLOO: {reason}", do="leave it out")


def _no_watch(method: Method) -> ConfigError:
    return ConfigError(
        f"{method.upper()} samples nothing, so that there is nothing to measure a KL on",
        expected="watch=Watch(prompts=[…]), the prompts that the policy is asked",
        got="none",
        do="from kleash.integrations.trl import Watch",
    )
