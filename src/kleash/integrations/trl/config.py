"""What `kleash sft CONFIG.toml` and `kleash dpo CONFIG.toml` read."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from kleash.guard import GuardConfig
from kleash.models.config import ModelConfig
from kleash.rewards.config import ServerConfig, check_token
from kleash.rollout.config import RolloutConfig
from kleash.train.optimizer_config import OptimizerConfig

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class DPODataConfig(BaseModel):
    """`[data]` of `kleash dpo`: preference pairs, and the prompts that the meter asks."""

    model_config = _FROZEN

    pairs: str
    """Pairs in TRL's format: a .jsonl, .json, .csv or .parquet file, a directory or a hub id."""
    split: str = "train"
    """Which split of a dataset that has several."""
    prompts: str = "tiny-reviews/prompts"
    """Asked by the meter alone: an embedded name, a text file with one prompt a line, or JSONL with `prompt`."""
    max_length: int | None = Field(default=None, ge=2)
    """Tokens kept of a prompt with its response, its beginning; None for the model's context."""


class SFTDataConfig(BaseModel):
    """`[data]` of `kleash sft`: texts, and the prompts that the meter asks."""

    model_config = _FROZEN

    texts: str
    """A .jsonl file whose rows have `text`, or `prompt` and `completion`, or a .txt file with one text a line."""
    prompts: str = "tiny-reviews/prompts"
    """Asked by the meter alone: an embedded name, a text file with one prompt a line, or JSONL with `prompt`."""
    max_length: int | None = Field(default=None, ge=2)
    """Tokens kept of a text, its beginning; None for the model's context."""


class WatchConfig(BaseModel):
    """`[reward]`: what scores the responses that the meter samples. Nothing is trained on it."""

    model_config = _FROZEN

    model: str | None = None
    """Logged as `reward_mean`: an embedded name, a Hugging Face directory or id, `module:function`, or
    `http://host:port/path`."""
    monitor: tuple[str, ...] = ()
    """Further scorers, named like `model`: logged as `monitor/NAME`."""
    label: str | int | None = None
    """Which label's log-odds is the score of `model`, by name or index; needed with more than two labels."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass of a scoring model."""
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _sends_its_token_to_one(self) -> Self:
        check_token(self.server, [*([] if self.model is None else [self.model]), *self.monitor])
        return self


class DPOConfig(BaseModel):
    """`[dpo]`: the loss (Rafailov et al. 2023)."""

    model_config = _FROZEN

    beta: FiniteFloat = Field(default=0.1, gt=0)
    """β of the loss: the price of a nat in the objective whose optimum DPO fits. It holds no KL to a target."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """−log σ(β·margin), or the squared distance of the margin per token from 1/(2β) (Azar et al. 2023)."""


class SFTConfig(BaseModel):
    """`[sft]`: the loss, −log π of each token."""

    model_config = _FROZEN

    completion_only: bool = True
    """Where rows have a `prompt`, the loss is of the completion's tokens alone."""


class BaselineTrainConfig(BaseModel):
    """`[train]`: how long, from which seed, on what."""

    model_config = _FROZEN

    steps: int = Field(default=100, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=16, gt=0)
    """Pairs, or texts, a step."""
    meter_every: int = Field(default=10, gt=0)
    """Steps between measurements; the policy as loaded and the one that is saved are always measured."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of everything random. The same configuration and seed give the same metrics, bit for bit, on one machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU when there is one. TRL takes the first that is visible."""
    threads: int | None = Field(default=None, gt=0, le=4096)
    """CPU threads; None: as many as torch takes by itself."""
    micro_batch_size: int = Field(default=32, gt=0)
    """Responses per forward pass of the meter: changes memory, and results in their last digits only."""
    num_samples: int = Field(default=8, gt=0)
    """Prompts answered into samples.jsonl at each measurement: the first of the file, so that runs can be compared."""


class BaselineConfig(BaseModel):
    """What the two have in common."""

    model_config = _FROZEN

    model: ModelConfig = ModelConfig()
    rollout: RolloutConfig = RolloutConfig()
    """What the meter samples at each measurement."""
    reward: WatchConfig = WatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    guard: GuardConfig = GuardConfig()
    train: BaselineTrainConfig = BaselineTrainConfig()

    @model_validator(mode="after")
    def _limits_that_can_be_held(self) -> Self:
        if self.guard.max_kl_new_old is not None:
            raise ValueError(
                "no guard.max_kl_new_old: TRL applies its updates itself, so that none can be refused"
            )
        return self

    @model_validator(mode="after")
    def _stays_with_one_reference(self) -> Self:
        if self.model.refresh_every is not None or isinstance(self.model.reference, dict):
            raise ValueError("one model.reference that stays: TRL knows no other")
        return self


class DPORunConfig(BaselineConfig):
    """A whole run of `kleash dpo`.

    Examples:
        >>> DPORunConfig(data=DPODataConfig(pairs="pairs.jsonl")).dpo.beta
        0.1
    """

    data: DPODataConfig
    dpo: DPOConfig = DPOConfig()


class SFTRunConfig(BaselineConfig):
    """A whole run of `kleash sft`.

    Examples:
        >>> SFTRunConfig(data=SFTDataConfig(texts="texts.jsonl")).train.meter_every
        10
    """

    data: SFTDataConfig
    sft: SFTConfig = SFTConfig()
