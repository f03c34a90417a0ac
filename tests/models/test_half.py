"""Models that compute in bfloat16: what is kept in float32, and how near they are to those that compute in it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.models.config import LoraConfig
from kleash.models.hub import load_language_model, load_reference
from kleash.models.policy import LanguageModel
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.train.config import RunConfig
from kleash.train.run import train
from tests.train.small import small_settings

BASE = "tiny-reviews/base"
PROMPTS = ["the film is", "a quiet story about"]


def policy(kind: str) -> LanguageModel:
    lora = LoraConfig(rank=4) if kind == "adapter" else None
    return load_language_model(BASE, lora=lora, dtype="bfloat16")


def logprobs(model: LanguageModel, ids: Tensor, mask: Tensor, responses: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = model.hidden(ids, mask, responses)
        return torch.log_softmax(model.head(hidden), -1).gather(-1, responses[..., None])[..., 0]


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_what_is_trained_is_float32_and_what_is_computed_is_not(kind: str) -> None:
    model = policy(kind)
    trained = [p for p in model.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    frozen = {p.dtype for p in model.model.parameters() if not p.requires_grad}
    assert frozen == ({torch.bfloat16} if kind == "adapter" else set())
    ids = torch.tensor([[5, 9, 14]])
    hidden = model.hidden(ids[:, :1], torch.ones(1, 1, dtype=torch.bool), ids[:, 1:])
    assert hidden.dtype == model.head.weight.dtype == model.dtype == torch.bfloat16
    assert model.head(hidden).dtype == torch.float32
    hidden.float().square().sum().backward()
    assert {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_sampling_and_scoring_agree_as_far_as_the_type_allows(kind: str) -> None:
    """Logits are not rounded to half precision on either side: what is left is the rounding of hidden states."""
    model, exact = policy(kind), load_language_model(BASE)
    config = RolloutConfig(num_prompts=2, group_size=8, max_new_tokens=12)
    rollout = sample(model, PROMPTS, config, torch.Generator().manual_seed(0))
    given = rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids
    mask = rollout.mask
    again = (logprobs(model, *given) - rollout.sampled_logprobs)[mask]
    assert float(again.abs().max()) < 0.2
    assert float(again.abs().mean()) < 0.02
    whole = (logprobs(model, *given) - logprobs(exact, *given))[mask]
    assert 0 < float(whole.abs().mean()) < 0.03


@pytest.mark.parametrize("kind", ["whole", "adapter"])
@pytest.mark.parametrize("reference", [None, BASE])
def test_the_same_weights_have_no_kl_between_them(kind: str, reference: str | None) -> None:
    """Both sides round alike, or the first step would read a drift that is none."""
    model = policy(kind)
    other = load_reference(model, reference)
    ids = torch.tensor([[5, 9, 14, 7]])
    given = ids[:, :2], torch.ones(1, 2, dtype=torch.bool), ids[:, 2:]
    with torch.no_grad():
        assert torch.equal(model.hidden(*given), other.hidden(*given))
    assert other.dtype == torch.bfloat16


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_run_in_half_precision_verifies_and_learns(
    lora: dict[str, int] | None, tmp_path: Path
) -> None:
    settings = small_settings(tmp_path)
    settings["model"] |= {"dtype": "bfloat16", "lora": lora}
    config = RunConfig.model_validate(settings)
    drift = [record.kl.value for record in train(config, tmp_path / "run")]
    assert drift[0] == 0
    assert drift[-1] > 0.02
