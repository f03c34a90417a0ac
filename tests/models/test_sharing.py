"""Prompts that are computed once for all rows that have them, against every row by itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel, can_share_prompts

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 4},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 4},
    "gpt2": {},
    "gpt_neox": {},
}


def small(kind: str, **settings: Any) -> LanguageModel:
    """A random model of an architecture."""
    torch.manual_seed(1)
    config = CONFIG_MAPPING[kind](**{**SHAPE, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    return LanguageModel(kind, model, None)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of three prompts, of 9, 5 and 7 tokens, not in order and not equally often."""
    torch.manual_seed(2)
    lengths, width = [9, 5, 7], 9
    ids = torch.zeros(3, width, dtype=torch.long)
    mask = torch.zeros(3, width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(1, 40, (length,))
        mask[row, width - length :] = True
    index = torch.tensor([2, 0, 0, 1, 2, 2, 0, 2])
    return ids[index], mask[index], torch.randint(1, 40, (8, 6))


def read(model: LanguageModel) -> tuple[Tensor, list[Tensor]]:
    """States, and the gradients of some function of them."""
    torch.manual_seed(3)
    hidden = model.hidden(*batch())
    loss = (hidden * torch.randn_like(hidden)).sum()
    weights = list(model.model.base_model.parameters())
    return hidden.detach(), list(torch.autograd.grad(loss, weights))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_states_and_gradients_are_those_of_rows_alone(kind: str) -> None:
    model = small(kind, **ARCHITECTURES[kind])
    assert can_share_prompts(model)
    shared, alone = read(replace(model, shares_prompts=True)), read(model)
    mask = batch()[1]
    assert mask.float().mean() < 1
    torch.testing.assert_close(shared[0], alone[0], rtol=1e-4, atol=1e-4)
    for found, expected in zip(shared[1], alone[1], strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * max(scale, 1.0))


def test_a_prompt_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(small("llama"), shares_prompts=True)
    seen: list[torch.Size] = []
    model.model.base_model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    model.hidden(*batch())
    assert seen == [(3, 9), (8, 5)]
    # Where no two rows have the same prompt, there is nothing to share.
    ids, mask, responses = batch()
    seen.clear()
    some = torch.tensor([1, 3, 0])
    model.hidden(ids[some], mask[some], responses[some])
    assert seen == [(3, 14)]


def test_padding_is_part_of_what_a_prompt_is() -> None:
    """Two prompts may have the same ids, one with a padding token that is meant."""
    model = replace(small("llama"), shares_prompts=True)
    ids = torch.tensor([[0, 5, 6, 7]]).expand(6, 4)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[3:, 0] = False
    responses = torch.tensor([[3, 4]]).expand(6, 2)
    hidden = model.hidden(ids, mask, responses)
    alone = replace(model, shares_prompts=False).hidden(ids, mask, responses)
    torch.testing.assert_close(hidden, alone)
    assert not torch.allclose(hidden[0], hidden[3], atol=1e-3)


def test_a_response_of_one_token_needs_the_prompts_alone() -> None:
    model = replace(small("llama"), shares_prompts=True)
    ids, mask, responses = batch()
    hidden = model.hidden(ids, mask, responses[:, :1])
    assert hidden.shape == (8, 1, 16)
    torch.testing.assert_close(
        hidden, replace(model, shares_prompts=False).hidden(ids, mask, responses[:, :1])
    )


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv"])
def test_a_past_that_is_more_than_keys_and_values_is_not_shared(kind: str) -> None:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 4,
    }
    sizes |= {"num_heads": 4, "head_dim": 8, "n_groups": 1} if kind == "mamba2" else {}
    config = CONFIG_MAPPING[kind](**sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not can_share_prompts(LanguageModel(kind, model, None))


def test_what_is_loaded_shares() -> None:
    assert load_language_model("tiny-reviews/base").shares_prompts
