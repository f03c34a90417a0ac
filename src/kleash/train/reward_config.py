"""What `kleash reward CONFIG.toml` reads: a base model, preference pairs, and how to fit."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RewardModelConfig(BaseModel):
    """`[model]`: where the reward model starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = "tiny-reviews/base"
    """Language model whose trunk is copied: an embedded name, a local directory or a hub id."""


class RewardDataConfig(BaseModel):
    """`[data]`: the preference pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: str
    """Pairs in TRL's format: a .jsonl, .json, .csv or .parquet file, a directory or a hub id."""
    split: str = "train"
    """Which split of a dataset that has several."""
    eval_pairs: str | None = None
    """Pairs to measure on; None holds out `eval_fraction` of the prompts in `pairs`."""
    eval_split: str = "test"
    """Which split of `eval_pairs`, where that is a dataset that has several."""
    eval_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts to hold out; at 0 nothing is measured."""

    @model_validator(mode="after")
    def _one_way_to_measure(self) -> Self:
        if self.eval_pairs is not None and "eval_fraction" in self.model_fields_set:
            raise ValueError("give eval_pairs or eval_fraction, not both")
        return self


class RewardTrainConfig(BaseModel):
    """`[train]`: the fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs; a second one soon fits their noise."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs per update."""
    lr: float = Field(default=5e-4, gt=0.0, allow_inf_nan=False)
    """Highest learning rate of AdamW: reached after the warm-up, then down to 0 along a cosine."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the updates during which the learning rate rises in a straight line."""
    weight_decay: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    """Of matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """The gradient is scaled down to this norm."""
    center_coefficient: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    """Weight of (r_chosen + r_rejected)², which keeps the scores around 0."""
    normalize: bool = False
    """Rescale the saved head so that the texts fitted on score with standard deviation 1."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens kept of each text, its end; None for the model's context."""
    seed: int = Field(default=0, ge=0)
    """Draws the order of the pairs."""


class RewardFitConfig(BaseModel):
    """A whole fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: RewardModelConfig = RewardModelConfig()
    data: RewardDataConfig
    train: RewardTrainConfig = RewardTrainConfig()
