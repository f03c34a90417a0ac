"""TRL's trainers on the embedded model, small enough for a test."""

import json
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback

from kleash.integrations.trl.quiet import silently
from kleash.models.embedded import resolve

PROMPTS = ["the film is", "this movie has", "a", "it", "the plot", "an", "i", "one of"]


def even(completion_ids: Any, **_: Any) -> list[float]:
    """A reward that any policy can follow: how many of its tokens have an even number."""
    return [float(sum(i % 2 == 0 for i in ids)) for ids in completion_ids]


def common(**also: Any) -> dict[str, Any]:
    """What every trainer is told."""
    said: dict[str, Any] = {
        "output_dir": "unused",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "max_steps": 3,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "seed": 5,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    return said | also


def sampling(**also: Any) -> dict[str, Any]:
    """What GRPO and RLOO are told."""
    return common(num_generations=4, max_completion_length=6, **also)


def build(kind: str, rewards: Any = even, model: Any = None, **also: Any) -> Any:
    """A `GRPOTrainer` or `RLOOTrainer` on the embedded base model."""
    torch.manual_seed(0)
    path = str(resolve("tiny-reviews/base"))
    trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    rows = Dataset.from_dict({"prompt": PROMPTS * 16})
    init = {} if model is not None else {"model_init_kwargs": {"dtype": torch.float32}}
    with silently():
        trainer = trainer_class(
            model=model or path,
            reward_funcs=rewards,
            args=config_class(**sampling(**init, **also)),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)) if "eval_strategy" in also else None,
            processing_class=AutoTokenizer.from_pretrained(path),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def weights(trainer: Any) -> list[torch.Tensor]:
    """A copy of a trainer's weights."""
    return [weight.detach().clone() for weight in trainer.model.parameters()]


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
