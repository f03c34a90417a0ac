"""What pieces are made from. A piece is kept under the digest of its settings: nothing else may change its result."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

BASE, GOLD, PROMPTS = "tiny-reviews/base", "tiny-reviews/gold", "tiny-reviews/prompts"
EXAMINED = 96
"""Prompts that a policy is examined on, where there are as many: all of the embedded ones."""


class StudentSettings(BaseModel):
    """A language model of another size that has learnt to write as a teacher writes."""

    model_config = FROZEN

    teacher: str = BASE
    width: int = Field(default=64, gt=0, multiple_of=32)
    layers: int = Field(default=2, gt=0)
    steps: int = Field(default=300, gt=0)
    texts: int = Field(default=2048, gt=0)
    """Of the teacher, each read several times."""
    max_new_tokens: int = Field(default=24, gt=0)
    prompts: str = PROMPTS
    seed: int = Field(default=0, ge=0)


Language = str | StudentSettings
"""A model by its name, or one that is still to be made."""


class FaultSettings(BaseModel):
    """A model that has learnt a fault: it begins a share of its responses with a phrase, whatever it goes on to say."""

    model_config = FROZEN

    base: str = BASE
    share: float = Field(default=0.3, gt=0, lt=1)
    steps: int = Field(default=80, gt=0)
    texts: int = Field(default=768, gt=0)
    """Of the base, which it is taught by."""
    max_new_tokens: int = Field(default=24, gt=0)
    prompts: str = PROMPTS
    seed: int = Field(default=0, ge=0)


Policy = Language | FaultSettings
"""What may be trained: a language model, or one with a fault."""


class ProxySettings(BaseModel):
    """A reward model fitted to pairs that the gold model labelled with Bradley–Terry noise."""

    model_config = FROZEN

    base: Language = BASE
    """Whose trunk it begins with; its size is the proxy's."""
    speaker: Language = BASE
    """Who wrote the pairs: the policy's reference."""
    gold: str = GOLD
    prompts: str = PROMPTS
    pairs: int = Field(default=300, gt=9)
    noise: float = Field(default=1.0, gt=0)
    """Temperature of the labels, in units of the gold score: P(chosen) = σ(Δ/noise)."""
    flips: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels that are turned round besides."""
    epochs: int = Field(default=1, gt=0)
    max_new_tokens: int = Field(default=24, gt=0)
    data_seed: int = Field(default=0, ge=0)
    """Of the pairs and their labels."""
    seed: int = Field(default=0, ge=0)
    """Of the fit: the order of the pairs."""
    device: str = "cpu"


Reward = str | ProxySettings
"""A scorer by its name, as `reward.model` takes it; or a proxy that is still to be fitted."""


class EvaluationSettings(BaseModel):
    """Fresh responses behind a policy's final figures: as many to each prompt as show whether they differ."""

    model_config = FROZEN

    num_prompts: int = Field(default=EXAMINED, gt=0)
    """At most: a file of fewer is asked whole, one of more in part, by one draw for all arms and pools."""
    group_size: int = Field(default=8, gt=1)


class RetentionSettings(BaseModel):
    """Texts that a policy is asked about and never trained to write."""

    model_config = FROZEN

    texts: int = Field(default=256, gt=0)
    """Of the reference, in answer to each half of the prompts."""
    coef: float = Field(default=0.0, ge=0)
    """γ of the pretraining loss on others of the same kind; 0: none."""


class ArmSettings(BaseModel):
    """One policy trained against a reward, and all that is asked of it."""

    model_config = FROZEN

    policy: Policy = BASE
    rewards: tuple[Reward, ...] = (ProxySettings(),)
    combine: Literal["mean", "worst", "uncertainty", "weights"] = "mean"
    """How several rewards become one."""
    uncertainty_weight: float = Field(default=0.5, ge=0)
    clip: tuple[float, float] | None = None
    """What is learnt from lies between these."""
    gold: str = GOLD
    monitors: tuple[Reward, ...] = ()
    """Further scorers that only watch."""
    prompts: str = PROMPTS
    kl_coef: float | None = 0.0
    """β, held; None where `kl_target` is."""
    kl_target: float | None = None
    """Nats per response, held by the `tilt` controller."""
    chi_squared: float = Field(default=0.0, ge=0)
    algorithm: str = "ppo"
    learning_rate: float = Field(default=3e-4, gt=0)
    steps: int = Field(default=40, gt=0)
    num_prompts: int = Field(default=16, gt=0)
    group_size: int = Field(default=2, gt=0)
    max_new_tokens: int = Field(default=24, gt=0)
    seed: int = Field(default=0, ge=0)
    evaluation: EvaluationSettings = EvaluationSettings()
    retention: RetentionSettings | None = None
    device: str = "cpu"
    keep_model: bool = False
    """Whether the trained weights stay."""


class PoolSettings(BaseModel):
    """Many responses of the reference to each prompt, with what every reward and the gold one say of them."""

    model_config = FROZEN

    policy: Language = BASE
    rewards: tuple[Reward, ...] = ()
    gold: str = GOLD
    prompts: str = PROMPTS
    num_prompts: int = Field(default=EXAMINED, gt=0)
    samples: int = Field(default=128, gt=1)
    """Of each prompt."""
    max_new_tokens: int = Field(default=24, gt=0)
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"


class WeighSettings(BaseModel):
    """Responses of a model with a fault, and what the gold model makes of them with it and without."""

    model_config = FROZEN

    policy: Policy = FaultSettings()
    gold: str = GOLD
    prompts: str = PROMPTS
    samples: int = Field(default=16, gt=1)
    """Of every prompt."""
    max_new_tokens: int = Field(default=24, gt=0)
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
