"""TRL's trainers, given our models, our optimiser and our random numbers, and their steps one by one."""

import copy
import math
import tempfile
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch
import trl
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from kleash.errors import ConfigError, InputError
from kleash.integrations.trl.config import DPORunConfig, SFTRunConfig
from kleash.integrations.trl.data import Rows
from kleash.integrations.trl.handover import handed_over
from kleash.integrations.trl.quiet import silently
from kleash.models.hub import freeze
from kleash.models.policy import LanguageModel
from kleash.rollout.seeds import seeded
from kleash.train.learner import Learner


class Optimised(NamedTuple):
    """One step of TRL's, made."""

    step: int
    """1-based."""
    logs: dict[str, float]
    """What TRL logged of it: figures of the policy before the step."""


def build_trainer(config: DPORunConfig | SFTRunConfig, learner: Learner, rows: Rows) -> Any:
    """A `trl.DPOTrainer` or `trl.SFTTrainer`, with its data tokenized.

    Raises:
        InputError: no row leaves anything to learn.
        ConfigError: TRL can't run here.
    """
    if learner.policy.device.type == "cuda" and torch.cuda.device_count() > 1:
        raise ConfigError(
            "TRL takes every GPU that it sees, and this run is one process",
            expected="one visible GPU",
            got=str(torch.cuda.device_count()),
            do="set CUDA_VISIBLE_DEVICES to one of them",
        )
    # TRL gives a tokenizer without a padding token one: not to the one that is saved.
    tokenizer = copy.deepcopy(learner.policy.tokenizer)
    given: dict[str, Any] = {
        "model": learner.policy.model,
        "processing_class": tokenizer,
        "train_dataset": Dataset.from_list(rows),
        "optimizers": (learner.optimizer, _schedule(config, learner.optimizer)),
    }
    with silently():
        if isinstance(config, DPORunConfig):
            # A copy, because TRL puts another forward pass into it, and the meter's reference is to stay as it is.
            assert isinstance(learner.reference, LanguageModel), "the configuration has one"
            reference = freeze(learner.reference).model
            trainer: Any = trl.DPOTrainer(
                ref_model=reference, args=_dpo_arguments(config, learner), **given
            )
        else:
            trainer = trl.SFTTrainer(args=_sft_arguments(config, learner), **given)
    trainer.remove_callback(PrinterCallback)
    if not len(trainer.train_dataset):
        raise InputError(
            "no row leaves anything to learn",
            expected=f"prompts of fewer than {_longest(config, learner.policy)} tokens",
            got=f"{len(rows)} rows whose prompts fill that",
            do="raise data.max_length, or shorten the prompts",
        )
    return trainer


def optimisation(trainer: Any, policy: LanguageModel) -> Generator[Optimised]:
    """TRL's own training loop, which waits after each step until the next is asked for.

    Whoever reads the policy meanwhile puts it into eval mode: TRL puts it back before its next step.
    """

    def work(give: Callable[[Optimised], None]) -> None:
        trainer.add_callback(_Steps(give, policy.model))
        trainer.train()

    with silently():
        yield from handed_over(work)


class _Steps(TrainerCallback):
    """Hands over what TRL logs of each step."""

    def __init__(self, give: Callable[[Optimised], None], model: Any) -> None:
        self.give, self.model = give, model
        self.configs = copy.deepcopy((model.config, model.generation_config))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # transformers has written the tokenizer's special tokens into both. Which tokens end a response must not
        # change under the meter, and the model is saved as it came.
        self.model.config, self.model.generation_config = self.configs

    def on_log(self, args: Any, state: Any, control: Any, **said: Any) -> None:
        if "loss" in said["logs"]:  # not the summary at the end
            self.give(Optimised(state.global_step, dict(said["logs"])))


def _schedule(config: DPORunConfig | SFTRunConfig, optimizer: torch.optim.Optimizer) -> Any:
    """`[optimizer]`'s learning rate by step, as `kleash train` has it."""
    rates, steps = config.optimizer, config.train.steps

    def factor(done: int) -> float:
        return rates.rate_at(min(done + 1, steps), steps) / rates.learning_rate

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _dpo_arguments(config: DPORunConfig, learner: Learner) -> Any:
    return trl.DPOConfig(
        beta=config.dpo.beta,
        loss_type=[config.dpo.loss],
        max_length=_longest(config, learner.policy),
        **_arguments(config, learner),
    )


def _sft_arguments(config: SFTRunConfig, learner: Learner) -> Any:
    return trl.SFTConfig(
        completion_only_loss=None if config.sft.completion_only else False,
        max_length=_longest(config, learner.policy),
        **_arguments(config, learner),
    )


def _longest(config: DPORunConfig | SFTRunConfig, policy: LanguageModel) -> int | None:
    """Tokens kept of a text."""
    limits = [config.data.max_length or math.inf, policy.context or math.inf]
    return None if min(limits) == math.inf else int(min(limits))


def _arguments(config: DPORunConfig | SFTRunConfig, learner: Learner) -> dict[str, Any]:
    """What both trainers are told: full precision, one log a step, and nothing written, drawn or sent."""
    return {
        "output_dir": tempfile.gettempdir(),  # it must be there; nothing is saved into it
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log a loss that is no number as 0
        "max_steps": config.train.steps,
        "per_device_train_batch_size": config.train.batch_size,
        "max_grad_norm": config.optimizer.max_grad_norm,
        "seed": seeded(config.train.seed, "trl").initial_seed() % 2**32,
        "use_cpu": learner.policy.device.type == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": learner.policy.device.type != "cpu",
        "use_cache": getattr(learner.policy.model.config, "use_cache", False),
    }
