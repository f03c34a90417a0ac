"""Keys and values of a rollout, in memory that is taken once: no token copies those before it.

All rows end at the same place, where the next token of each is written: a row that came later is one with more padding
on its left. So shapes are always [rows, heads, length, D], whatever is in them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Reserved(DynamicLayer):
    """A layer's keys and values in a buffer with room for all tokens to come.

    Where tokens come that there is no room for, those held move to its front: what `narrow` gave up makes way.

    Args:
        length: of the longest sequence, prompt and response, and of what may go by until its row is replaced.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.first = self.filled = 0
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of the next tokens; all there are, as views."""
        if self.room is None:
            self.lazy_initialization(key_states, value_states)
            self.room = _room(key_states, self.length), _room(value_states, self.length)
        if self.filled + key_states.shape[-2] > self.length:
            self._move_to_front()
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., start : self.filled, :] = new
        self.keys, self.values = self.held()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many places are held of each row."""
        return self.filled - self.first

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Gives each row's keys and values to so many rows."""
        keys, _ = self.held()
        rows = torch.arange(len(keys), device=keys.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        keys, values = (held[indices] for held in self.held())
        self.room, self.first, self.filled = None, 0, 0
        self.update(keys, values)

    def seat(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Puts other sequences in the place of these rows; what is left of theirs is padding."""
        assert self.room is not None, "a prompt comes first"
        start = self.filled - keys.shape[-2]
        for room, new in zip(self.room, (keys, values), strict=True):
            room[rows, :, start : self.filled] = new

    def narrow(self, width: int) -> None:
        """Gives up all but the last places."""
        self.first = max(self.first, self.filled - width)

    def held(self) -> tuple[Tensor, Tensor]:
        """The keys and values of all places that were not given up, as views."""
        assert self.room is not None, "a prompt comes first"
        keys, values = self.room
        return keys[..., self.first : self.filled, :], values[..., self.first : self.filled, :]

    def _move_to_front(self) -> None:
        assert self.room is not None, "a prompt comes first"
        held = self.get_seq_length()
        for room in self.room:
            room[..., :held, :] = room[..., self.first : self.filled, :].clone()
        self.first, self.filled = 0, held


def _room(like: Tensor, length: int) -> Tensor:
    return like.new_empty(*like.shape[:-2], length, like.shape[-1])


Prefix = tuple[Tensor, Tensor]
"""Of each of some prompts its keys and values in one layer, [prompts, heads, length, D]."""


def prefixes(cache: Cache, rows: Tensor | None = None) -> list[Prefix]:
    """The keys and values of prompts that a cache has just been given, by layer: copies of some, or views of all."""
    layers = [layer.held() for layer in _reserved(cache)]
    return layers if rows is None else [(keys[rows], values[rows]) for keys, values in layers]


def seat(cache: Cache, rows: Tensor, prompts: Sequence[Prefix], which: Tensor) -> None:
    """Begins other sequences in the place of some rows, each with one of the prompts."""
    for layer, (keys, values) in zip(_reserved(cache), prompts, strict=True):
        layer.seat(rows, keys[which], values[which])


def narrow(cache: Cache, width: int) -> None:
    """Gives up all but the last places of each row."""
    for layer in _reserved(cache):
        layer.narrow(width)


def _reserved(cache: Cache) -> list[Reserved]:
    return cast(list[Reserved], cache.layers)


def reserved_cache(length: int) -> Cache:
    """An empty cache with room for so many tokens."""
    return Cache(layer_class_to_replicate=cast(Any, partial(Reserved, length)))
