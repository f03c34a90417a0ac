"""What `kleash compare` costs beside sampling from the two models and scoring what they said once by each.

A LoRA adapter on a model against its base, 64 prompts, 32 tokens. The parts are timed in the same process in turn, the
median of rounds is printed; peak memory is that of a process of its own. `plain` is transformers' generate from both
models and one forward pass of each over each model's responses, log-probabilities of the sampled tokens alone.

    kleash models fetch smollm2-135m
    OMP_NUM_THREADS=2 python benchmarks/compare_cost.py --model smollm2-135m
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kleash.audit.compare import compare
from kleash.audit.config import CompareConfig
from kleash.audit.pair import Pair
from kleash.audit.sources import find
from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.models.config import LoraConfig
from kleash.models.embedded import resolve
from kleash.models.hub import load_language_model, save_language_model
from kleash.models.policy import LanguageModel
from kleash.rollout.sampler import encode_prompts

PROMPTS, TOKENS, ROWS = 64, 32, 16


def save_adapter(model: str, directory: Path) -> None:
    """An adapter that moves the model a little: what it learnt is no matter here."""
    torch.manual_seed(0)
    loaded = load_language_model(model, lora=LoraConfig(rank=16))
    assert loaded.adapter is not None
    for name, weight in loaded.adapter.own_weights.items():
        if "lora_B" in name:
            weight.data.normal_(std=2e-3)
    save_language_model(loaded, directory, "", findable=True)


def config_of(adapter: Path, show: int = 0) -> CompareConfig:
    """The comparison that is timed."""
    return CompareConfig(
        policy=str(adapter),
        prompts="tiny-reviews/prompts",
        max_prompts=PROMPTS,
        samples=1,
        max_new_tokens=TOKENS,
        show=show,
    )


@torch.no_grad()
def plain(pair: Pair, *, both: bool) -> int:
    """generate, and a scoring pass of each; of both models' responses, or of the policy's alone."""
    prompts = Path(resolve("tiny-reviews/prompts")).read_text().split("\n")[:PROMPTS]
    scored = 0
    for sampler in (pair.policy, pair.reference)[: 2 if both else 1]:
        model = sampler()
        ids, mask = encode_prompts(model, prompts, TOKENS)
        with model.speaking():
            out = model.model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                do_sample=True,
                top_k=0,
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                pad_token_id=model.pad_id,
            )
        for side in (pair.policy, pair.reference):
            scored += score(side(), out, mask)
    return scored


def score(model: LanguageModel, out: Any, mask: Any) -> int:
    """Log-probabilities of the sampled tokens, some rows at a time."""
    width, found = mask.shape[1], 0
    whole = torch.cat([mask, torch.ones(len(out), out.shape[1] - width, dtype=torch.bool)], 1)
    for rows in torch.arange(len(out)).split(ROWS):
        with model.speaking():
            logits = model.model(
                input_ids=out[rows],
                attention_mask=whole[rows].long(),
                logits_to_keep=out.shape[1] - width + 1,
            ).logits[:, :-1]
        found += token_logprobs(log_softmax(logits), out[rows][:, width:]).numel()
    return found


def seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mib() -> float:
    """The most that this process has had in memory; `getrusage` would give its parent's, where that was more."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """Prints seconds, ratios and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-reviews/base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", metavar="ADAPTER", help=argparse.SUPPRESS)
    parser.add_argument("--what", default="compare", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        adapter = Path(given.memory_of)
        if given.what == "compare":
            compare(config_of(adapter))
        else:
            Pair(find(str(adapter)), find(given.model))
        print(round(peak_mib()))
        return
    with tempfile.TemporaryDirectory() as directory:
        adapter = Path(directory)
        save_adapter(given.model, adapter)
        pair = Pair(find(str(adapter)), find(given.model))
        loading = seconds(lambda: Pair(find(str(adapter)), find(given.model)))
        found: dict[str, list[float]] = {"compare": [], "plain, both": [], "plain, policy's": []}
        for _ in range(given.rounds):
            found["compare"].append(seconds(lambda: compare(config_of(adapter))) - loading)
            found["plain, both"].append(seconds(lambda: plain(pair, both=True)))
            found["plain, policy's"].append(seconds(lambda: plain(pair, both=False)))
        for name, times in found.items():
            ratios = [a / b for a, b in zip(found["compare"], times, strict=True)]
            print(
                f"{name}: {statistics.median(times):.1f} s; compare is {statistics.median(ratios):.2f} of it"
            )
        for what in ("loaded", "compare"):
            command = [
                sys.executable,
                __file__,
                "--model",
                given.model,
                "--memory-of",
                str(adapter),
            ]
            done = subprocess.run(
                [*command, "--what", what], capture_output=True, text=True, check=True
            )
            print(f"peak memory, {what}: {done.stdout.split()[-1]} MiB")


if __name__ == "__main__":
    main()
