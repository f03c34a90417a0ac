"""A causal language model as the loop sees it: hidden states at the response's positions, and a head.

The last matrix product, hidden states to vocabulary, is kept apart from the rest of the model: its result is by far the
largest thing there is, and so it is made a few responses at a time, and only at tokens that count.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from transformers import Cache, DynamicCache

from kleash.errors import InputError
from kleash.functional.chunks import TokenKL
from kleash.functional.linear_kl import TokenLoss, linear_kl, linear_kl_loss
from kleash.models.adapters import Adapter
from kleash.models.cache import reserved_cache
from kleash.models.chat import Chat
from kleash.models.identity import state_digest
from kleash.models.recompute import recomputed
from kleash.models.sharded import gathered, held_whole, whole
from kleash.models.unpadded import Unpadded, attending, unpad


class _Options(TypedDict):
    bias: Tensor | None
    ref_bias: Tensor | None
    temperature: float
    softcap: float | None
    ref_softcap: float | None


WORTH_UNPADDING = 0.05
"""Share of a batch's positions that one row has to save: attention finds its way in it at a price."""


@dataclass(frozen=True, slots=True)
class Head:
    """Hidden states to logits: z = s · (W h + b), capped smoothly where the architecture does so."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, H], multiplied and kept in float32 at least."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        logits = F.linear(hidden.to(wide), self.weight.to(wide), bias).float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def read(
        self,
        hidden: Tensor,
        ref: "Head",
        ref_hidden: Tensor,
        tokens: Tensor,
        temperature: float,
        *,
        hold: bool = False,
    ) -> TokenKL:
        """Log-probabilities, exact KL from `ref` and entropy at some tokens, [N] each, without all logits at once.

        Args:
            hidden: [N, H] of this head's model.
            ref: the other model's head, over the same vocabulary.
            ref_hidden: [N, R] of that model.
            tokens: [N], the tokens that were sampled.
            temperature: divides the logits of both.
            hold: whether logits are held for the way back after all, where they are not too large.
        """
        given = self._given(hidden, ref, ref_hidden, tokens)
        return linear_kl(*given, **self._options(ref, temperature), hold=hold)

    def read_loss(
        self,
        hidden: Tensor,
        ref: "Head",
        ref_hidden: Tensor,
        tokens: Tensor,
        temperature: float,
        token_loss: TokenLoss,
    ) -> tuple[Tensor, TokenKL]:
        """The same in one pass with the gradient of a loss over tokens: Σ token_loss(what was read, which tokens).

        For a loss that needs no KL `uniform()` stands in for the reference: it costs no product.

        Returns:
            The loss, and what was read, detached.
        """
        given = self._given(hidden, ref, ref_hidden, tokens)
        return linear_kl_loss(*given, token_loss, **self._options(ref, temperature))

    def _given(
        self, hidden: Tensor, ref: "Head", ref_hidden: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (
            hidden * self.scale if self.scale != 1 else hidden,
            self.weight,
            ref_hidden * ref.scale if ref.scale != 1 else ref_hidden,
            ref.weight,
            tokens,
        )

    def _options(self, ref: "Head", temperature: float) -> "_Options":
        return {
            "bias": self._scaled_bias(),
            "ref_bias": ref._scaled_bias(),
            "temperature": temperature,
            "softcap": self.softcap,
            "ref_softcap": ref.softcap,
        }

    def _scaled_bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias * self.scale

    def uniform(self) -> "Head":
        """The head of no model, over this vocabulary and of width 0: every token is as likely as the next."""
        return Head(self.weight.new_zeros(len(self.weight), 0))

    def frozen(self) -> "Head":
        """A copy that later updates of the model don't reach; itself, where they don't reach it anyway."""
        if not self.weight.requires_grad and (self.bias is None or not self.bias.requires_grad):
            return self
        bias = None if self.bias is None else self.bias.detach().clone()
        return Head(self.weight.detach().clone(), bias, self.scale, self.softcap)


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model, its tokenizer and the name it was asked for by. Always in eval mode: no dropout on either side."""

    name: str
    model: Any
    """A transformers causal language model, float32."""
    tokenizer: Any
    adapter: Adapter | None = None
    """Which of the differences that `model` has makes it this one; None: it has none."""
    chat: Chat | None = None
    """How a prompt is put to it; None: as it stands."""
    compute: torch.dtype | None = None
    """What it computes in, where its weights are kept in more; None: in what they are."""
    recomputes: bool = False
    """Whether a pass that gradients go back through keeps the inputs of its layers alone."""
    unpads: bool = False
    """Whether a batch can be one row of tokens, without padding and with each prompt once: `can_unpad` says so."""
    ends: tuple[int, ...] | None = None
    """Tokens that end a response, where these are not its own: of another model that it is compared with."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its hidden states and its head."""
        return self.compute or self.model.dtype

    @property
    def vocab_size(self) -> int:
        """V, the number of logits."""
        return int(self.model.config.vocab_size)

    @property
    def num_embeddings(self) -> int | None:
        """How many tokens it can read; None of what has no embeddings, as a table."""
        embeddings = getattr(self.model, "get_input_embeddings", lambda: None)()
        return None if embeddings is None else int(embeddings.weight.shape[0])

    @property
    def hidden_size(self) -> int:
        """H, the width of the hidden states."""
        return int(self.model.config.hidden_size)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens that the model takes; None when it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def pad_id(self) -> int:
        """What fills unused positions; its value never matters, because these are masked."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a response: the tokenizer's and the model's own."""
        if self.ends is not None:
            return list(self.ends)
        declared = getattr(self.model.generation_config, "eos_token_id", None)
        declared = declared if isinstance(declared, list) else [declared]
        return sorted({int(i) for i in [self.tokenizer.eos_token_id, *declared] if i is not None})

    @property
    def head(self) -> Head:
        """The live head: it follows updates of the weights and carries gradients."""
        config, linear = self.model.config, self.model.get_output_embeddings()
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        bias = getattr(linear, "bias", None)
        return Head(
            whole(linear.weight).to(self.dtype),
            None if bias is None else whole(bias),
            float(scale),
            getattr(config, "final_logit_softcapping", None),
        )

    def encode(self, prompt: str) -> list[int]:
        """The token ids of a prompt, which the response follows.

        Raises:
            InputError: the tokenizer has tokens that the model has not.
        """
        if self.chat is None:
            ids = list(self.tokenizer(prompt)["input_ids"])
        else:
            ids = self.chat.encode(self.tokenizer, prompt)
        known = self.num_embeddings
        if known is not None and max(ids, default=0) >= known:
            raise InputError(
                f"the tokenizer of {self.name} is not its model's",
                expected=f"tokens below {known}, of which the model has embeddings",
                got=f"token {max(ids)} in {prompt[:60]!r}",
                do="give the model its own tokenizer, or resize its embeddings to this one",
            )
        return ids

    @property
    def own_weights(self) -> dict[str, Tensor]:
        """The weights that are this model's own by name: an adapter's, where it is a base with one."""
        return (
            dict(self.model.named_parameters())
            if self.adapter is None
            else self.adapter.own_weights
        )

    def state(self) -> Mapping[str, Tensor]:
        """All that it is computed from, by name."""
        return gathered(self.model.state_dict() if self.adapter is None else self.adapter.state())

    def digest(self) -> str:
        """The identity of the weights that it computes with: `state_digest` of all of them."""
        return state_digest(self.state())

    @contextmanager
    def speaking(self) -> Generator[None]:
        """Within it, `model` is this one, also where it shares its weights with the policy, and computes as it does."""
        adapter = nullcontext() if self.adapter is None else self.adapter.speaking()
        with adapter, torch.autocast(self.device.type, self.compute, self.compute is not None):
            yield

    @contextmanager
    def sampling(self) -> Generator[None]:
        """The same for many short passes without gradients: what is divided among processes is gathered once."""
        with self.speaking(), held_whole(self.model):
            yield

    def next_logits(self, cache: Cache, **given: Tensor) -> Tensor:
        """Logits [B, V] of the next token, for sampling, as the head gives them; within `speaking`.

        Args:
            cache: takes the keys and values.
            given: `input_ids`, `attention_mask` and `position_ids`.
        """
        if self.dtype.itemsize >= torch.float32.itemsize:
            output = self.model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return output.logits[:, -1]
        # The model itself would round the logits to half precision.
        output = self.model.base_model(**given, past_key_values=cache, use_cache=True)
        with torch.autocast(self.device.type, enabled=False):
            return self.head(output.last_hidden_state[:, -1].to(self.dtype))

    def new_cache(self, length: int) -> Cache:
        """An empty cache for so many tokens: with room for them no token copies those before it."""
        return reserved_cache(length) if self.unpads else DynamicCache()

    def hidden(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states from which each response token is predicted.

        Prompts are padded on the left and responses on the right; a position's number counts real tokens only, so
        that padding changes nothing. Where that saves enough it isn't computed, nor is a prompt more than once.

        Args:
            prompt_ids: [B, P].
            prompt_mask: [B, P], True at real tokens.
            response_ids: [B, T].
            mask: [B, T], True at real tokens; None: all are.

        Returns:
            [B, T, H]; the state at t has seen the prompt and the response's tokens before t. Of no use where padded.
        """
        recomputes = self.recomputes and torch.is_grad_enabled()
        with self.speaking(), recomputed(self.model) if recomputes else nullcontext():
            if self.unpads:
                row = unpad(prompt_ids, prompt_mask, response_ids, mask)
                rows, width = prompt_ids.shape
                whole = rows * (width + response_ids.shape[1] - 1)
                if len(row.ids) <= (1 - WORTH_UNPADDING) * whole:
                    return self.of_row(row)
            return self._of_rows(prompt_ids, prompt_mask, response_ids)

    def of_row(self, row: Unpadded) -> Tensor:
        """The same of a batch as one row; within `speaking`, and where `can_unpad` says so."""
        with attending(self.model):
            states = self.model.base_model(
                input_ids=row.ids.unsqueeze(0),
                position_ids=row.positions.unsqueeze(0),
                # A mask of four dimensions is one that transformers need not make.
                attention_mask=torch.zeros(1, 1, 1, 1, device=row.ids.device),
                use_cache=False,
                layout=row.layout,
            ).last_hidden_state[0]
        if not row.layout.masks:
            raise RuntimeError("no layer's attention asked where it may look")
        taken = states.index_select(0, row.out.flatten())
        return taken.view(*row.out.shape, -1).to(self.dtype)

    def _of_rows(self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor) -> Tensor:
        width = prompt_ids.shape[1]
        inputs = torch.cat([prompt_ids, response_ids[:, :-1]], dim=1)
        mask = torch.ones_like(inputs)
        mask[:, :width] = prompt_mask
        states = self.model.base_model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        return states[:, width - 1 :].to(self.dtype)
