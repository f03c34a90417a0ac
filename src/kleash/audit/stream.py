"""Responses that one of two models gave, and what both say of every token: the raw material of a comparison."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.pairwise import Pairwise, pairwise
from kleash.models.policy import Head, LanguageModel
from kleash.rollout.rollout import Rollout

CHUNK_BYTES = 48 * 2**20
"""Of one model's logits that are made at a time."""
MICRO_BATCH = 16
"""Responses whose hidden states are computed at a time."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Tokens that one model drew, in the order of responses; N tokens of B responses."""

    read: Pairwise
    """[N] each; the model that drew them comes first."""
    tokens: Tensor
    """[N]."""
    response: Tensor
    """[N], which response a token is of."""
    position: Tensor
    """[N], which of its tokens."""
    prompt: Tensor
    """[B], which prompt a response answers."""

    @property
    def count(self) -> int:
        """B."""
        return len(self.prompt)

    @property
    def log_ratio(self) -> Tensor:
        """log q/p of the tokens drawn, [N], in double precision."""
        return self.read.logprobs.double() - self.read.other_logprobs.double()

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [B]."""
        return torch.bincount(self.response, minlength=self.count)

    def totals(self, values: Tensor) -> Tensor:
        """Sums over each response's tokens, [B]."""
        zeros = torch.zeros(self.count, dtype=torch.double)
        return zeros.index_add_(0, self.response, values.double())

    @classmethod
    def joined(cls, parts: Sequence["Stream"]) -> "Stream":
        """Several as one."""
        offsets = torch.tensor([0, *(part.count for part in parts)]).cumsum(0).tolist()
        return cls(
            Pairwise(*(torch.cat(x) for x in zip(*(part.read for part in parts), strict=True))),
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.response + at for part, at in zip(parts, offsets, strict=False)]),
            torch.cat([part.position for part in parts]),
            torch.cat([part.prompt for part in parts]),
        )


class Heard(NamedTuple):
    """A model at the tokens of a rollout."""

    hidden: Tensor
    """[N, H], in the order of responses."""
    head: Head


@torch.no_grad()
def hear(model: LanguageModel, rollout: Rollout) -> Heard:
    """The states from which a model predicts a rollout's tokens; a few responses at a time."""
    found: list[Tensor] = []
    for index in torch.arange(len(rollout.mask)).split(MICRO_BATCH):
        part = rollout.rows(index)
        states = model.hidden(part.prompt_ids, part.prompt_mask, part.response_ids, part.mask)
        found.append(states[part.mask])
    return Heard(torch.cat(found), model.head)


@torch.no_grad()
def listen(
    rollout: Rollout,
    prompts: Iterable[int],
    sampler: Heard,
    other: Heard,
    temperature: float,
) -> tuple[Stream, Tensor]:
    """What both models say of a rollout's tokens, and Σ (q − p) over its states, [V].

    Args:
        rollout: of the sampler.
        prompts: which of all prompts each response answers.
        sampler: the model that drew the tokens.
        other: the other.
        temperature: divides the logits of both.
    """
    tokens = rollout.response_ids[rollout.mask]
    response, position = (x[rollout.mask] for x in _places(rollout.mask))
    vocab = len(sampler.head.weight)
    gained = torch.zeros(vocab, dtype=torch.double, device=tokens.device)
    parts: list[Pairwise] = []
    carried = 0.0
    for rows in torch.arange(len(tokens)).split(max(1, CHUNK_BYTES // (4 * vocab))):
        chosen = slice(int(rows[0]), int(rows[-1]) + 1)
        logits, theirs = (side.head(side.hidden[chosen]) for side in (sampler, other))
        if temperature != 1:
            logits, theirs = logits.div_(temperature), theirs.div_(temperature)
        starts = position[chosen] == 0
        read, carried = pairwise(
            logits, theirs, tokens[chosen], starts, carried=carried, gained=gained
        )
        parts.append(Pairwise(*(x.cpu() for x in read)))
    read = Pairwise(*(torch.cat(x) for x in zip(*parts, strict=True)))
    tokens, response, position = (x.cpu() for x in (tokens, response, position))
    return Stream(read, tokens, response, position, torch.tensor(list(prompts))), gained


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, steps = (torch.arange(n, device=mask.device) for n in mask.shape)
    return rows[:, None].expand_as(mask), steps.expand_as(mask)
