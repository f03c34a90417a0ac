"""Rounds of responses from both models, each read by both, until enough is known or enough was spent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kleash.audit.config import CompareConfig
from kleash.audit.estimate import least_width, width
from kleash.audit.pair import Pair
from kleash.audit.stream import Heard, Stream, hear, listen
from kleash.drift import measure_drift_totals
from kleash.models.policy import LanguageModel
from kleash.records import KLReading
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded

Reason = Literal["samples", "precision", "max_tokens", "prompts"]
"""Why no further round was begun: one was asked for, the interval is narrow enough, the budget is spent, or these
prompts seem to differ too much among themselves for so narrow an interval."""
Told = Callable[[int, int, KLReading], None]
"""Tokens sampled so far, how many there will be at most, and the KL so far."""
WAVE_TOKENS = 16_384
"""Tokens whose hidden states are kept while the other model is loaded."""
ENOUGH = 8
"""Responses to each prompt from which it can be told how much prompts differ among themselves."""
MOST_GROWTH = 4
"""Times the responses there are that a round may add."""


@dataclass(slots=True)
class Measured:
    """What was sampled, and what both models say of it."""

    policy: Stream
    reference: Stream
    gained: Tensor
    """[V], the mean of π − π_ref over the states of both."""
    stopped: Reason
    rounds: int

    @property
    def num_tokens(self) -> int:
        """Of both streams."""
        return len(self.policy.tokens) + len(self.reference.tokens)


class _Batch(NamedTuple):
    """What is asked at once."""

    prompts: list[int]
    samples: int
    """Responses to each."""


@dataclass(slots=True)
class _Gathered:
    policy: list[Stream] = field(default_factory=list[Stream])
    reference: list[Stream] = field(default_factory=list[Stream])
    gained: Tensor | float = 0.0
    num_tokens: int = 0


class Sampler:
    """Asks both models the same prompts, again and again.

    Args:
        pair: the models.
        texts: the prompts.
        encoded: the same in tokens.
        config: how much, and how surely.
        told: shown how far it has come.
    """

    def __init__(
        self,
        pair: Pair,
        texts: Sequence[str],
        encoded: Sequence[list[int]],
        config: CompareConfig,
        told: Told,
    ) -> None:
        self.pair, self.config, self.told = pair, config, told
        self.texts, self.encoded = texts, encoded
        self.generators = [
            seeded(config.seed, side) for side in ("compare policy", "compare reference")
        ]
        self.found = _Gathered()
        self.name = pair.reference_name

    def run(self) -> Measured:
        """Rounds until there is a reason to stop."""
        self._round(self.config.samples)
        rounds = 1
        while (reason := self._reason()) is None:
            self._round(self._more())
            rounds += 1
        found = self.found
        policy, reference = Stream.joined(found.policy), Stream.joined(found.reference)
        assert isinstance(found.gained, Tensor)
        gained = found.gained / found.num_tokens
        return Measured(policy, reference, gained, reason, rounds)

    def _reason(self) -> Reason | None:
        config = self.config
        if config.precision is None:
            return "samples"
        if width(self.reading()) <= config.precision:
            return "precision"
        if self._samples() >= ENOUGH and least_width(self._stream()) > config.precision:
            return "prompts"
        spent = self.found.num_tokens + self._cost(1)
        return "max_tokens" if spent > config.token_budget else None

    def _stream(self) -> Stream:
        return Stream.joined(self.found.policy)

    def reading(self) -> KLReading:
        """KL(π‖π_ref) per response so far."""
        stream = self._stream()
        return measure_drift_totals(
            stream.totals(stream.read.kl), stream.lengths, stream.prompt, reference=self.name
        )

    def _samples(self) -> int:
        """Responses of each model to each prompt so far."""
        return sum(part.count for part in self.found.policy) // len(self.encoded)

    def _cost(self, samples: int) -> int:
        """Tokens that so many further responses of both to each prompt take, by those there are."""
        there = sum(part.count for part in self.found.policy + self.found.reference)
        return round(self.found.num_tokens / there * 2 * samples * len(self.encoded))

    def _more(self) -> int:
        """Responses to each prompt that a next round adds: as many as the width suggests, within the budget."""
        there = self._samples()
        ratio = width(self.reading()) / (self.config.precision or 1.0)
        wanted = there * (min(ratio * ratio, MOST_GROWTH + 1) - 1) + 1
        room = (self.config.token_budget - self.found.num_tokens) / self._cost(1)
        return max(1, int(min(wanted, room)))

    def _round(self, samples: int) -> None:
        """So many responses of each model to every prompt."""
        for wave in self._waves(samples):
            self._sample_and_read(wave)
            self.told(self.found.num_tokens, self._most(), self.reading())

    def _waves(self, samples: int) -> list[list[_Batch]]:
        """Batches that each model answers before the other does: one, or where each turn loads a model, many."""
        each = min(samples, self.config.batch_size)
        repeats = [min(each, samples - done) for done in range(0, samples, each)]
        prompts = torch.arange(len(self.encoded)).split(max(1, self.config.batch_size // each))
        batches = [_Batch(some.tolist(), count) for some in prompts for count in repeats]
        rows = self.config.batch_size * self.config.longest
        size = max(1, WAVE_TOKENS // rows) if self.config.low_memory else 1
        return [batches[i : i + size] for i in range(0, len(batches), size)]

    def _sample_and_read(self, wave: list[_Batch]) -> None:
        """Some batches of responses of each model, by both; each model is asked for twice, and let go between."""
        model = self.pair.policy()
        drawn = [self._sample(model, batch, 0) for batch in wave]
        own = [hear(model, rollout) for rollout in drawn]
        del model  # it may have to go for the other
        model = self.pair.reference()
        theirs = [hear(model, rollout) for rollout in drawn]
        others = [self._sample(model, batch, 1) for batch in wave]
        other_own = [hear(model, rollout) for rollout in others]
        del model
        model = self.pair.policy()
        other_theirs = [hear(model, rollout) for rollout in others]
        for i, batch in enumerate(wave):
            self._add(batch, drawn[i], own[i], theirs[i], by_policy=True)
            self._add(batch, others[i], other_own[i], other_theirs[i], by_policy=False)

    def _add(
        self, batch: _Batch, rollout: Rollout, sampler: Heard, other: Heard, *, by_policy: bool
    ) -> None:
        answered = [prompt for prompt in batch.prompts for _ in range(batch.samples)]
        stream, gained = listen(rollout, answered, sampler, other, self.config.divisor)
        found = self.found
        (found.policy if by_policy else found.reference).append(stream)
        found.gained = found.gained + (gained if by_policy else -gained).cpu()
        found.num_tokens += len(stream.tokens)

    def _most(self) -> int:
        """Tokens there will be at most."""
        if self.config.precision is not None:
            return self.config.token_budget
        return 2 * self.config.samples * len(self.encoded) * self.config.longest

    def _sample(self, model: LanguageModel, batch: _Batch, side: int) -> Rollout:
        config = RolloutConfig(
            num_prompts=len(batch.prompts),
            group_size=batch.samples,
            max_new_tokens=self.config.longest,
            temperature=self.config.divisor,
        )
        return sample(
            model,
            [self.texts[i] for i in batch.prompts],
            config,
            self.generators[side],
            encoded=[self.encoded[i] for i in batch.prompts],
        )
