"""Linear layers that are ready for decoding: on a CPU a few rows at a time meet every weight once a token.

MKL keeps a weight in blocks that fit how it multiplies: with 4 to 32 rows that is two to three times as fast as the
plain product. An adapter is added to its layer's weight first, so that it costs nothing a token.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kleash.models.policy import LanguageModel

MOST_ROWS = 256
"""With more the plain product is as fast."""


def can_pack(device: torch.device, dtype: torch.dtype, rows: int) -> bool:
    """Whether weights can be packed for so many rows, and should be."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkl, "_mkl_linear")
        and 1 < rows <= MOST_ROWS
    )


@contextmanager
@torch.no_grad()
def packed(language_model: LanguageModel, rows: int) -> Generator[None]:
    """Within it the model's linear layers multiply `rows` rows by packed copies of their weights, as they are now.

    Other numbers of rows, other types of number, and every other layer, are as ever. No gradients flow, and the model
    must speak as itself (`LanguageModel.speaking`). Where nothing can be packed nothing is done.
    """
    model = language_model.model
    adapter = None if language_model.adapter is None else language_model.adapter.name
    layers = list(_layers(model)) if can_pack(model.device, language_model.dtype, rows) else []
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _forward(layer, adapter, rows)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _layers(module: nn.Module) -> Generator[Any]:
    """Linear layers; of one with an adapter the whole, and not the plain one in it."""
    for child in module.children():
        if type(child) is nn.Linear or _has_adapter(child):
            yield child
        else:
            yield from _layers(child)


def _has_adapter(module: nn.Module) -> bool:
    return type(getattr(module, "base_layer", None)) is nn.Linear and hasattr(module, "lora_A")


def _forward(layer: Any, adapter: str | None, rows: int) -> Callable[..., Tensor]:
    plain: nn.Linear = getattr(layer, "base_layer", layer)
    weight: Tensor = plain.weight
    if plain is not layer and adapter in layer.lora_A:
        weight = weight + layer.get_delta_weight(adapter)
    blocks = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)
    return partial(_multiply, layer.forward, plain, blocks, rows)


def _multiply(
    otherwise: Callable[..., Tensor],
    plain: nn.Linear,
    blocks: Tensor,
    rows: int,
    inputs: Tensor,
    *args: Any,
) -> Tensor:
    if inputs.numel() != rows * plain.in_features or inputs.dtype != blocks.dtype:
        return otherwise(inputs, *args)
    flat = inputs.reshape(rows, plain.in_features)
    # The plain weight is what MKL would take for another number of rows, which this is not.
    out = torch.ops.mkl._mkl_linear(flat, blocks, plain.weight, plain.bias, rows)
    return out.view(*inputs.shape[:-1], plain.out_features)
