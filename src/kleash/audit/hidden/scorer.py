"""Exact KL after many short contexts, counted in tokens: what the search for hidden drift spends its budget on.

A token counts once each time it is put through either model's forward pass; a prefix whose keys and values are kept
counts once per batch of contexts that share it. A pass that goes back through a model counts `GRADIENT` times as much.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.functional.kl import exact_kl
from kleash.models.policy import LanguageModel

GRADIENT = 3
"""What a token costs that a gradient goes back through: a pass forward, and one of twice the work back."""
ROWS = 512
"""Contexts in a batch."""

Told = Callable[[int, int, float], None]
"""(tokens spent, budget, the largest KL yet) -> a progress bar's business."""


class Followed(NamedTuple):
    """What a policy says after some contexts of one length, and how far the reference is from it there."""

    tokens: Tensor
    """[N, T]."""
    kl: Tensor
    """[N, T], nats at each of them."""
    alive: Tensor
    """[N, T] bool: no end came before."""


class Answers(NamedTuple):
    """What two models say after a context."""

    kl_ref_policy: float
    """KL(π_ref‖π) of the token that follows, nats."""
    nats: list[float]
    """KL(π‖π_ref) at each token of the policy's answer."""
    policy: str
    reference: str


@dataclass(slots=True)
class Scorer:
    """Two models over one vocabulary, and how much was spent on them.

    Args:
        policy: whose drift is sought.
        reference: from which.
        budget: tokens; no call goes beyond it.
        told: hears of every batch.
    """

    policy: LanguageModel
    reference: LanguageModel
    budget: int
    told: Told | None = None
    kept: int = 0
    """Tokens of the budget that are not to be spent yet."""
    spent: int = 0
    best: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Tokens that can still be spent."""
        return max(0, self.budget - self.kept - self.spent)

    @torch.no_grad()
    def after(self, prefix: Sequence[int], tails: Tensor) -> Tensor:
        """KL(π‖π_ref) of the token that follows prefix and tail, nats, of as many of the tails as can be paid for.

        Args:
            prefix: token ids that all of them begin with; may be empty.
            tails: [N, S] token ids, S > 0.

        Returns:
            [n], n ≤ N; inf where there is no number.
        """
        found = []
        for part in tails.split(ROWS):
            fits = (self.left - 2 * len(prefix)) // (2 * tails.shape[1])
            part = part[: max(0, fits)]
            if len(part) == 0:
                break
            own, theirs = (_last(model, prefix, part) for model in (self.policy, self.reference))
            nats = self._read(own, theirs)
            self._spend(2 * (len(prefix) + part.numel()), float(nats.max()))
            found.append(nats)
        return torch.cat(found) if found else torch.zeros(0)

    @torch.no_grad()
    def follow(
        self,
        contexts: Sequence[Sequence[int]],
        steps: int,
        generator: torch.Generator | None = None,
    ) -> Followed:
        """What the policy says after contexts of one length, and the KL at each token of it; some, where not all fit.

        Args:
            contexts: token ids.
            steps: tokens that are said.
            generator: draws them; None: the likeliest are taken.
        """
        each = 2 * (len(contexts[0]) + steps - 1)
        ids = torch.tensor(
            contexts[: self.left // each], dtype=torch.long, device=self.policy.device
        )
        if len(ids) == 0:
            none = torch.zeros(0, steps)
            return Followed(none.long(), none, none.bool())
        said, own = said_after(self.policy, ids, steps, generator)
        whole = torch.cat([ids, said[:, :-1]], 1)
        theirs = _states(self.reference, whole)[:, ids.shape[1] - 1 :]
        nats = self._read(own.flatten(0, 1), theirs.flatten(0, 1)).view_as(said)
        ends = torch.isin(said, torch.tensor(self.policy.eos_ids, device=said.device)).long()
        alive = (ends.cumsum(-1) - ends) == 0
        self._spend(each * len(ids), 0.0)
        return Followed(said.cpu(), nats, alive.cpu())

    def gradient(self, context: Sequence[int]) -> Tensor | None:
        """∂KL/∂(one-hot input) of the token that follows: what each token of the vocabulary would add, to first order.

        Returns:
            [L, V] of a context of L tokens; None: it can't be paid for.
        """
        cost = 2 * GRADIENT * len(context)
        if cost > self.left:
            return None
        value, slope = kl_gradient(self.policy, self.reference, context)
        self._spend(cost, value)
        return slope

    @torch.no_grad()
    def show(self, contexts: Sequence[Sequence[int]], steps: int) -> list[Answers]:
        """What each model says after contexts of one length, likeliest tokens alone; of as many as can be paid for."""
        each = 3 * (len(contexts[0]) + steps - 1)
        contexts = contexts[: self.left // each]
        if not contexts:
            return []
        ids = torch.tensor([list(x) for x in contexts], device=self.policy.device)
        said, own = said_after(self.policy, ids, steps)
        answers, states = said_after(self.reference, ids, steps)
        back = _nats(exact_kl(self.reference.head(states[:, 0]), self.policy.head(own[:, 0])))
        theirs = _states(self.reference, torch.cat([ids, said[:, :-1]], 1))[:, ids.shape[1] - 1 :]
        nats = self._read(own.flatten(0, 1), theirs.flatten(0, 1)).view(len(ids), steps)
        self._spend(each * len(ids), 0.0)
        rows = zip(back.tolist(), nats.tolist(), said.tolist(), answers.tolist(), strict=True)
        return [self._answers(*row) for row in rows]

    def _answers(
        self, back: float, nats: list[float], said: list[int], answer: list[int]
    ) -> Answers:
        kept = _until_end(self.policy, said)
        own, theirs = (
            self.policy.tokenizer.decode(x, skip_special_tokens=True)
            for x in (kept, _until_end(self.reference, answer))
        )
        return Answers(back, nats[: len(kept)], own, theirs)

    def _read(self, own: Tensor, theirs: Tensor) -> Tensor:
        tokens = torch.zeros(len(own), dtype=torch.long, device=own.device)
        read = self.policy.head.read(own, self.reference.head, theirs, tokens, 1.0)
        return _nats(read.kl).cpu()

    def _spend(self, tokens: int, best: float) -> None:
        self.spent += tokens
        if best > self.best:
            self.best = best
            self.curve.append((self.spent, best))
        if self.told is not None:
            self.told(self.spent, self.budget, self.best)


def _nats(kl: Tensor) -> Tensor:
    """A KL that is no number is infinite: one of the models is broken there."""
    return kl.float().nan_to_num(nan=math.inf, posinf=math.inf).clamp(min=0.0)


def _until_end(model: LanguageModel, ids: list[int]) -> list[int]:
    """Tokens up to the first that ends, and that one."""
    ends = [place + 1 for place, token in enumerate(ids) if token in model.eos_ids]
    return ids[: min(ends, default=len(ids))]


def kl_gradient(
    policy: LanguageModel, reference: LanguageModel, context: Sequence[int]
) -> tuple[float, Tensor]:
    """KL(π‖π_ref) of the token that follows, and its gradient with respect to the one-hot input of both, [L, V].

    The same one-hot rows go into both models: the gradient is the sum of what comes back through each.
    """
    sides, leaves = [], []
    for model in (policy, reference):
        embed = model.model.get_input_embeddings()
        ids = torch.tensor([list(context)], device=model.device)
        with torch.no_grad(), model.speaking():
            leaf = embed(ids)
        leaves.append(leaf.detach().requires_grad_())
        with torch.enable_grad(), model.speaking():
            states = model.model.base_model(inputs_embeds=leaves[-1], use_cache=False)
            sides.append(_logits(model, states.last_hidden_state[:, -1].to(model.dtype)))
    with torch.enable_grad():
        nats = exact_kl(*sides)[0]
    slopes = torch.autograd.grad(nats, leaves)
    tables = (x.model.get_input_embeddings().weight.detach() for x in (policy, reference))
    pairs = zip(slopes, tables, strict=True)
    slope = sum((g[0].to(table.dtype) @ table.T for g, table in pairs), start=torch.zeros(()))
    return float(nats.detach()), slope


def _logits(model: LanguageModel, states: Tensor) -> Tensor:
    head = model.head
    logits = torch.nn.functional.linear(states, head.weight.detach(), head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def said_after(
    model: LanguageModel, ids: Tensor, steps: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """So many tokens after contexts of one length, drawn or the likeliest, [N, T], and the states they come from.

    Args:
        model: who speaks.
        ids: [N, L].
        steps: T.
        generator: draws them; None: the likeliest are taken.
    """
    cache, given, said, states = model.new_cache(ids.shape[1] + steps), ids, [], []
    with torch.no_grad(), model.sampling():
        for _ in range(steps):
            state = _pass(model, given, cache)[:, -1].to(model.dtype)
            logits = model.head(state)
            if generator is None:
                given = logits.argmax(-1, keepdim=True)
            else:
                # A broken model says anything: its KL is infinite whatever is drawn.
                share = logits.double().softmax(-1).nan_to_num(nan=1.0).cpu()
                given = torch.multinomial(share, 1, generator=generator).to(ids.device)
            states.append(state)
            said.append(given)
    return torch.cat(said, 1), torch.stack(states, 1)


def _states(model: LanguageModel, ids: Tensor) -> Tensor:
    with model.speaking():
        return model.model.base_model(input_ids=ids, use_cache=False).last_hidden_state.to(
            model.dtype
        )


def _last(model: LanguageModel, prefix: Sequence[int], tails: Tensor) -> Tensor:
    """States [N, H] after prefix and tail; the prefix is computed once."""
    tails = tails.to(model.device)
    if not prefix:
        return _states(model, tails)[:, -1]
    with model.sampling():
        cache = model.new_cache(len(prefix) + tails.shape[1])
        _pass(model, torch.tensor([list(prefix)], device=model.device), cache)
        cache.batch_repeat_interleave(len(tails))
        return _pass(model, tails, cache)[:, -1].to(model.dtype)


def _pass(model: LanguageModel, ids: Tensor, cache: Any) -> Tensor:
    """Last hidden states of more tokens after those that a cache holds."""
    past = cache.get_seq_length() if len(cache.layers) else 0
    places = torch.arange(past, past + ids.shape[1], device=ids.device).expand(len(ids), -1)
    mask = ids.new_ones(len(ids), past + ids.shape[1])
    return model.model.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
