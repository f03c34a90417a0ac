"""Pairs of models small enough that every response can be listed, and what is true of them."""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.train.small import LETTERS, save_small_model

LONGEST = 3
"""Tokens of a response."""
END, VOCAB = 0, 2 + len(LETTERS)


def save_moved(original: Path, directory: Path, by: float, seed: int = 1) -> Path:
    """The same model with noise on every weight."""
    model = AutoModelForCausalLM.from_pretrained(original)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return _save(model, original, directory)


def save_unigram(original: Path, directory: Path, logits: Tensor, temperature: float = 1.0) -> Path:
    """A model whose next token never depends on anything: logits / temperature."""
    model = AutoModelForCausalLM.from_pretrained(original)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        width = model.lm_head.weight.shape[1]
        model.lm_head.weight.copy_((logits / temperature / width)[:, None].expand(-1, width))
    return _save(model, original, directory)


def _save(model: Any, original: Path, directory: Path) -> Path:
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(original).save_pretrained(directory)
    return directory


def save_pair(directory: Path, seed: int = 5, by: float = 0.15) -> tuple[Path, Path]:
    """A policy and its reference."""
    reference = save_small_model(directory / "reference", seed)
    return save_moved(reference, directory / "policy", by, seed), reference


def responses() -> list[tuple[int, ...]]:
    """Every response: it ends with the ending token, or at the longest."""
    found: list[tuple[int, ...]] = []
    for length in range(1, LONGEST + 1):
        for y in itertools.product(range(VOCAB), repeat=length):
            if END not in y[:-1] and (length == LONGEST or y[-1] == END):
                found.append(y)
    return found


@torch.no_grad()
def log_joint(model: Path, prompts: Tensor) -> Tensor:
    """log P(y | x) of every response to every prompt, [P, R], by the model's own logits in double precision."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.double).eval()
    prefixes = [p for n in range(LONGEST) for p in itertools.product(range(VOCAB), repeat=n)]
    logs: dict[tuple[int, ...], Tensor] = {}
    for prefix in prefixes:
        ids = torch.cat([prompts, torch.tensor(prefix).long().expand(len(prompts), -1)], 1)
        logs[prefix] = loaded(input_ids=ids).logits[:, -1].log_softmax(-1)
    columns = [sum(logs[y[:t]][:, y[t]] for t in range(len(y))) for y in responses()]
    return torch.stack([x for x in columns if isinstance(x, Tensor)], 1)


def true_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KL of each prompt's distribution of responses, [P], by summing over all of them."""
    return (policy.exp() * (policy - reference)).sum(-1)
