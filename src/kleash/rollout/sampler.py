"""The local sampler: a key-value cache, prompts computed once per group, finished rows replaced by those that wait.

A token is drawn by inverting the distribution function at one uniform number a row; the numbers are drawn for all rows
whether they run or not, so that a token has the same one whenever its row begins and whoever was dropped before. What
runs beside a row moves its logits in their last digits alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor

from kleash.errors import ConfigError, InputError
from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.models.cache import Cache, narrow, seat
from kleash.models.packed import packed
from kleash.models.policy import LanguageModel
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.waiting import Waiting

WORTH_DROPPING = 0.5
"""Share of rows that have to be finished for these to be dropped from the cache."""
LEAST_SAVED = 300
"""Rows dropped times tokens left: with fewer, packing the weights anew for the rest costs more than that saves."""
WORTH_MOVING = 8
"""The longest sequence through this is how many tokens a cache has room for beyond it, until what it holds is moved."""
LOOK_EVERY = {"cpu": 1}
"""Tokens after which a device is asked which rows are finished, where that is not `LOOK_SELDOM`."""
LOOK_SELDOM = 8
"""The same of all others: asking is waiting for it."""


class Sharing(Protocol):
    """How several processes divide the prompts of a rollout among them."""

    def share(self, count: int, /) -> range:
        """Which of so many prompts are this process's."""
        ...

    def gather(self, rows: Tensor, num_groups: int, /) -> Tensor:
        """The rows of all processes, of which each has those of its prompts."""
        ...


def encode_prompts(
    policy: LanguageModel, prompts: Sequence[str], max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    """Prompts as token ids [P, L], padded on the left, and their mask [P, L] bool.

    Raises:
        InputError: a prompt is empty, or with its response is longer than the model's context.
    """
    rows: list[list[int]] = [policy.encode(prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise InputError("a prompt has no tokens", expected="at least one", got=repr(prompt))
        if policy.context is not None and len(row) + max_new_tokens > policy.context:
            raise InputError(
                "a prompt is longer than the context",
                expected=f"at most {policy.context - max_new_tokens} tokens: "
                f"the context of {policy.name} is {policy.context}, of which "
                f"rollout.max_new_tokens takes {max_new_tokens}",
                got=f"{len(row)} tokens: {prompt[:60]!r}{'…' if len(prompt) > 60 else ''}",
                do="shorten the prompt, or lower rollout.max_new_tokens",
            )
    return pad_prompts(policy, rows)


def pad_prompts(policy: LanguageModel, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids [P, L] of prompts that are in tokens already, padded on the left, and their mask [P, L] bool."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), policy.pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = True
    return ids.to(policy.device), mask.to(policy.device)


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [B] by inverse transform: the first v whose cumulative probability exceeds u · total.

    Summed in float64: a float32 sum over a vocabulary can't tell its rarest tokens from rounding.

    Examples:
        >>> draw(torch.tensor([[0.25, 0.75]]).log().expand(2, 2), torch.tensor([0.2, 0.3]).double())
        tensor([0, 1])
    """
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.double)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    return (
        torch.searchsorted(cumulative, target, right=True)
        .squeeze(-1)
        .clamp(max=logprobs.shape[-1] - 1)
    )


def decode_responses(
    tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> list[str]:
    """The texts of responses as they stand behind their prompts, so that prompt + response is the whole text.

    A decoder may treat the beginning of a text in its own way: that of SentencePiece tokenizers drops the space that
    the first token carries. So the whole is decoded, and what the prompt alone decodes to is cut off. Where the whole
    does not begin with that (a response that starts inside a character, for one), the response is decoded alone.

    Args:
        tokenizer: of the policy.
        prompts: P rows of token ids.
        responses: P·G rows of token ids, the group of the first prompt first.
    """
    repeats = len(responses) // len(prompts)
    behind = [prompt for prompt in prompts for _ in range(repeats)]
    starts = [text for text in _decode(tokenizer, prompts) for _ in range(repeats)]
    pairs = zip(behind, responses, strict=True)
    wholes = _decode(tokenizer, [[*prompt, *response] for prompt, response in pairs])
    texts = [whole.removeprefix(start) for whole, start in zip(wholes, starts, strict=True)]
    apart = [i for i, whole in enumerate(wholes) if not whole.startswith(starts[i])]
    for i, text in zip(apart, _decode(tokenizer, [responses[i] for i in apart]), strict=True):
        texts[i] = text
    return texts


def _decode(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Token ids as text, special tokens left out."""
    if not rows:
        return []
    return tokenizer.batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@torch.no_grad()
def sample(
    policy: LanguageModel,
    prompts: Sequence[str],
    config: RolloutConfig,
    generator: torch.Generator,
    sharing: Sharing | None = None,
    encoded: Sequence[list[int]] | None = None,
) -> Rollout:
    """G responses to each prompt, the group of the first prompt first.

    Args:
        policy: who answers.
        prompts: P texts.
        config: group size, length, temperature, how many run at once.
        generator: the one source of randomness, on the CPU, so that seeds mean the same on every device.
        sharing: among processes that answer some of the prompts each, and all get the whole; None: this one is alone.
        encoded: the prompts in tokens, known to fit its context; None: as the policy puts them.

    Raises:
        InputError: a prompt is empty or too long, or rows of this policy can't begin at different times.
    """
    check_running(policy, config)
    if encoded is None:
        ids, mask = encode_prompts(policy, prompts, config.max_new_tokens)
    else:
        ids, mask = pad_prompts(policy, encoded)
    own = range(len(ids)) if sharing is None else sharing.share(len(ids))
    repeats = config.group_size
    prompt_ids, prompt_mask = (x.repeat_interleave(repeats, 0) for x in (ids, mask))
    with policy.sampling():
        decoding = _Decoding(policy, ids, mask, config, generator, own)
        drawn = decoding.run()
    if sharing is not None:
        drawn = tuple(sharing.gather(x, len(ids)) for x in drawn)
    response_ids, response_mask, logprobs, finished = drawn
    decoding.give_back_numbers(int(response_mask.any(0).sum()))
    responses = decode_responses(
        policy.tokenizer,
        [row[-length:] for row, length in _rows(ids, mask)],
        [row[:length] for row, length in _rows(response_ids, response_mask)],
    )
    return Rollout(
        prompts=tuple(p for p in prompts for _ in range(repeats)),
        responses=tuple(responses),
        prompt_index=torch.arange(len(prompts), device=ids.device).repeat_interleave(repeats),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        mask=response_mask,
        sampled_logprobs=logprobs,
        finished=finished,
    )


def check_running(policy: LanguageModel, config: RolloutConfig) -> None:
    """That rows of a policy can begin at different times, where that is asked for.

    Raises:
        ConfigError: its past is not keys and values that can be kept row by row.
    """
    if config.max_running is not None and not policy.unpads:
        raise ConfigError(
            f"responses of {policy.name} can't begin at different times",
            expected="no rollout.max_running, or a model with keys and values of all of its past",
            got=f"rollout.max_running = {config.max_running}, and {type(policy.model).__name__}",
            do="leave out rollout.max_running; fewer rollout.num_prompts need less memory",
        )


def _rows(ids: Tensor, mask: Tensor) -> Iterator[tuple[list[int], int]]:
    """Each row of ids with the number of those that count; one copy from a device for all."""
    return zip(ids.tolist(), mask.sum(-1).tolist(), strict=True)


class _Decoding:
    """Some responses being sampled: the cache holds the rows that run, the outputs hold all.

    Of several processes each samples the rows of some prompts, with the numbers that they have where one samples all.
    """

    cache: Cache
    places: Tensor
    """How many places before the last each is, from 1."""

    def __init__(
        self,
        policy: LanguageModel,
        ids: Tensor,
        mask: Tensor,
        config: RolloutConfig,
        generator: torch.Generator,
        own: range,
    ) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        self.total = len(ids) * config.group_size
        self.own = slice(own.start * config.group_size, own.stop * config.group_size)
        ids, mask = ids[own.start : own.stop], mask[own.start : own.stop]
        self.waiting = Waiting(policy, ids, mask, config.group_size)
        size, length, device = len(self.waiting), config.max_new_tokens, ids.device
        # The last column is for what a row draws at the limit before it is looked at, and is cut off.
        shape = size, length + 1
        self.tokens = torch.full(shape, policy.pad_id, device=device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.logprobs = torch.zeros(shape, device=device)
        self.numbers = torch.zeros((length + 1, size), dtype=torch.double, device=device)
        self.finished = torch.zeros(size, dtype=torch.bool, device=device)
        self.rows = torch.arange(min(size, config.max_running or size), device=device)
        self.drawn = torch.zeros_like(self.rows)
        """Tokens of each row that runs."""
        self.steps = self.oldest = self.youngest = 0
        """Tokens since the beginning, and of the rows that have most and fewest, as far as is known without asking."""
        self.lengths = mask.sum(-1).repeat_interleave(config.group_size)
        self.width = ids.shape[1]
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.look_every = LOOK_EVERY.get(device.type, LOOK_SELDOM)
        self.states: list[Tensor] = []
        """Of the generator, after each token."""

    def run(self) -> tuple[Tensor, ...]:
        """Tokens, their mask, their log-probabilities, and which rows ended themselves."""
        limit = self.config.max_new_tokens
        room = self.width + limit
        if len(self.rows) < len(self.waiting):
            room += max(self.look_every, room // WORTH_MOVING)
        self.places = torch.arange(room, 0, -1, device=self.rows.device)
        self.cache, logits = self.waiting.begin(len(self.rows), room)
        with ExitStack() as packing:
            packing.enter_context(packed(self.policy, len(self.rows)))
            self._draw(logits)
            while not self._over():
                if len(self.rows) != len(logits):
                    packing.close()
                    packing.enter_context(packed(self.policy, len(self.rows)))
                logits = self._step()
                self._draw(logits)
        outputs = (x[:, :limit].contiguous() for x in (self.tokens, self.mask, self.logprobs))
        return *outputs, self.finished

    def _step(self) -> Tensor:
        """The logits of each row's next token; all rows end where the longest does."""
        length = self.lengths[self.rows] + self.drawn
        places = self.places[-(self.width + self.oldest) :]
        return self.policy.next_logits(
            self.cache,
            input_ids=self.tokens[self.rows, self.drawn - 1].unsqueeze(-1),
            attention_mask=(places <= length.unsqueeze(-1)).long(),
            position_ids=(length - 1).unsqueeze(-1),
        )

    def _draw(self, logits: Tensor) -> None:
        """The next token of every row."""
        if len(self.states) <= self.oldest < self.config.max_new_tokens:
            numbers = self._numbers(pinned=logits.device.type == "cuda")[self.own]
            self.numbers[self.oldest].copy_(numbers, non_blocking=True)
            self.states.append(self.generator.get_state())
        self._take(self.rows, self.drawn, logits)
        self.drawn = (self.drawn + 1).clamp(max=self.config.max_new_tokens)
        self.steps, self.oldest, self.youngest = self.steps + 1, self.oldest + 1, self.youngest + 1

    def _take(self, rows: Tensor, at: Tensor, logits: Tensor) -> None:
        """Draws token `at` of rows that run and records it; a GPU is not waited for."""
        finished = self.finished[rows]
        running = ~finished & (at < self.config.max_new_tokens)
        logprobs = log_softmax(logits, self.config.temperature)
        token = torch.where(running, draw(logprobs, self.numbers[at, rows]), self.policy.pad_id)
        self.tokens[rows, at] = token
        self.mask[rows, at] = running
        self.logprobs[rows, at] = torch.where(running, token_logprobs(logprobs, token), 0.0)
        self.finished[rows] = finished | (running & torch.isin(token, self.eos))

    def _over(self) -> bool:
        """Whether no row runs or waits, as far as is known without asking a device too often."""
        limit = self.youngest >= self.config.max_new_tokens
        if limit and not self.waiting:
            return True
        return (limit or self.steps % self.look_every == 0) and self._look()

    def _look(self) -> bool:
        """Rows that ended make room for those that wait, or are dropped; whether no row runs."""
        limit = self.config.max_new_tokens
        ended = self.finished[self.rows] | (self.drawn == limit)
        drawn: list[int] = torch.where(ended, -1, self.drawn).tolist()
        free = [slot for slot, tokens in enumerate(drawn) if tokens < 0]
        begun = free[: len(self.waiting)]
        running = [tokens for tokens in drawn if tokens >= 0] + [1] * len(begun)
        if not running:
            return True
        self.oldest, self.youngest = max(running), min(running)
        if self.oldest < self.steps:
            narrow(self.cache, self.width + self.oldest - 1)
        if begun:
            self._begin(begun)
        elif len(free) >= WORTH_DROPPING * len(drawn) and (
            len(free) * (limit - self.youngest) >= LEAST_SAVED
        ):
            self._keep([slot for slot, tokens in enumerate(drawn) if tokens >= 0])
        return False

    def _begin(self, slots: list[int]) -> None:
        """Responses that wait take the places of rows that ended, and draw their first tokens."""
        for rows, ready, which in self.waiting.next(len(slots)):
            taken = torch.tensor(slots[: len(rows)], device=rows.device)
            slots = slots[len(rows) :]
            seat(self.cache, taken, ready.layers, which)
            self._take(rows, torch.zeros_like(rows), ready.logits[which])
            self.rows[taken], self.drawn[taken] = rows, 1

    def _keep(self, slots: list[int]) -> None:
        """Takes all other rows out of the cache."""
        keep = torch.tensor(slots, device=self.rows.device)
        self.rows, self.drawn = self.rows[keep], self.drawn[keep]
        self.cache.batch_select_indices(keep)

    def _numbers(self, *, pinned: bool = False) -> Tensor:
        """One for every row of every process."""
        return torch.rand(
            self.total, generator=self.generator, dtype=torch.double, pin_memory=pinned
        )

    def give_back_numbers(self, length: int) -> None:
        """Leaves the generator as the last token that anyone has left it.

        A look that came late drew more, and a process whose rows were done before another's drew less.
        """
        for _ in range(length - len(self.states)):
            self._numbers()
        if length <= len(self.states):
            self.generator.set_state(self.states[length - 1])
