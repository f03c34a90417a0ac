"""What of TRL a leash can be put on. The rest is refused before anything is trained, with the reason."""

from collections.abc import Mapping
from typing import Any, Literal

import trl

from kleash.errors import ConfigError, InputError

SUPPORTED = "1.16."
"""Releases of TRL whose inside was read: a leash takes a rollout where TRL has no public place to take it."""

Method = Literal["grpo", "rloo", "sft", "dpo"]
REINFORCED: tuple[Method, ...] = ("grpo", "rloo")
"""Methods that sample, so that there is a β to choose from what was sampled."""

_TRAINERS: dict[Method, str] = {
    "grpo": "GRPOTrainer",
    "rloo": "RLOOTrainer",
    "dpo": "DPOTrainer",
    "sft": "SFTTrainer",
}


def check_version() -> None:
    """That this is a release of TRL which is known to work.

    Raises:
        InputError: it is another.
    """
    if not trl.__version__.startswith(SUPPORTED):
        raise InputError(
            "this release of TRL is not supported",
            expected=f"trl {SUPPORTED}*",
            got=f"trl {trl.__version__}",
            do=f"pip install 'trl=={SUPPORTED}*'",
        )


def method_of(trainer: Any) -> Method:
    """Which of TRL's trainers this is.

    Raises:
        InputError: none that a leash can be put on.
    """
    for method, name in _TRAINERS.items():
        if isinstance(trainer, getattr(trl, name)):
            return method
    raise InputError(
        "a leash can't be put on this",
        expected=f"one of TRL's {', '.join(_TRAINERS.values())}",
        got=type(trainer).__name__,
    )


def check_process(trainer: Any) -> None:
    """That one process holds whole weights in a precision that needs no scaler.

    Raises:
        ConfigError: it doesn't.
    """
    wrong = {
        f"{trainer.accelerator.num_processes} processes": trainer.accelerator.num_processes > 1,
        "DeepSpeed or FSDP, which hold parts of the weights": (
            trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        ),
        "fp16, whose scaler skips steps on its own": bool(trainer.args.fp16),
    }
    ended = {
        "load_best_model_at_end, after which other weights are left than were judged last": bool(
            trainer.args.load_best_model_at_end
        ),
        "auto_find_batch_size, which begins anew": bool(trainer.args.auto_find_batch_size),
    }
    _refuse(ended, "a training that is made once, to its last step", "leave it out")
    _refuse(
        wrong, "one process with whole weights, in bf16 or float32", "start it without a launcher"
    )


def check_reinforced(trainer: Any) -> None:
    """That each rollout is drawn from the policy itself, and ends in updates of its own.

    Raises:
        ConfigError: it is not so.
    """
    args = trainer.args
    drawn = {
        "use_vllm": bool(getattr(args, "use_vllm", False)),
        "tools or environments": bool(getattr(trainer, "tools", None))
        or getattr(trainer, "environment_factories", None) is not None,
        "rollout_func": getattr(trainer, "rollout_func", None) is not None,
        "top_p": args.top_p != 1.0,
        "top_k": args.top_k not in (0, None),
        "min_p": args.min_p is not None,
        "repetition_penalty": args.repetition_penalty != 1.0,
        "generation_kwargs": bool(args.generation_kwargs),
    }
    _refuse(
        drawn,
        "responses drawn from π at its temperature and nothing else: KL(π‖π_ref) is a mean over π's own responses",
        "leave it at its default",
    )
    parts = {
        "sync_ref_model, which moves the reference": bool(args.sync_ref_model),
        "cast_lm_head_to_fp32": bool(getattr(args, "cast_lm_head_to_fp32", False)),
        "images": bool(getattr(trainer, "_is_vlm", False)),
    }
    _refuse(parts, "a text model whose reference stays", "leave it out")
    every, accumulated = args.steps_per_generation, args.gradient_accumulation_steps
    if every % accumulated:
        raise ConfigError(
            "a rollout does not end in whole optimiser steps",
            expected="steps_per_generation a multiple of gradient_accumulation_steps, as it is by default",
            got=f"steps_per_generation = {every}, gradient_accumulation_steps = {accumulated}",
            do="leave steps_per_generation and generation_batch_size out",
        )


def steps_a_rollout(args: Any) -> int:
    """Optimiser steps that TRL makes of one rollout: together they are one update."""
    return args.num_iterations * args.steps_per_generation // args.gradient_accumulation_steps


def _refuse(wrong: Mapping[str, bool], expected: str, do: str) -> None:
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise ConfigError(
            "a leash can't be put on this trainer", expected=expected, got=", ".join(found), do=do
        )
