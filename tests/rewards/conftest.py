"""Tiny classifiers with random weights and a byte-level tokenizer, as Hugging Face directories."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS = 0, 1, 2


def byte_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """Every byte is a token; `<bos>` comes first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=context,
    )


@pytest.fixture
def classifier(tmp_path: Path) -> Callable[..., str]:
    """Writes a classifier with that many labels; returns its directory."""

    def write(num_labels: int = 1, *, kind: str = "llama", context: int = 64) -> str:
        shape: dict[str, Any] = {
            "vocab_size": 259,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": context,
            "pad_token_id": PAD,
            "id2label": {i: f"label-{i}" for i in range(num_labels)},
            "label2id": {f"label-{i}": i for i in range(num_labels)},
        }
        torch.manual_seed(3)
        if kind == "llama":
            model = LlamaForSequenceClassification(LlamaConfig(**shape, initializer_range=0.5))
        else:
            model = BertForSequenceClassification(BertConfig(**shape, initializer_range=0.5))
        directory = tmp_path / f"{kind}-{num_labels}-{context}"
        model.save_pretrained(directory)
        byte_tokenizer(context).save_pretrained(directory)
        return str(directory)

    return write
