"""Two models that share a vocabulary, both in memory or one at a time, and what both are asked in the same tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kleash.audit.prompts import Prompt
from kleash.audit.sources import Source
from kleash.errors import ConfigError, InputError
from kleash.models.chat import Chat, check_template
from kleash.models.config import DType
from kleash.models.hub import first_difference, load_language_model
from kleash.models.policy import LanguageModel


class Facts(NamedTuple):
    """What is known of a model that need not be in memory."""

    tokenizer: Any
    vocab_size: int
    """V, the number of logits."""
    ends: tuple[int, ...]
    """Tokens that end its responses."""
    context: int | None
    """Tokens that it can read; None: it does not say."""


class Pair:
    """A policy and its reference.

    Args:
        policy: what is compared.
        reference: with what.
        device: where both run.
        dtype: what both compute in.
        low_memory: whether asking for one drops the other, which is loaded again when it is asked for.

    Raises:
        InputError: one can't be loaded.
        ConfigError: they don't share a vocabulary.
    """

    def __init__(
        self,
        policy: Source,
        reference: Source,
        *,
        device: str = "cpu",
        dtype: DType = "float32",
        low_memory: bool = False,
    ) -> None:
        self._sources = policy, reference
        self._device, self._low_memory = device, low_memory
        self._dtype: DType = dtype
        self._loaded: list[LanguageModel | None] = [None, None]
        # What is known of each stays when its model goes.
        self._facts = tuple(_facts(self._load(side)) for side in (0, 1))
        check_same_vocabulary(policy.name, reference.name, *self._facts)

    @property
    def tokenizer(self) -> Any:
        """The policy's, which prompts are put in tokens by."""
        return self._facts[0].tokenizer

    @property
    def reference_name(self) -> str:
        """As it was given."""
        return self._sources[1].name

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a response of either: those of both, so that both are processes of the same kind."""
        return tuple(sorted({token for side in self._facts for token in side.ends}))

    @property
    def context(self) -> int | None:
        """What both can read."""
        return min((x.context for x in self._facts if x.context is not None), default=None)

    @property
    def shares_weights(self) -> bool:
        """Whether the reference is the policy's own base, with the adapter off."""
        policy, reference = self._sources
        return policy.base is not None and policy.base in (reference.load, reference.name)

    def policy(self) -> LanguageModel:
        """The one that is compared."""
        return self._side(0)

    def reference(self) -> LanguageModel:
        """The one it is compared with."""
        return self._side(1)

    def _side(self, side: int) -> LanguageModel:
        model = self._loaded[side] or self._load(side)
        return replace(model, ends=self.ends)

    def _load(self, side: int) -> LanguageModel:
        if self._low_memory and not self.shares_weights:
            self._loaded[1 - side] = None
        policy = self._loaded[0]
        if side == 1 and self.shares_weights and policy is not None and policy.adapter is not None:
            off = replace(policy.adapter, name=None)
            model = replace(policy, name=self._sources[1].name, adapter=off)
        else:
            source = self._sources[side]
            model = load_language_model(source.load, self._device, dtype=self._dtype)
            model = replace(model, name=source.name)
            model.model.requires_grad_(False)
        self._loaded[side] = model
        return model


def _facts(model: LanguageModel) -> Facts:
    return Facts(model.tokenizer, model.vocab_size, tuple(model.eos_ids), model.context)


def check_same_vocabulary(policy: str, reference: str, own: Facts, theirs: Facts) -> None:
    """That a token is the same to both models.

    Raises:
        ConfigError: it isn't, and where.
    """
    difference = first_difference(own.tokenizer, theirs.tokenizer)
    if difference is None and own.vocab_size != theirs.vocab_size:
        difference = f"{own.vocab_size} logits against {theirs.vocab_size}"
    if difference is not None:
        raise ConfigError(
            f"{policy} and {reference} don't share a vocabulary, so that a KL between them means nothing",
            expected="the same tokens by the same ids",
            got=difference,
            do="compare it with the model that it was fine-tuned from; where tokens were added to it, with that "
            "model resized as it was",
        )


def encode(
    pair: Pair, prompts: Sequence[Prompt], max_new_tokens: int, chat: Chat | None
) -> list[list[int]]:
    """The token ids of prompts, the same for both models.

    Args:
        pair: whose policy's tokenizer, and chat template, is used.
        prompts: what is asked.
        max_new_tokens: room that a response needs.
        chat: how a plain prompt is put; None: as it stands. A conversation is always put in the template.

    Raises:
        InputError: a prompt has no tokens, or is too long.
        ConfigError: there is no chat template where one is needed.
    """
    policy, conversational = pair.policy(), any(prompt.turns for prompt in prompts)
    if chat is not None or conversational:
        wanted = "--chat is given" if chat is not None else "prompts are conversations"
        check_template(policy.name, pair.tokenizer, wanted)
    plain = replace(policy, chat=chat)
    rows: list[list[int]] = []
    for prompt in prompts:
        row = (
            (chat or Chat()).encode_turns(pair.tokenizer, prompt.turns)
            if prompt.turns
            else plain.encode(prompt.text)
        )
        _check_length(prompt.text, len(row), max_new_tokens, pair.context)
        rows.append(row)
    return rows


def _check_length(text: str, length: int, max_new_tokens: int, context: int | None) -> None:
    short = f"{text[:60]!r}{'…' if len(text) > 60 else ''}"
    if not length:
        raise InputError("a prompt has no tokens", expected="at least one", got=short)
    if context is not None and length + max_new_tokens > context:
        raise InputError(
            "a prompt is longer than a context",
            expected=f"at most {context - max_new_tokens} tokens: the shorter context is {context}, of which "
            f"--max-new-tokens takes {max_new_tokens}",
            got=f"{length} tokens: {short}",
            do="shorten the prompt, or lower --max-new-tokens",
        )
