"""Keys and values of a rollout, in memory that is taken once: no token copies those before it."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Reserved(DynamicLayer):
    """A layer's keys and values in a buffer with room for all tokens to come.

    Args:
        length: of the longest sequence, prompt and response.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.filled = 0
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of the next tokens; all there are, as views."""
        if self.room is None:
            self.lazy_initialization(key_states, value_states)
            self.room = _room(key_states, self.length), _room(value_states, self.length)
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., start : self.filled, :] = new
        self.keys, self.values = self._held()
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Gives each row's keys and values to so many rows."""
        keys, _ = self._held()
        rows = torch.arange(len(keys), device=keys.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        keys, values = (held[indices] for held in self._held())
        self.room, self.filled = None, 0
        self.update(keys, values)

    def _held(self) -> tuple[Tensor, Tensor]:
        assert self.room is not None, "a prompt comes first"
        keys, values = self.room
        return keys[..., : self.filled, :], values[..., : self.filled, :]


def _room(like: Tensor, length: int) -> Tensor:
    return like.new_empty(*like.shape[:-2], length, like.shape[-1])


def reserved_cache(length: int) -> Cache:
    """An empty cache with room for so many tokens."""
    return Cache(layer_class_to_replicate=cast(Any, partial(Reserved, length)))
