"""The `[rollout]` section: how much is sampled, and how."""

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class RolloutConfig(BaseModel):
    """One step's rollout: num_prompts × group_size responses.

    Examples:
        >>> RolloutConfig(num_prompts=16, group_size=4).num_responses
        64
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_prompts: int = Field(default=16, gt=0)
    """P, prompts a step."""
    group_size: int = Field(default=4, gt=0)
    """G, responses to each of them."""
    max_new_tokens: int = Field(default=32, gt=0)
    """T, the longest response in tokens, its end-of-sequence token included."""
    temperature: FiniteFloat = Field(default=1.0, gt=0)
    """τ: divides the logits of policy and reference alike, at sampling, in training and in every KL."""

    staleness: int = Field(default=0, ge=0, le=64)
    """Updates between a rollout's sampling and its own: 0 is on-policy, k what a sampler k rollouts ahead gives."""
    max_running: int | None = Field(default=None, gt=0)
    """How many responses a process decodes at once, the next beginning where one ends; None: all. It is what keys and
    values need memory for. Every token keeps its random number; logits move in their last digits, which flips a draw
    that is on the boundary between two tokens."""

    @property
    def num_responses(self) -> int:
        """B = P · G."""
        return self.num_prompts * self.group_size
