"""The `[reward]` section: what the policy is trained on, and what only watches."""

from pydantic import BaseModel, ConfigDict, Field


class RewardConfig(BaseModel):
    """What scores the responses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "tiny-reviews/gold"
    """Trained on: an embedded name, a Hugging Face directory or id, or `module:function`."""
    monitor: tuple[str, ...] = ()
    """Further scorers, named like `model`: logged as `monitor/NAME`, never trained on."""
    missing_eos_penalty: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Taken off the score of a response that was cut before it ended; in units of the reward."""
    label: str | int | None = None
    """Which label's log-odds is the reward, by name or index; needed with more than two labels."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass of a scoring model."""
