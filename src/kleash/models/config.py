"""The `[model]` section: which policy is trained, and what it is measured against."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator


def check_weights(weights: dict[str, float]) -> dict[str, float]:
    """Weights of references by name, as they are to be.

    Raises:
        ValueError: one is not positive, or their sum is not 1.

    Examples:
        >>> check_weights({"a": 0.75, "b": 0.25})
        {'a': 0.75, 'b': 0.25}
    """
    total = sum(weights.values())
    if not weights or min(weights.values()) <= 0 or abs(total - 1.0) > 1e-6:
        raise ValueError(
            f"weights above 0 that sum to 1, not to {total:g}: how strongly all of them hold is rl.kl_coef's to say"
        )
    return weights


DType = Literal["float32", "bfloat16"]


class LoraConfig(BaseModel):
    """`[model.lora]`: what is trained is a difference of low rank, ΔW = s · B A, at some layers.

    Source: Hu et al. 2021; s is α/r, or α/√r where it is rank-stabilised (Kalajdzievski 2023). There is no dropout: the
    policy that learns is the one that was sampled from.

    Examples:
        >>> LoraConfig(rank=8).scale
        16.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, gt=0)
    """r, of A and B."""
    alpha: FiniteFloat | None = Field(default=None, gt=0)
    """α; None: 2 r."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers by the ends of their names, as peft takes them; "all-linear" is all but embeddings and head."""
    rank_stabilised: bool = False
    """Whether the scale falls with the root of the rank."""

    @property
    def scale(self) -> float:
        """α."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class ModelConfig(BaseModel):
    """The policy and its reference.

    Examples:
        >>> ModelConfig().policy
        'tiny-reviews/base'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = "tiny-reviews/base"
    """An embedded or fetched model's name, a Hugging Face directory, or a hub id; or the directory of a LoRA adapter,
    which is then what is trained, and as it is now the reference."""
    dtype: DType = "float32"
    """What policy and reference compute in. What is trained is kept in float32, whatever it is: of a model with an
    adapter its matrices, else every weight. KL, log-probabilities and losses are in float32 at least."""
    gradient_checkpointing: bool = False
    """Whether layers are computed again on the way back: less memory, a third more time, the same gradient. A prompt is
    then computed for each of its responses."""
    chat: bool = False
    """Whether a prompt is a user's message, put to the policy in its tokenizer's chat template."""
    system: str | None = None
    """The system message before it; None: what the template says where there is none."""
    lora: LoraConfig | None = None
    """A new adapter; None: every weight is trained, or the adapter that `policy` is."""
    reference: str | Annotated[dict[str, FiniteFloat], AfterValidator(check_weights)] | None = None
    """What KL(π‖π_ref) is measured from; several by weights, for Σ w KL(π‖π_k); None: the policy as loaded, frozen."""
    refresh_every: int | None = Field(default=None, gt=0)
    """Steps after each of which the reference comes nearer to the policy; None: it stays. The drift from the reference
    as the run began is measured all the same, and `guard.max_kl` limits both."""
    refresh_share: FiniteFloat = Field(default=1.0, gt=0, le=1)
    """How much nearer: 1 is a reset to the policy, less a moving average of weights, π_ref ← (1 − s) π_ref + s π."""

    @model_validator(mode="after")
    def _has_a_chat_for_its_system(self) -> Self:
        if self.system is not None and not self.chat:
            raise ValueError(
                "no model.system where model.chat is false: it has no place in a plain prompt"
            )
        return self
