"""The `[model]` section: which policy is trained, and what it is measured against."""

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


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
    refresh_every: int | None = Field(default=None, gt=0)
    """Steps after each of which the reference comes nearer to the policy; None: it stays. The drift from the reference
    as the run began is measured all the same, and `guard.max_kl` limits both."""
    refresh_share: FiniteFloat = Field(default=1.0, gt=0, le=1)
    """How much nearer: 1 is a reset to the policy, less a moving average of weights, π_ref ← (1 − s) π_ref + s π."""
