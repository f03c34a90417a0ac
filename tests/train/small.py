"""A language model of a few hundred weights, saved as any other: for runs that are over in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefgh"


def save_small_model(directory: Path) -> Path:
    """Writes it; its tokens are letters, of which one ends a response."""
    vocabulary = {"<e>": 0, "<u>": 1, **{letter: 2 + i for i, letter in enumerate(LETTERS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<e>", unk_token="<u>", pad_token="<e>"
    ).save_pretrained(directory)
    torch.manual_seed(5)
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "eos_token_id": 0,
        "initializer_range": 0.5,
    }
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(directory)
    return directory


def save_prompts(path: Path) -> Path:
    """Writes prompts for it."""
    path.write_text("".join(f"{a}{b}\n" for a in LETTERS for b in LETTERS[:3]))
    return path


def count_a(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward."""
    return [float(text.count("a")) - 0.1 * len(text) for text in responses]
