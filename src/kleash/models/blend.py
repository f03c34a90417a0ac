"""Several references as one: Σ_k w_k KL(π‖π_k), weights that sum to 1.

With z = Σ_k w_k log π_k that is E_π[log π − z] at each state. z is a head on the hidden states of all side by side, and
no distribution: exp z sums to less than 1, as the references disagree. What reads a policy against the normalised
exp z/Σ exp z has therefore the right gradient and is short of −log Σ exp z ≥ 0 nats at each state, which `whole` adds.
The best policy is Π_k π_k^{w_k} exp(R/β) over its sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kleash.errors import ConfigError
from kleash.functional.chunks import TokenKL
from kleash.models.identity import weights_digest
from kleash.models.policy import Head, LanguageModel


class Several(nn.ModuleList):
    """Models of one type of number."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the first."""
        return next(self.parameters()).dtype


@dataclass(frozen=True, slots=True)
class Blend:
    """Weighted references, read as a language model is."""

    parts: tuple[LanguageModel, ...]
    weights: tuple[float, ...]
    model: Several
    head: Head
    """z of hidden states side by side; made once, as the references stay."""

    @classmethod
    def of(cls, weighted: Sequence[tuple[LanguageModel, float]]) -> "Blend":
        """Of frozen models, each with its weight.

        Raises:
            ConfigError: the logits of one are no product with its hidden state, so that a sum of them isn't one either.
        """
        for part, _ in weighted:
            if part.head.softcap is not None:
                raise ConfigError(
                    f"{part.name} can't be one of several references",
                    expected="a head that is a product with the last hidden state",
                    got="logits that are capped",
                    do="give model.reference one name",
                )
        parts, weights = zip(*weighted, strict=True)
        return cls(parts, weights, Several(part.model for part in parts), _side_by_side(weighted))

    @property
    def dtype(self) -> torch.dtype:
        """Of their hidden states."""
        return self.parts[0].dtype

    @property
    def name(self) -> str:
        """The weighted names, as in `0.7 × a + 0.3 × b`."""
        pairs = zip(self.weights, self.parts, strict=True)
        return " + ".join(f"{weight:g} × {part.name}" for weight, part in pairs)

    @property
    def own_weights(self) -> dict[str, Tensor]:
        """Every weight of all of them."""
        return dict(self.model.named_parameters())

    def state(self) -> dict[str, Tensor]:
        """All that they are computed from, by name."""
        return self.model.state_dict()

    def digest(self) -> str:
        """The identity of the weights of all of them."""
        return weights_digest(self.model)

    @property
    def heaviest(self) -> LanguageModel:
        """The one with the most weight, whose responses are shown for the reference's."""
        return max(zip(self.weights, self.parts, strict=True), key=lambda pair: pair[0])[1]

    @property
    def hidden_size(self) -> int:
        """The widths together."""
        return sum(part.hidden_size for part in self.parts)

    def hidden(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """[B, T, H]: of each response token, the hidden states of all references side by side."""
        states = [part.hidden(prompt_ids, prompt_mask, response_ids, mask) for part in self.parts]
        return torch.cat(states, dim=-1)

    def whole(self, read: TokenKL, hidden: Tensor, tokens: Tensor, temperature: float) -> TokenKL:
        """What was read against this head, with what it is short of: kl is Σ_k w_k KL_k, ref_logprobs Σ_k w_k log π_k.

        Args:
            read: at some tokens, by a policy's head.
            hidden: [N, H] of this blend there.
            tokens: [N].
            temperature: of the reading.
        """
        logprobs = torch.zeros_like(read.ref_logprobs)
        states = hidden.split([part.hidden_size for part in self.parts], dim=-1)
        for weight, part, own in zip(self.weights, self.parts, states, strict=True):
            nobody = part.head.uniform(), own.new_zeros(len(own), 0)
            logprobs += weight * part.head.read(own, *nobody, tokens, temperature).logprobs
        short = read.ref_logprobs - logprobs  # −log Σ exp z, the same whichever token is asked
        return read._replace(ref_logprobs=logprobs, kl=read.kl + short)


@torch.no_grad()
def _side_by_side(weighted: Sequence[tuple[LanguageModel, float]]) -> Head:
    """Σ_k w_k z_k as one product, [V, ΣH]."""
    scaled = [(weight * part.head.scale, part.head) for part, weight in weighted]
    biases = [scale * head.bias for scale, head in scaled if head.bias is not None]
    weight = torch.cat([scale * head.weight for scale, head in scaled], dim=1)
    return Head(weight, torch.stack(biases).sum(0) if biases else None)
