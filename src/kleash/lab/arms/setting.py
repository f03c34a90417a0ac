"""What the arms of a study have in common, as its `[setting]` says."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from kleash.lab.arms.settings import (
    BASE,
    FROZEN,
    GOLD,
    PROMPTS,
    ArmSettings,
    EvaluationSettings,
    Language,
    PoolSettings,
    ProxySettings,
    Reward,
)


class PoolSize(BaseModel):
    """`[pool]`: responses of the reference to what arms are examined on; best-of-n chooses from them."""

    model_config = FROZEN

    samples: int = Field(default=256, gt=1)
    """To each prompt: the largest n."""


class Setting(BaseModel):
    """`[setting]`: the model, its gold reward, and how arms are trained. The defaults are embedded.

    Examples:
        >>> Setting().arm({"seed": 3}).seed
        3
    """

    model_config = FROZEN

    policy: Language = BASE
    """Trained, and the reference it is held to: an embedded name, a directory or a hub id."""
    gold: str = GOLD
    """What a response is really worth, as `reward.model` takes it; training never sees it."""
    prompts: str = PROMPTS
    algorithm: str = "ppo"
    learning_rate: float = Field(default=3e-4, gt=0)
    steps: int = Field(default=60, gt=0)
    """Of each arm."""
    num_prompts: int = Field(default=32, gt=0)
    group_size: int = Field(default=2, gt=0)
    max_new_tokens: int = Field(default=24, gt=0)
    evaluation: EvaluationSettings = EvaluationSettings()
    device: str = "cpu"
    keep_model: bool = False
    """Whether every arm's weights stay in its run, under `final/`."""
    pairs: int = Field(default=300, gt=9)
    """Preference pairs behind a proxy."""
    noise: float = Field(default=1.0, gt=0)
    """Of their labels: P(chosen) = σ(Δ gold/noise)."""

    def arm(self, changes: Mapping[str, Any]) -> ArmSettings:
        """An arm of this setting, but for what is changed; by the fields of `ArmSettings`."""
        common = {name: getattr(self, name) for name in Setting.model_fields if name in _OF_ARMS}
        return ArmSettings.model_validate({**common, **changes})

    def proxy(self, seed: int, changes: Mapping[str, Any] | None = None) -> ProxySettings:
        """A proxy of this setting: its pairs and its fit by one seed, but for what is changed."""
        common = {
            "base": self.policy,
            "speaker": self.policy,
            "gold": self.gold,
            "prompts": self.prompts,
            "pairs": self.pairs,
            "noise": self.noise,
            "max_new_tokens": self.max_new_tokens,
            "data_seed": seed,
            "seed": seed,
            "device": self.device,
        }
        return ProxySettings.model_validate({**common, **(changes or {})})

    def pool(self, size: PoolSize, rewards: Sequence[Reward]) -> PoolSettings:
        """A pool of this setting's reference, scored by the gold reward and by others."""
        return PoolSettings(
            policy=self.policy,
            rewards=tuple(rewards),
            gold=self.gold,
            prompts=self.prompts,
            num_prompts=self.evaluation.num_prompts,
            samples=size.samples,
            max_new_tokens=self.max_new_tokens,
            device=self.device,
        )


QUICK_SETTING: dict[str, Any] = {"steps": 50, "num_prompts": 16, "evaluation": {"group_size": 4}}
"""Of quick studies: alike, so that they share their arms."""
_OF_ARMS = ArmSettings.model_fields.keys()
