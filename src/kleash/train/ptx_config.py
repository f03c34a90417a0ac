"""The `[ptx]` section."""

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class PtxConfig(BaseModel):
    """The `[ptx]` section.

    Examples:
        >>> PtxConfig().data is None
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    """A text file, one text a line, or JSONL with a `text` field; None: no pretraining loss."""
    coef: FiniteFloat = Field(default=1.0, gt=0)
    """γ: what a nat per token of these texts weighs beside the policy's loss per token."""
    num_texts: int = Field(default=16, gt=0)
    """Texts to each gradient step."""
    max_tokens: int = Field(default=128, gt=1)
    """Of each text; what follows is left out."""
