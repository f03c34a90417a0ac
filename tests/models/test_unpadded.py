"""A batch as one row of tokens, against its rows with their padding."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from kleash.errors import InputError
from kleash.models.checks import can_unpad, check_past
from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel
from kleash.models.unpadded import attend, unpad

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
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
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


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of three prompts, of 9, 5 and 7 tokens, not in order and not equally often; responses of 1 to 6 tokens."""
    torch.manual_seed(2)
    lengths, width = [9, 5, 7], 9
    ids = torch.zeros(3, width, dtype=torch.long)
    mask = torch.zeros(3, width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(1, 40, (length,))
        mask[row, width - length :] = True
    index = torch.tensor([2, 0, 0, 1, 2, 2, 0, 2])
    real = torch.arange(6) < torch.tensor([6, 1, 4, 5, 6, 2, 3, 1]).unsqueeze(-1)
    return ids[index], mask[index], torch.randint(1, 40, (8, 6)).masked_fill(~real, 0), real


def read(model: LanguageModel) -> tuple[Tensor, list[Tensor]]:
    """States of real tokens, and the gradients of some function of them."""
    torch.manual_seed(3)
    prompts, prompt_mask, responses, mask = batch()
    hidden = model.hidden(prompts, prompt_mask, responses, mask)[mask]
    loss = (hidden * torch.randn_like(hidden)).sum()
    weights = list(model.model.base_model.parameters())
    return hidden.detach(), list(torch.autograd.grad(loss, weights))


@contextmanager
def seen(model: LanguageModel) -> Generator[list[torch.Size]]:
    """The shapes of the tokens that a model is given."""
    shapes: list[torch.Size] = []
    handle = model.model.base_model.register_forward_pre_hook(
        lambda _module, _args, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    yield shapes
    handle.remove()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_states_and_gradients_are_those_of_padded_rows(kind: str) -> None:
    model = small(kind, **ARCHITECTURES[kind])
    assert can_unpad(model)
    row, rows = read(replace(model, unpads=True)), read(model)
    torch.testing.assert_close(row[0], rows[0], rtol=1e-4, atol=1e-4)
    for found, expected in zip(row[1], rows[1], strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * max(scale, 1.0))


def test_a_prompt_is_computed_once_and_padding_never() -> None:
    model = replace(small("llama"), unpads=True)
    prompts, prompt_mask, responses, mask = batch()
    with seen(model) as shapes:
        model.hidden(prompts, prompt_mask, responses, mask)
    assert shapes == [(1, 9 + 5 + 7 + int(mask[:, 1:].sum()))]


def test_rows_are_rows_where_one_row_saves_nothing() -> None:
    model = replace(small("llama"), unpads=True)
    prompts, responses = torch.randint(1, 40, (3, 9)), torch.randint(1, 40, (3, 6))
    with seen(model) as shapes:
        model.hidden(prompts, prompts > 0, responses)
    assert shapes == [(3, 14)]


def test_attention_is_afterwards_what_it_was() -> None:
    model = replace(small("llama"), unpads=True)
    before = model.model.config._attn_implementation
    model.hidden(*batch())
    assert model.model.config._attn_implementation == before
    with pytest.raises(IndexError):
        model.hidden(99 + batch()[0], *batch()[1:])
    assert model.model.config._attn_implementation == before


def test_padding_is_part_of_what_a_prompt_is() -> None:
    """Two prompts may have the same ids, one with a padding token that is meant."""
    model = replace(small("llama"), unpads=True)
    ids = torch.tensor([[0, 5, 6, 7]]).expand(6, 4)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[3:, 0] = False
    responses = torch.tensor([[3, 4]]).expand(6, 2)
    hidden = model.hidden(ids, mask, responses)
    alone = replace(model, unpads=False).hidden(ids, mask, responses)
    torch.testing.assert_close(hidden, alone)
    assert not torch.allclose(hidden[0], hidden[3], atol=1e-3)


def test_a_response_of_one_token_needs_the_prompts_alone() -> None:
    model = replace(small("llama"), unpads=True)
    ids, prompt_mask, responses, _ = batch()
    hidden = model.hidden(ids, prompt_mask, responses[:, :1])
    assert hidden.shape == (8, 1, 16)
    alone = replace(model, unpads=False).hidden(ids, prompt_mask, responses[:, :1])
    torch.testing.assert_close(hidden, alone)


def test_padding_holds_nothing_that_could_spread() -> None:
    """0 · inf would be NaN: what is wrong with one token is wrong with those that see it, and no other."""
    row = unpad(*batch())
    torch.manual_seed(4)
    query, key, value = (torch.randn(1, 2, len(row.ids), 4) for _ in range(3))
    key[:, :, 0], value[:, :, 0] = float("inf"), float("nan")
    found, _ = attend(None, query, key, value, None, layout=row.layout)
    sees = torch.cat([row.layout.prompts[0], row.out[row.layout.group == 0].flatten()]).unique()
    finite = found[0].isfinite().all(-1).all(-1)
    assert 0 < len(sees) < len(finite)
    assert sorted(sees.tolist()) == (~finite).nonzero().flatten().tolist()


@pytest.mark.parametrize("given", [{"s_aux": torch.zeros(2)}, {"position_bias": torch.zeros(2)}])
def test_another_attention_is_refused(given: dict[str, Tensor]) -> None:
    layout = unpad(*batch()).layout
    states = torch.zeros(1, 2, len(layout.back), 4)
    with pytest.raises(NotImplementedError):
        attend(None, states, states, states, None, layout=layout, **given)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv"])
def test_a_past_that_is_more_than_keys_and_values_is_rows(kind: str) -> None:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 4,
    }
    sizes |= {"num_heads": 4, "head_dim": 8, "n_groups": 1} if kind == "mamba2" else {}
    config = CONFIG_MAPPING[kind](**sizes)
    model = LanguageModel(kind, AutoModelForCausalLM.from_config(config).eval(), None)
    assert not can_unpad(model)
    with pytest.raises(InputError, match="can't be sampled from"):
        check_past(model)


EXPERTS = {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 0, **EXPERTS}),
        ("phimoe", {"num_local_experts": 4}),
        ("doge", {}),
    ],
)
def test_a_window_that_no_layer_speaks_of_is_rows(kind: str, settings: dict[str, Any]) -> None:
    """It is in the mask alone, and longer than what is tried."""
    model = small(kind, sliding_window=8, **settings)
    assert not can_unpad(model)
    check_past(model)


@pytest.mark.parametrize("kind", ["bloom", "gptj", "mpt"])
def test_what_is_rows_can_be_sampled_from(kind: str) -> None:
    check_past(small(kind, n_layer=2, n_head=4, rotary_dim=4))


def test_what_is_loaded_is_without_padding() -> None:
    assert load_language_model("tiny-reviews/base").unpads


def test_layers_are_told_by_the_configuration_that_they_hold() -> None:
    """A trainer may have put a copy in the model's place."""
    model = replace(small("llama"), unpads=True)
    expected = model.hidden(*batch())
    model.model.config = copy.deepcopy(model.model.config)
    assert can_unpad(model)
    assert torch.equal(model.hidden(*batch()), expected)


def test_an_attention_that_does_not_ask_is_found() -> None:
    model = small("llama")
    for layer in model.model.model.layers:
        layer.self_attn.config = Stubborn(_attn_implementation="eager")
    assert not can_unpad(model)
    with pytest.raises(RuntimeError, match="asked"):
        replace(model, unpads=True).hidden(*batch())


class Stubborn(SimpleNamespace):
    """A configuration that stays what it is."""

    def __setattr__(self, name: str, value: object) -> None: ...
