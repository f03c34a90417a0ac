"""Builds the embedded models: tokenizer, base language model and gold reward model.

python recipes/tiny_reviews/build.py --data DIR --out DIR --seed 0
"""

import argparse
import json
import logging
import platform
import time
from pathlib import Path
from typing import Any

import torch
from cards import write_cards
from data import Corpus, Text, load, split
from gold import measure_gold, score, train_gold
from language_model import encode, measure_base, sample, sharpen, train_base
from saving import save
from tokenizer import train_tokenizer
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

log = logging.getLogger("tiny_reviews")

NAME = "tiny-reviews"
THREADS = 2
SAMPLES = 1000
# The single sentences count this often beside the larger corpus: they are what is to be written.
TOKENIZER_COPIES = 4


def make_tokenizer(sentences: list[Text], reviews: list[Text]) -> PreTrainedTokenizerFast:
    """Trains the tokenizer, without the tuning tenth: it is the same when tuning and after."""
    corpus = split(sentences, reviews, tuning=True)
    texts = [t.text for t in corpus.sentences] * TOKENIZER_COPIES
    return train_tokenizer(texts + [t.text for t in corpus.from_reviews])


def make_base(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Trains the base language model."""
    general = encode(tokenizer, [t.text for t in corpus.from_reviews])
    special = encode(tokenizer, [t.text for t in corpus.sentences])
    model = train_base(general, special, seed)
    sharpen(model)
    return model


def first_half(text: str) -> str:
    """The first half of the words of a text."""
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])


def measure(corpus: Corpus, directory: Path, seed: int) -> dict:
    """Measures what was saved, as a user gets it: loaded from disk, in float32."""
    torch.set_float32_matmul_precision("highest")
    tokenizer = AutoTokenizer.from_pretrained(directory / "base")
    base = LlamaForCausalLM.from_pretrained(directory / "base").eval()
    gold = LlamaForSequenceClassification.from_pretrained(directory / "gold").eval()
    texts = [t.text for t in corpus.measured]
    positive = torch.tensor([t.positive for t in corpus.measured])
    samples = sample(base, tokenizer, [""] * SAMPLES, seed)

    def spread(scores: Tensor) -> dict[str, float]:
        return {"mean": scores.mean().item(), "std": scores.std().item()}

    scores = score(gold, tokenizer, texts)
    halves = score(gold, tokenizer, [first_half(text) for text in texts])
    return {
        "parameters": {"base": base.num_parameters(), "gold": gold.num_parameters()},
        "sentences_measured": len(texts),
        "base": measure_base(base, tokenizer, texts),
        "gold": measure_gold(scores, positive),
        "gold_on_first_halves": measure_gold(halves, positive),
        "gold_scores_of_human_sentences": spread(scores),
        "gold_scores_of_base_samples": spread(score(gold, tokenizer, samples)),
        "base_samples": samples[:10],
    }


def rounded(value: Any) -> Any:
    """Rounds every float inside to five digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def build(data: Path | None, out: Path, seed: int, *, tuning: bool, keep_base: bool) -> dict:
    """Builds everything under `out` and returns the figures, which are also saved there."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    # Matrix products in bfloat16 with float32 sums, where the processor has them: twice as fast.
    torch.set_float32_matmul_precision("medium")
    started = time.monotonic()
    directory = out / NAME
    sentences, reviews = load(data)
    corpus = split(sentences, reviews, tuning)
    tokenizer = make_tokenizer(sentences, reviews)
    if not keep_base:
        save(make_base(corpus, tokenizer, seed), tokenizer, directory / "base")
        log.info("base saved after %.0f s", time.monotonic() - started)
    # As saved, so that a gold model made later is the same as one made in the same run.
    base = LlamaForCausalLM.from_pretrained(directory / "base")
    gold = train_gold(base, tokenizer, corpus.sentences, corpus.from_reviews, seed)
    save(gold, tokenizer, directory / "gold")
    log.info("gold saved after %.0f s", time.monotonic() - started)
    figures = measure(corpus, directory, seed)
    figures |= {"seed": seed, "tuning": tuning}
    figures["minutes"] = None if keep_base else (time.monotonic() - started) / 60
    figures |= {"torch": torch.__version__, "machine": platform.machine()}
    figures = rounded(figures)
    (directory / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    write_cards(directory, figures)
    return figures


def main() -> None:
    """Reads the arguments, builds, and prints the figures."""
    parser = argparse.ArgumentParser(description="Builds the embedded models.")
    parser.add_argument("--data", type=Path, help="directory with the corpora; default: NLTK")
    parser.add_argument("--out", type=Path, required=True, help=f"{NAME}/ is written in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tune", action="store_true", help="train without the tuning tenth and measure on it"
    )
    parser.add_argument(
        "--keep-base", action="store_true", help="use the base model that --out already holds"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = build(
        arguments.data,
        arguments.out,
        arguments.seed,
        tuning=arguments.tune,
        keep_base=arguments.keep_base,
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
