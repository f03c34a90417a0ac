"""The `[optimizer]` section."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class OptimizerConfig(BaseModel):
    """The `[optimizer]` section: AdamW."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: FiniteFloat = Field(default=3e-4, gt=0)
    """Step size after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "linear"] = "constant"
    """`linear` falls to 0 just after the last step."""
    beta1: FiniteFloat = Field(default=0.9, ge=0, lt=1)
    beta2: FiniteFloat = Field(default=0.95, ge=0, lt=1)
    weight_decay: FiniteFloat = Field(default=0.0, ge=0)
    max_grad_norm: FiniteFloat = Field(default=1.0, gt=0)
    """The gradient is scaled down to this norm."""

    def rate_at(self, step: int, num_steps: int) -> float:
        """Learning rate of step 1 … num_steps.

        Examples:
            >>> OptimizerConfig(learning_rate=1.0, warmup_steps=4).rate_at(1, 10)
            0.25
        """
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        left = 1.0 if self.schedule == "constant" else (num_steps - step + 1) / num_steps
        return self.learning_rate * warm * left
