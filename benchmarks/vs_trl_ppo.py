"""A step of PPO here and in TRL 1.12, the last that had a trainer for it: in an environment of its own.

    python -m venv old && old/bin/pip install trl==1.12.0 -e '.[train]'
    OMP_NUM_THREADS=1 old/bin/python benchmarks/vs_trl_ppo.py [--model smollm2-135m] [--prompt-tokens 128] [--pairs 5]

As `vs_trl.py`: one gradient step a rollout, float32, the same model, sizes and KL coefficient, steps alternating in one
process. Each has its library's critic: TRL's is a second model of the policy's size, ours a head on the policy. TRL
asks for a reward model; it is given one of a single layer, which costs next to nothing.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
)
from vs_trl import (
    BETA,
    FOREVER,
    GROUP,
    RATE,
    TOKENS,
    EachStep,
    arguments,
    measure,
    ours,
    prompts_of,
    responses_of,
    without_end,
)

from kleash.integrations.trl.handover import handed_over
from kleash.integrations.trl.quiet import silently
from kleash.models.loading import quietly

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def theirs(model: str, prompts: list[str], responses: int, run: Path) -> Iterator[int]:
    """Steps of TRL's, with its best settings."""
    # Not in the TRL that the other checks see: this one has an environment of its own.
    from trl.experimental.ppo import (  # pyright: ignore[reportMissingImports]
        PPOConfig,
        PPOTrainer,
    )

    args = PPOConfig(
        output_dir=str(run),
        kl_coef=BETA,
        num_ppo_epochs=1,
        num_mini_batches=1,
        per_device_train_batch_size=responses,
        local_rollout_forward_batch_size=responses,
        total_episodes=FOREVER * responses,
        response_length=TOKENS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        temperature=1.0,
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
    )
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    with silently():
        policy, reference = (
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2)
        )
        critic, reward = (
            AutoModelForSequenceClassification.from_pretrained(
                model, num_labels=1, dtype=torch.float32, num_hidden_layers=layers
            )
            for layers in (policy.config.num_hidden_layers, 1)
        )
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=Dataset.from_list(
                [
                    {"input_ids": tokenizer(prompt)["input_ids"]}
                    for prompt in prompts
                    for _ in range(GROUP)
                ]
            ),
        )
        trainer.remove_callback(PrinterCallback)

        def work(give: Any) -> None:
            trainer.add_callback(EachStep(give))
            trainer.train()

        yield from handed_over(work)


def main() -> None:
    """Measures and prints."""
    asked = arguments("A step of PPO here and in TRL 1.12.").parse_args()
    responses = responses_of(asked)
    prompts = prompts_of(asked.model, asked.prompt_tokens)
    with TemporaryDirectory() as name:
        root = Path(name)
        with quietly():
            model = without_end(str(root / "model"), asked.model)
            sides: dict[str, Iterator[Any]] = {
                "kleash": ours(model, prompts, responses, root / "kleash", "ppo"),
                "trl": theirs(model, prompts, responses, root / "trl"),
            }
        print(
            f"PPO: {asked.model}, {responses} responses × {TOKENS} tokens to prompts of {asked.prompt_tokens}, "
            f"{torch.get_num_threads()} thread(s)"
        )
        measure(sides, asked)


if __name__ == "__main__":
    main()
