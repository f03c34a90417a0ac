"""Gradient checkpointing: the same gradients, with less kept for them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.errors import ConfigError
from kleash.models.config import LoraConfig, ModelConfig
from kleash.models.policy import LanguageModel
from kleash.models.recompute import enable_recompute
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.train.config import RunConfig
from kleash.train.learner import build_learner
from kleash.train.optimizer_config import OptimizerConfig
from kleash.train.run import train
from tests.train.small import small_settings


def built(lora: bool, recomputes: bool) -> LanguageModel:
    torch.manual_seed(0)
    settings = ModelConfig(
        lora=LoraConfig(rank=4) if lora else None, gradient_checkpointing=recomputes
    )
    return build_learner(settings, OptimizerConfig(), "cpu", with_values=False).policy


def gradients(model: LanguageModel) -> tuple[list[Tensor], int]:
    """Of some loss, and the bytes that were kept for them beside the weights."""
    torch.manual_seed(1)
    prompts = torch.randint(5, 99, (3, 6))[[0, 0, 1, 2]]
    responses = torch.randint(5, 99, (4, 20))
    weights = {p.data_ptr() for p in model.model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = model.hidden(prompts, torch.ones_like(prompts, dtype=torch.bool), responses)
    trained = [p for p in model.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(hidden.square().mean(), trained, materialize_grads=True)
    return list(found), sum(kept.values())


@pytest.mark.parametrize("lora", [False, True])
def test_the_gradients_are_the_same_and_less_is_kept(lora: bool) -> None:
    plain, much = gradients(built(lora, False))
    again, little = gradients(built(lora, True))
    for found, expected in zip(again, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert little < much / 4


def test_the_model_stays_in_evaluation_mode_and_samples_as_ever() -> None:
    one, other = built(False, True), built(False, False)
    gradients(one)
    assert not any(module.training for module in one.model.modules())
    config = RolloutConfig(num_prompts=1, group_size=4, max_new_tokens=8)
    found = [
        sample(model, ["the film"], config, torch.Generator().manual_seed(0)).sha256()
        for model in (one, other)
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_run_is_the_same_run(tmp_path: Path) -> None:
    drift: list[list[float]] = []
    for recomputes in (False, True):
        settings = small_settings(tmp_path)
        settings["model"]["gradient_checkpointing"] = recomputes
        steps = train(RunConfig.model_validate(settings), tmp_path / str(recomputes))
        drift.append([record.kl.value for record in steps])
    assert drift[1] == pytest.approx(drift[0], rel=1e-4)
    assert drift[1][-1] > 0.02


def test_an_architecture_without_it_is_refused() -> None:
    class Plain:
        def gradient_checkpointing_enable(self, _settings: object) -> None:
            raise ValueError("Plain does not support gradient checkpointing.")

    with pytest.raises(ConfigError, match="gradient checkpointing"):
        enable_recompute("it", Plain())
