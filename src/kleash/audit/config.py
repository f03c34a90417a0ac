"""What a comparison is asked for: models, prompts, how much is sampled, how surely, and what may not be exceeded."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from kleash.models.config import DType

LONGEST = 64
"""Tokens of a response, where nothing else is said."""
MAX_TOKENS = 200_000
"""Sampled tokens of both models together that a precision may cost, where no other number is given."""


class CompareConfig(BaseModel):
    """The settings of one comparison.

    Examples:
        >>> CompareConfig(policy="mine", reference="base", prompts="p.txt").samples
        2
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    """A hub id, a directory, an embedded or fetched model's name, a LoRA adapter, a kleash run, or a GGUF file."""
    reference: str | None = None
    """The same; None: the base of an adapter, or the reference that a run had."""
    prompts: str | None = None
    """A text file, JSON lines, a dataset; None: those of the run that the policy is."""
    column: str | None = None
    """Where a prompt stands in a line; None: `prompt`, else `messages`."""
    slice_column: str = "slice"
    """Where the name of a prompt's slice stands, if anywhere."""
    split: str = "train"
    """Of a dataset."""
    max_prompts: int | None = Field(default=None, gt=1)
    """More than these are drawn from, at random."""

    samples: int = Field(default=2, gt=0)
    """Responses of each model to each prompt, a round."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """The longest response in tokens: KL is that of responses cut there. None: 64, or the run's."""
    temperature: FiniteFloat | None = Field(default=None, gt=0)
    """Divides the logits of both models. None: 1, or the run's."""
    precision: FiniteFloat | None = Field(default=None, gt=0)
    """Nats. Rounds are added until the interval of KL(π‖π_ref) per response is no wider; None: one round."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Sampled tokens of both models together that no round is begun beyond."""
    limits: tuple[str, ...] = ()
    """As `limits.parse` takes them."""

    chat: bool | None = None
    """Whether a prompt is a user's message in the policy's chat template; None: no, or as in the run."""
    system: str | None = None
    """The system message before it."""
    seed: int = 0
    batch_size: int = Field(default=64, gt=0)
    """Responses at a time."""
    device: str = "cpu"
    threads: int | None = Field(default=None, gt=0, le=4096)
    """Of a CPU; None: torch's own number. With fewer, none spins while it waits where others compute too."""
    dtype: DType = "float32"
    """What both models compute in."""
    low_memory: bool = False
    """Whether one model at a time is in memory, and loaded anew whenever it is its turn."""
    show: int = Field(default=8, ge=0)
    """Prompts with answers side by side."""
    retain: str | None = None
    """Texts that both models are asked the likelihood of."""
    search: bool = False
    """Whether contexts are sought in which the two are far apart, though they are near on these prompts."""
    search_budget: int = Field(default=200_000, ge=10_000)
    """Tokens through either model that this may cost."""
    null: tuple[str, ...] = ()
    """comparison.json of fine-tunes that hide nothing, searched the same way: what a finding is measured against."""

    @model_validator(mode="after")
    def _has_a_chat_for_its_system(self) -> Self:
        if self.system is not None and self.chat is False:
            raise ValueError("no system message without a chat template: it has no other place")
        return self

    @model_validator(mode="after")
    def _has_both_models_where_it_searches(self) -> Self:
        if self.search and self.low_memory:
            raise ValueError("no search with low memory: it needs both models at once")
        if self.null and not self.search:
            raise ValueError(
                "no null values without a search: they are what its finding is measured against"
            )
        return self

    @property
    def longest(self) -> int:
        """Tokens of the longest response."""
        return self.max_new_tokens or LONGEST

    @property
    def divisor(self) -> float:
        """What the logits of both models are divided by."""
        return self.temperature or 1.0

    @property
    def token_budget(self) -> int:
        """Sampled tokens beyond which no further round is begun."""
        return self.max_tokens or MAX_TOKENS
