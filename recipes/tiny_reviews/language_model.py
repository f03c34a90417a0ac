"""Trains and measures the base language model."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from training import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    add_dropout,
    batches,
    make_optimizers,
    pad,
    schedule,
    train,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BATCH_TOKENS = 4096
GENERAL_PASSES = 4  # over both corpora together
SPECIAL_PASSES = 6  # over the single sentences alone, while the learning rate falls
DROPOUT = 0.1  # in the second phase; the first sees each text too rarely to need it
MATRIX_LR = 0.02
OTHER_LR = 3e-3
WEIGHT_DECAY = 0.1
SHARPNESS = 1.25  # so that samples at temperature 1 are those of the trained model at 0.8


def new_config() -> LlamaConfig:
    """The architecture: few and wide layers, which decode fastest on a processor."""
    return LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=688,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        initializer_range=0.02,
        dtype="float32",
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of `<bos> text <eos>`, without the few texts that are too long."""
    rows = tokenizer(texts, verbose=False)["input_ids"]
    return [[*row, EOS_ID] for row in rows if len(row) < tokenizer.model_max_length]


def token_losses(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """The negative log-likelihood of every token after the first, padding left out."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = ids[:, 1:]
    real = targets != PAD_ID
    # Only the real positions meet the output matrix: it is a third of the arithmetic.
    return functional.cross_entropy(model.lm_head(hidden[real]), targets[real], reduction="none")


def train_base(general: list[list[int]], special: list[list[int]], seed: int) -> LlamaForCausalLM:
    """Trains on both corpora, then on the kind of text that the model is to write.

    Args:
        general: Encoded sentences of whole reviews.
        special: Encoded single review sentences.
        seed: Draws the weights, the order and the dropout.

    Returns:
        The trained model.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(new_config())
    # On sentences of some thirty tokens plain products beat the fused kernel by a third.
    model.set_attn_implementation("eager")
    optimizers = make_optimizers(model, MATRIX_LR, OTHER_LR, WEIGHT_DECAY)
    rows = special + general
    phases: list[list[list[int]]] = [[], []]
    for _ in range(GENERAL_PASSES):
        phases[0] += batches([len(r) for r in rows], BATCH_TOKENS, generator)
    for _ in range(SPECIAL_PASSES):
        phases[1] += batches([len(r) for r in special], BATCH_TOKENS, generator)
    total = sum(map(len, phases))

    def loss_of(batch: list[int]) -> Tensor:
        return token_losses(model, pad([rows[i] for i in batch])).mean()

    done = 0
    for name, steps, rate in (("general", phases[0], 0.0), ("special", phases[1], DROPOUT)):
        undo = add_dropout(model.model, rate)
        offset = done
        train(
            model,
            steps,
            loss_of,
            optimizers,
            lambda step, offset=offset: schedule(offset + step, total, 40),
            name,
        )
        undo()
        done += len(steps)
    return model


@torch.no_grad()
def sharpen(model: LlamaForCausalLM) -> None:
    """Multiplies the logits by `SHARPNESS`, inside the last norm.

    A model this small spells out words that don't exist when it is sampled as it was trained. Its
    samples are what it is for, so they get the certainty, and the perplexity pays for it.
    """
    model.model.norm.weight.mul_(SHARPNESS)


@torch.no_grad()
def measure_base(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> dict[str, float]:
    """Perplexity per token, `<eos>` counted and `<bos>` not, and bits per character."""
    rows = encode(tokenizer, texts)
    total = sum(
        token_losses(model, pad([rows[i] for i in batch])).sum().item()
        for batch in batches([len(r) for r in rows], BATCH_TOKENS, torch.Generator())
    )
    tokens = sum(len(row) - 1 for row in rows)
    return {
        "perplexity": math.exp(total / tokens),
        "bits_per_character": total / math.log(2) / sum(map(len, texts)),
        "tokens": tokens,
    }


@torch.no_grad()
def sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int
) -> list[str]:
    """One sample at temperature 1 after each prompt, up to `<eos>`."""
    torch.manual_seed(seed)
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    output = cast(Any, model).generate(
        **inputs, do_sample=True, top_k=0, max_new_tokens=64, pad_token_id=PAD_ID
    )
    return tokenizer.batch_decode(output, skip_special_tokens=True)
