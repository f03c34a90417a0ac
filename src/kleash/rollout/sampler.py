"""The local sampler: a key-value cache, prompts computed once per group, finished rows dropped.

A token is drawn by inverting the distribution function at one uniform number a row; the numbers are drawn for all rows
whether they are finished or not, so that dropping rows changes no sample.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor

from kleash.errors import InputError
from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.models.packed import packed
from kleash.models.policy import LanguageModel
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout

WORTH_DROPPING = 0.5
"""Share of rows that have to be finished for these to be dropped from the cache."""
LEAST_SAVED = 300
"""Rows dropped times tokens left: with fewer, packing the weights anew for the rest costs more than that saves."""
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
) -> Rollout:
    """G responses to each prompt, the group of the first prompt first.

    Args:
        policy: who answers.
        prompts: P texts.
        config: group size, length, temperature.
        generator: the one source of randomness, on the CPU, so that seeds mean the same on every device.
        sharing: among processes that answer some of the prompts each, and all get the whole; None: this one is alone.
    """
    ids, mask = encode_prompts(policy, prompts, config.max_new_tokens)
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


def _rows(ids: Tensor, mask: Tensor) -> Iterator[tuple[list[int], int]]:
    """Each row of ids with the number of those that count; one copy from a device for all."""
    return zip(ids.tolist(), mask.sum(-1).tolist(), strict=True)


class _Decoding:
    """One batch being sampled: the cache holds the rows still running, the outputs hold all.

    Of several processes each samples the rows of some prompts, with the numbers that they have where one samples all.
    """

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
        self.prompt_ids, self.prompt_mask = ids, mask
        size, length, device = len(ids) * config.group_size, config.max_new_tokens, ids.device
        self.tokens = torch.full((size, length), policy.pad_id, device=device)
        self.mask = torch.zeros((size, length), dtype=torch.bool, device=device)
        self.logprobs = torch.zeros((size, length), device=device)
        self.finished = torch.zeros(size, dtype=torch.bool, device=device)
        self.rows = torch.arange(size, device=device)
        self.lengths = mask.sum(-1).repeat_interleave(config.group_size)
        response = torch.ones((size, length), dtype=torch.long, device=device)
        self.attention = torch.cat([mask.repeat_interleave(config.group_size, 0), response], dim=1)
        self.cache = policy.new_cache(ids.shape[1] + length)
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.look_every = LOOK_EVERY.get(device.type, LOOK_SELDOM)
        self.states: list[Tensor] = []
        """Of the generator, after each token."""

    def run(self) -> tuple[Tensor, ...]:
        """Tokens, their mask, their log-probabilities, and which rows ended themselves."""
        logits, last = self._prefill(), self.config.max_new_tokens - 1
        with ExitStack() as packing:
            packing.enter_context(packed(self.policy, len(self.rows)))
            for t in range(last + 1):
                self._take(t, logits)
                if t == last or ((t + 1) % self.look_every == 0 and self._drop_finished(last - t)):
                    break
                if len(self.rows) != len(logits):
                    packing.close()
                    packing.enter_context(packed(self.policy, len(self.rows)))
                logits = self._step(t)
        return self.tokens, self.mask, self.logprobs, self.finished

    def _prefill(self) -> Tensor:
        logits = self.policy.next_logits(
            self.cache,
            input_ids=self.prompt_ids,
            attention_mask=self.prompt_mask.long(),
            position_ids=(self.prompt_mask.long().cumsum(-1) - 1).clamp(min=0),
        )
        if self.config.group_size > 1:
            self.cache.batch_repeat_interleave(self.config.group_size)
        return logits.repeat_interleave(self.config.group_size, 0)

    def _take(self, t: int, logits: Tensor) -> None:
        """Draws token t of every running row and records it; a GPU is not waited for."""
        rows, device = self.rows, logits.device
        uniform = self._numbers(pinned=device.type == "cuda")[self.own]
        uniform = uniform.to(device, non_blocking=True)
        self.states.append(self.generator.get_state())
        running = ~self.finished[rows]
        logprobs = log_softmax(logits, self.config.temperature)
        token = torch.where(running, draw(logprobs, uniform[rows]), self.policy.pad_id)
        self.tokens[rows, t] = token
        self.mask[rows, t] = running
        self.logprobs[rows, t] = torch.where(running, token_logprobs(logprobs, token), 0.0)
        self.finished[rows] = ~running | torch.isin(token, self.eos)

    def _drop_finished(self, left: int) -> bool:
        """Takes finished rows out of the cache, where the tokens left are worth it; whether no row is running."""
        running = ~self.finished[self.rows]
        count = int(running.sum())
        saved = len(running) - count
        if count and saved >= WORTH_DROPPING * len(running) and saved * left >= LEAST_SAVED:
            keep = running.nonzero().squeeze(-1)
            self.rows = self.rows[keep]
            self.cache.batch_select_indices(keep)
        return count == 0

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

    def _step(self, t: int) -> Tensor:
        width = self.prompt_ids.shape[1] + t + 1
        return self.policy.next_logits(
            self.cache,
            input_ids=self.tokens[self.rows, t : t + 1],
            attention_mask=self.attention[self.rows, :width],
            position_ids=(self.lengths[self.rows] + t).unsqueeze(-1),
        )
