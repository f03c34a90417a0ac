"""Responses that wait for their turn, and the keys and values of their prompts: made once, and ahead of need."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kleash.models.cache import Cache, Prefix, prefixes
from kleash.models.policy import LanguageModel

AHEAD = 8
"""One prompt is made ready for so many responses that run: one at a time would be a pass for each."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Prompts in a row that the next responses are to."""

    first: int
    """Which prompt is the first of them."""
    layers: list[Prefix]
    logits: Tensor
    """[N, V], of the first token of a response to each."""


class Waiting:
    """The responses to some prompts, in order: first those that have begun, then those that wait.

    Args:
        policy: who answers.
        ids: [P, L], padded on the left.
        mask: [P, L] bool, True at real tokens.
        group_size: G, responses to each.
    """

    def __init__(self, policy: LanguageModel, ids: Tensor, mask: Tensor, group_size: int) -> None:
        self.policy, self.ids, self.mask, self.group_size = policy, ids, mask, group_size
        self.begun = 0
        self.ahead = 1
        self.ready: Ready | None = None

    def __len__(self) -> int:
        return len(self.ids) * self.group_size - self.begun

    def begin(self, count: int, length: int) -> tuple[Cache, Tensor]:
        """The first responses: a cache of so many rows, with room for `length` tokens, and their logits [count, V]."""
        cache, logits = self._read(slice(0, self._prompts(count)), length)
        which = torch.arange(count, device=logits.device) // self.group_size
        if count % self.group_size:
            last = which[-1:]
            self.ready = Ready(self._prompts(count) - 1, prefixes(cache, last), logits[last])
        if self.group_size > 1:
            cache.batch_select_indices(which)
        self.begun, self.ahead = count, max(1, count // AHEAD)
        return cache, logits[which]

    def next(self, count: int) -> Iterator[tuple[Tensor, Ready, Tensor]]:
        """So many of those that wait begin, some at a time: which, with what is ready, and which prompt of it each has.

        A prompt stays ready until the last response to it has begun.
        """
        while count:
            ready = self.ready = self.ready or self._prepare(count)
            end = (ready.first + len(ready.logits)) * self.group_size
            stop = min(self.begun + count, end)
            rows = torch.arange(self.begun, stop, device=self.ids.device)
            count -= stop - self.begun
            self.begun = stop
            if stop == end:
                self.ready = None
            yield rows, ready, rows // self.group_size - ready.first

    def _prepare(self, count: int) -> Ready:
        first = self.begun // self.group_size
        prompts = slice(first, first + max(self.ahead, self._prompts(count)))
        cache, logits = self._read(prompts, self.ids.shape[1])
        return Ready(first, prefixes(cache), logits)

    def _prompts(self, responses: int) -> int:
        """How many prompts so many responses are to."""
        return -(-responses // self.group_size)

    def _read(self, prompts: slice, length: int) -> tuple[Cache, Tensor]:
        mask = self.mask[prompts].long()
        cache = self.policy.new_cache(length)
        logits = self.policy.next_logits(
            cache,
            input_ids=self.ids[prompts],
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        )
        return cache, logits
