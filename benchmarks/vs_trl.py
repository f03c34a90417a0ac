"""A step of GRPO here and in TRL: the same model, responses as many and as long, the same reward, one after the other.

    OMP_NUM_THREADS=1 python benchmarks/vs_trl.py [--model smollm2-135m] [--prompt-tokens 128] [--pairs 5]
    OMP_NUM_THREADS=1 python benchmarks/vs_trl.py --memory kleash | --memory trl

Both take one gradient step a rollout, in float32, with a KL penalty. Ours measures the exact KL of the policy, and that
of its update, and writes a signed ledger; TRL's is the k3 estimate of the tokens drawn. Every response has as many
tokens as it may, but for 2 in 1,000 that draw their end, so that the work is the same. `--trl` says whose settings TRL
has: `best` (no gradient checkpointing, fused AdamW), or `default` with what a CPU allows.

Steps alternate in one process, so that both have the machine's mood in common; medians, and the median of the ratios of
pairs. `--memory` runs one of the two alone and gives the process's peak.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from kleash.config import build
from kleash.integrations.trl.handover import handed_over
from kleash.integrations.trl.quiet import silently
from kleash.ledger import Ledger, SigningKey
from kleash.models.loading import locate, quietly
from kleash.records import StepRecord
from kleash.train.config import RunConfig
from kleash.train.loop import run_loop
from kleash.train.run import plan_of, prepare

GROUP, TOKENS, BETA, RATE = 8, 32, 0.05, 1e-5
TEXT = "the film is a quiet story about two people who meet again after many years ."
FOREVER = 10_000
"""Steps that nobody waits for."""


def count_e(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(text.count("e")) for text in responses]


def count_e_for_trl(completions: list[str], **_: Any) -> list[float]:
    """The same, as TRL calls it."""
    return count_e([], completions)


def prompts_of(model: str, tokens: int) -> list[str]:
    """Different prompts of so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(locate(model))
    words = TEXT.split()
    found: list[str] = []
    for start in range(64):
        text = " ".join(words[(start + i) % len(words)] for i in range(2 * tokens))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: tokens - 1]
        found.append(tokenizer.decode([*ids, ids[start % 5]]))
    return found


def without_end(directory: str, model: str) -> str:
    """A copy of a model that never ends a response by itself: its end has a logit of 0, and is hardly ever drawn."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(locate(model), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(locate(model))
    # A token that is nowhere in the texts ends a response from now on.
    rare = "<|reserved|>"
    tokenizer.add_special_tokens({"eos_token": rare})
    loaded.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        embedding = loaded.get_input_embeddings().weight
        embedding[-1] = 0.0
    # Positions are rotations: that the embedded model was taught 128 is no matter for its speed.
    loaded.config.max_position_embeddings = max(512, loaded.config.max_position_embeddings)
    for config in (loaded.config, loaded.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
    loaded.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def ours(
    model: str, prompts: list[str], responses: int, run: Path, algorithm: str = "grpo"
) -> Iterator[StepRecord]:
    """Steps of kleash."""
    run.mkdir()
    (run / "prompts.txt").write_text("\n".join(prompts) + "\n")
    settings = {
        "model": {"policy": model},
        "data": {"prompts": str(run / "prompts.txt")},
        "rollout": {
            "num_prompts": responses // GROUP,
            "group_size": GROUP,
            "max_new_tokens": TOKENS,
        },
        "reward": {"model": f"{__name__}:count_e"},
        "rl": {"controller": "fixed", "kl_coef": BETA},
        "algorithm": {"name": algorithm, "num_epochs": 1, "num_minibatches": 1},
        "optimizer": {"learning_rate": RATE},
        "train": {
            "device": "cpu",
            "steps": FOREVER,
            "trackers": [],
            "sample_every": FOREVER,
            "micro_batch_size": responses,
            "num_samples": 1,
        },
    }
    config = build(RunConfig, settings, "benchmark")
    setup = prepare(config)
    with Ledger.create(run / "ledger", [SigningKey.generate()]) as ledger:
        ledger.append("run.started", {"config": config.model_dump(mode="json")})
        ledger.append("plan.committed", plan_of(setup))
        yield from run_loop(setup, ledger)


class EachStep(TrainerCallback):
    """Says when a step has ended."""

    def __init__(self, give: Any) -> None:
        self.give = give

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As TRL asks of a callback."""
        self.give(state.global_step)


def theirs(
    model: str, prompts: list[str], responses: int, run: Path, *, best: bool
) -> Iterator[int]:
    """Steps of TRL's."""
    settings: dict[str, Any] = {"gradient_checkpointing": False, "optim": "adamw_torch_fused"}
    args = GRPOConfig(
        output_dir=str(run),
        model_init_kwargs={"dtype": torch.float32},
        beta=BETA,
        max_steps=FOREVER,
        per_device_train_batch_size=responses,
        num_generations=GROUP,
        max_completion_length=TOKENS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **(settings if best else {}),
    )
    with silently():
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=count_e_for_trl,  # pyright: ignore[reportArgumentType]
            args=args,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.remove_callback(PrinterCallback)

        def work(give: Any) -> None:
            trainer.add_callback(EachStep(give))
            trainer.train()

        yield from handed_over(work)


def timed(steps: Iterator[Any]) -> float:
    """Seconds of the next step."""
    started = time.perf_counter()
    next(steps)
    return time.perf_counter() - started


def compare(sides: dict[str, Iterator[Any]], pairs: int) -> None:
    """Alternates, and prints; the first pair warms up."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(pairs + 1):
        for side, steps in sides.items():
            times[side].append(timed(steps))
    found = {side: seconds[1:] for side, seconds in times.items()}
    ratios = sorted(b / a for a, b in zip(found["kleash"], found["trl"], strict=True))
    for side, seconds in found.items():
        print(f"{side:>7} {statistics.median(seconds):8.3f} s a step, {min(seconds):.3f} at best")
    print(
        f"TRL's step is {statistics.median(ratios):.2f} of ours, median of {pairs} pairs "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def peak(steps: Iterator[Any]) -> float:
    """MiB that the process had at most, after two steps."""
    for _ in range(2):
        next(steps)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def arguments(description: str) -> argparse.ArgumentParser:
    """What both comparisons are asked by."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="tiny-reviews/base")
    parser.add_argument("--responses", type=int, help="64, or 16 of a model that is not embedded")
    parser.add_argument("--prompt-tokens", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", choices=("kleash", "trl"))
    return parser


def measure(sides: dict[str, Iterator[Any]], asked: argparse.Namespace) -> None:
    """The memory of one side, or both in turn."""
    if asked.memory is not None:
        print(f"{asked.memory}: peak {peak(sides[asked.memory]):.0f} MiB after two steps")
    else:
        compare(sides, asked.pairs)


def responses_of(asked: argparse.Namespace) -> int:
    """How many responses a step takes."""
    return asked.responses or (64 if asked.model.startswith("tiny") else 16)


def main() -> None:
    """Measures and prints."""
    parser = arguments("A step of GRPO here and in TRL.")
    parser.add_argument("--trl", choices=("best", "default"), default="best")
    asked = parser.parse_args()
    responses = responses_of(asked)
    prompts = prompts_of(asked.model, asked.prompt_tokens)
    with TemporaryDirectory() as name:
        root = Path(name)
        with quietly():
            model = without_end(str(root / "model"), asked.model)
        sides: dict[str, Iterator[Any]] = {
            "kleash": ours(model, prompts, responses, root / "kleash"),
            "trl": theirs(model, prompts, responses, root / "trl", best=asked.trl == "best"),
        }
        print(
            f"{asked.model}, {responses} responses × {TOKENS} tokens to prompts of {asked.prompt_tokens}, groups of "
            f"{GROUP}, {torch.get_num_threads()} thread(s), TRL's {asked.trl} settings"
        )
        measure(sides, asked)


if __name__ == "__main__":
    main()
