"""How the search moves from context to context: screening the vocabulary, extending what was found, and climbing.

A context is a prefix (an ordinary prompt) and a tail of a few tokens, which is what is sought. All moves note what they
scored in a `Pool` and spend through a `Scorer`, which stops them where the budget ends.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.audit.hidden.scorer import Scorer

Tail = tuple[int, ...]


class Found(NamedTuple):
    """A context that was scored."""

    nats: float
    prefix: Tail
    tail: Tail
    by: str

    @property
    def ids(self) -> Tail:
        """All of it."""
        return self.prefix + self.tail


@dataclass(slots=True)
class Pool:
    """What was found, the largest KL first; only as many as are worth going on from."""

    keep: int = 256
    found: dict[tuple[Tail, Tail], Found] = field(default_factory=dict)

    def add(self, prefix: Tail, tails: Tensor, nats: Tensor, by: str) -> None:
        """Notes the largest of a batch."""
        top = nats.topk(min(len(nats), self.keep)).indices.tolist()
        for index in top:
            tail = tuple(tails[index].tolist())
            known = self.found.get((prefix, tail))
            if known is None or nats[index] > known.nats:
                self.found[prefix, tail] = Found(float(nats[index]), prefix, tail, by)
        if len(self.found) > 4 * self.keep:
            self.found = {(x.prefix, x.tail): x for x in self.best(self.keep)}

    def best(self, count: int) -> list[Found]:
        """The largest, at most so many; ties in the order of their tokens."""
        order = sorted(self.found.values(), key=lambda x: (-x.nats, x.prefix, x.tail))
        return order[:count]


def score(scorer: Scorer, pool: Pool, prefix: Tail, tails: Tensor, by: str) -> Tensor:
    """Scores tails behind a prefix and notes them; nats of as many as were paid for."""
    nats = scorer.after(prefix, tails)
    pool.add(prefix, tails[: len(nats)], nats, by)
    return nats


def screen(
    scorer: Scorer, pool: Pool, prefix: Tail, before: Tail, tokens: Tensor, by: str
) -> Tensor:
    """KL after prefix, `before` and each of some tokens: a whole vocabulary costs two tokens each."""
    nats = scorer.after(prefix + before, tokens.unsqueeze(1))
    count = len(nats)
    head = torch.tensor(before, dtype=torch.long).expand(count, -1)
    pool.add(prefix, torch.cat([head, tokens[:count].unsqueeze(1)], 1), nats, by)
    return nats


def neighbours(slope: Tensor, tail: Tail, tokens: Tensor, top: int) -> Tensor:
    """Tails that differ in one place, by the tokens that would add most to first order: HotFlip's.

    Args:
        slope: [S, V], gradient of the KL with respect to the tail's one-hot rows.
        tail: S token ids.
        tokens: those that may stand there.
        top: how many at each place.

    Examples:
        >>> slope = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
        >>> neighbours(slope, (0, 0), torch.arange(3), 1)
        tensor([[1, 0],
                [0, 2]])
    """
    rows = []
    for place, now in enumerate(tail):
        gain = slope[place, tokens].clone()
        gain[tokens == now] = -torch.inf
        chosen = tokens[gain.topk(min(top, len(tokens) - 1)).indices]
        part = torch.tensor(tail).repeat(len(chosen), 1)
        part[:, place] = chosen
        rows.append(part)
    return torch.cat(rows)


def climb(
    scorer: Scorer,
    pool: Pool,
    start: Found,
    tokens: Tensor,
    *,
    top: int,
    steps: int,
) -> Found:
    """Substitutes one token at a time, by gradient and then exactly, while the KL grows: greedy coordinate gradient.

    Args:
        scorer: is paid.
        pool: notes all.
        start: from which context.
        tokens: those that may stand in its tail.
        top: substitutes scored at each place of it.
        steps: at most so many substitutions.
    """
    now = start
    for _ in range(steps):
        slope = scorer.gradient(now.ids)
        if slope is None or not torch.isfinite(slope).all():
            break
        tails = neighbours(slope[len(now.prefix) :].cpu(), now.tail, tokens, top)
        nats = score(scorer, pool, now.prefix, tails, "gradient")
        if len(nats) == 0 or float(nats.max()) <= now.nats:
            break
        best = int(nats.argmax())
        now = Found(float(nats[best]), now.prefix, tuple(tails[best].tolist()), "gradient")
    return now


def pairs(firsts: Iterable[int], seconds: Sequence[int]) -> Tensor:
    """All pairs of two lists, [N, 2].

    Examples:
        >>> pairs([1, 2], [3])
        tensor([[1, 3],
                [2, 3]])
    """
    return torch.cartesian_prod(torch.tensor(list(firsts)), torch.tensor(list(seconds)))
