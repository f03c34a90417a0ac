"""Packed weights and reserved memory, against plain products and a cache that grows."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from kleash.models.cache import Reserved, reserved_cache
from kleash.models.config import LoraConfig
from kleash.models.hub import freeze, load_language_model, load_reference
from kleash.models.packed import MOST_ROWS, can_pack, packed
from kleash.models.policy import LanguageModel
from tests.models.test_unpadded import small

BASE = "tiny-reviews/base"
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not can_pack(CPU, torch.float32, 8), reason="this build of torch has no MKL"
)


@torch.no_grad()
def logits(model: LanguageModel, rows: int) -> Tensor:
    ids = torch.arange(5, 5 + rows).view(rows, 1)
    with model.speaking():
        return model.model(input_ids=ids, use_cache=False).logits


def with_adapter() -> LanguageModel:
    torch.manual_seed(0)
    policy = load_language_model(BASE, lora=LoraConfig(rank=4))
    for name, weight in policy.own_weights.items():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    return policy


@pytest.mark.parametrize("kind", ["plain", "adapter", "adapter off", "frozen adapter", "biased"])
@pytest.mark.parametrize("rows", [2, 7, 16])
def test_packed_layers_multiply_as_plain_ones(kind: str, rows: int) -> None:
    models = {
        "plain": lambda: load_language_model(BASE),
        "adapter": with_adapter,
        "adapter off": lambda: load_reference(with_adapter(), BASE),
        "frozen adapter": lambda: freeze(with_adapter()),
        "biased": lambda: small("qwen2"),  # its projections have one
    }
    model = models[kind]()
    plain = logits(model, rows)
    with model.speaking(), packed(model, rows):
        found = logits(model, rows)
        other = logits(model, rows + 1)
        layers = sum("forward" in m.__dict__ for m in model.model.modules())
    assert layers >= 10
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=2e-4)
    # Another number of rows is multiplied as ever, and so is everything afterwards.
    assert torch.equal(other, logits(model, rows + 1))
    assert torch.equal(plain, logits(model, rows))
    assert not any("forward" in m.__dict__ for m in model.model.modules())


def test_what_is_packed_are_the_weights_as_they_are_now() -> None:
    model = load_language_model(BASE)
    with packed(model, 4):
        before = logits(model, 4)
    with torch.no_grad():
        for weight in model.own_weights.values():
            weight.mul_(1.5)
    with packed(model, 4):
        after = logits(model, 4)
    assert not torch.allclose(before, after, atol=0.1)
    torch.testing.assert_close(after, logits(model, 4), rtol=1e-4, atol=1e-3)


def test_an_error_within_leaves_the_layers_as_they_were() -> None:
    model = load_language_model(BASE)
    with pytest.raises(ZeroDivisionError), packed(model, 4):
        raise ZeroDivisionError
    assert not any("forward" in m.__dict__ for m in model.model.modules())


def test_a_forward_that_someone_else_put_there_comes_back() -> None:
    model = load_language_model(BASE)
    head = model.model.get_output_embeddings()
    theirs = head.forward
    head.forward = theirs
    with packed(model, 4):
        assert head.forward is not theirs
    assert head.__dict__["forward"] is theirs


@pytest.mark.parametrize(
    ("device", "dtype", "rows"),
    [
        ("cpu", torch.bfloat16, 8),
        ("cpu", torch.float64, 8),
        ("meta", torch.float32, 8),
        ("cpu", torch.float32, 1),
        ("cpu", torch.float32, MOST_ROWS + 1),
    ],
)
def test_what_cannot_be_packed_is_left_as_it_is(device: str, dtype: torch.dtype, rows: int) -> None:
    assert not can_pack(torch.device(device), dtype, rows)


@torch.no_grad()
def test_reserved_memory_holds_what_a_growing_cache_holds() -> None:
    model = small("qwen2")
    ids = torch.randint(1, 40, (3, 6), generator=torch.Generator().manual_seed(0))
    found: list[list[Tensor]] = []
    for cache in (reserved_cache(10), DynamicCache()):
        steps = [model.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]]
        cache.batch_repeat_interleave(2)
        for token in (1, 2):
            rows = torch.full((6, 1), token)
            steps.append(model.model(input_ids=rows, past_key_values=cache).logits[:, -1])
        cache.batch_select_indices(torch.tensor([5, 0, 3]))
        rows = torch.full((3, 1), 7)
        steps.append(model.model(input_ids=rows, past_key_values=cache).logits[:, -1])
        assert cache.get_seq_length() == 9
        found.append(steps)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@torch.no_grad()
def test_a_token_copies_none_of_those_before_it() -> None:
    model = small("llama")
    cache = reserved_cache(8)
    ids = torch.randint(1, 40, (2, 3))
    model.model(input_ids=ids, past_key_values=cache)
    where = [cast(Any, layer).keys.data_ptr() for layer in cache.layers]
    model.model(input_ids=ids[:, :1], past_key_values=cache)
    assert [cast(Any, layer).keys.data_ptr() for layer in cache.layers] == where


def test_what_is_given_up_makes_way_in_the_same_memory() -> None:
    layer = Reserved(5)
    first, second, third, other = (torch.randn(2, 1, n, 4) for n in (3, 2, 1, 2))
    layer.update(first, -first)
    room = layer.room
    layer.narrow(2)
    assert layer.get_seq_length() == 2
    layer.update(second, -second)
    keys, values = layer.update(third, -third)
    assert layer.room is room
    assert torch.equal(keys, torch.cat([first[:, :, 1:], second, third], dim=2))
    assert torch.equal(values, -keys)
    layer.seat(torch.tensor([1]), other[:1], -other[:1])
    keys, values = layer.held()
    assert torch.equal(keys[1, :, -2:], other[0])
    assert torch.equal(keys[0, :, -1:], third[0])
    assert torch.equal(values, -keys)
