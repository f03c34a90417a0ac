"""TRL's GRPO, held to a target in nats. The trainer is TRL's own; the two lines with the leash are what is new.

    python examples/trl_grpo_leash.py [RUN]

A minute or two on two cores: the embedded model of film reviews learns to be liked. `kleash verify RUN` then makes
every β and every verdict again from the record, `kleash report RUN` draws it.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from kleash.integrations.trl import KLLeash
from kleash.models.embedded import resolve
from kleash.replay import verify_run
from kleash.rewards.scorers import load_scorer
from kleash.train.data import load_prompts

STEPS = 36
TARGET = 2.0
"""Nats per response."""


def build_trainer(steps: int = STEPS) -> Any:
    """GRPO as anybody would set it up."""
    model = str(resolve("tiny-reviews/base"))
    scorer = load_scorer("tiny-reviews/gold", label=None, batch_size=64, device="cpu")

    def liked(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        return [float(score) for score in scorer.score(prompts, completions)]

    args = GRPOConfig(
        output_dir="unused",
        model_init_kwargs={"dtype": torch.float32},
        beta=0.04,  # any number over 0, so that TRL loads its reference: the leash sets it at each step
        max_steps=steps,
        per_device_train_batch_size=48,
        num_generations=4,
        max_completion_length=16,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=liked,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": load_prompts("tiny-reviews/prompts")}),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def main(run: Path, steps: int = STEPS) -> bool:
    """Trains, shows what TRL's log has, and says whether the record verifies."""
    trainer = build_trainer(steps)
    leash = KLLeash(trainer, target=TARGET, limits={"max_kl": 20.0}, ledger=run)
    trainer.train()
    for logs in trainer.state.log_history:
        if "kleash/kl" in logs:
            print(
                f"{logs['step']:3}  reward {logs['reward']:+.2f}  KL {logs['kleash/kl']:.2f} "
                f"[{logs['kleash/kl_low']:.2f}, {logs['kleash/kl_high']:.2f}] for {TARGET:g}  "
                f"β {logs['kleash/kl_coef']:.3g}"
            )
    found = verify_run(run)
    print(
        f"{'verified' if found.ok else 'NOT what was written'}: {found.steps} steps, {found.status}"
    )
    return found.ok and leash.halted is None


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    fine = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/trl_grpo_leash"))
    sys.exit(0 if fine else 1)
