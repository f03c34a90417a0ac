"""The `[model]` section: which policy is trained, and what it is measured against."""

from pydantic import BaseModel, ConfigDict


class ModelConfig(BaseModel):
    """The policy and its reference.

    Examples:
        >>> ModelConfig().policy
        'tiny-reviews/base'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = "tiny-reviews/base"
    """An embedded model's name, a Hugging Face directory, or a hub id."""
    reference: str | None = None
    """What KL(π‖π_ref) is measured from; None: a frozen copy of the policy as loaded."""
