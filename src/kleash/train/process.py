"""The random streams that are a process's own, as tensors: a reward of the user's may draw from them."""

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def random_tensors() -> dict[str, Tensor]:
    """The states of the streams that are the process's own: a reward of the user's may draw from them."""
    version, words, gauss = random.getstate()
    legacy = cast(Any, np.random.get_state(legacy=False))
    tensors = {
        "random.torch": torch.get_rng_state(),
        "random.python": torch.tensor([version, *words]),
        "random.numpy": torch.tensor([*legacy["state"]["key"].tolist(), legacy["state"]["pos"]]),
        "random.gauss": torch.tensor(
            [torch.nan if gauss is None else gauss, legacy["has_gauss"], legacy["gauss"]],
            dtype=torch.double,
        ),
    }
    number = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    for index in range(number):  # pragma: no cover - needs a GPU
        tensors[f"random.cuda.{index}"] = torch.cuda.get_rng_state(index)
    return tensors


def put_random(tensors: Mapping[str, Tensor]) -> None:
    """Puts the streams where they were."""
    gauss, has_gauss, legacy_gauss = tensors["random.gauss"].tolist()
    version, *words = tensors["random.python"].tolist()
    *key, pos = tensors["random.numpy"].tolist()
    random.setstate((version, tuple(words), None if gauss != gauss else gauss))
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": np.array(key, dtype=np.uint32), "pos": pos},
            "has_gauss": int(has_gauss),
            "gauss": legacy_gauss,
        }
    )
    torch.set_rng_state(tensors["random.torch"])
    number = sum(name.startswith("random.cuda.") for name in tensors)
    for index in range(number):  # pragma: no cover - needs a GPU
        torch.cuda.set_rng_state(tensors[f"random.cuda.{index}"], index)
