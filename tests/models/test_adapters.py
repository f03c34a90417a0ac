"""LoRA: one base in memory, a policy that is its difference, and references that are another."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from kleash.errors import ConfigError, InputError
from kleash.models.config import LoraConfig
from kleash.models.hub import (
    freeze,
    load_language_model,
    load_reference,
    read_weights,
    save_language_model,
)
from kleash.models.policy import LanguageModel

BASE = "tiny-reviews/base"
IDS = torch.tensor([[5, 9, 14, 3, 77, 8]])


def states(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.hidden(IDS[:, :2], torch.ones(1, 2, dtype=torch.bool), IDS[:, 2:])


def moved(seed: int = 0, rank: int = 4) -> LanguageModel:
    """A policy whose adapter adds something."""
    torch.manual_seed(seed)
    policy = load_language_model(BASE, lora=LoraConfig(rank=rank))
    move(policy)
    return policy


def move(policy: LanguageModel) -> None:
    for name, weight in policy.own_weights.items():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)


def saved(tmp_path: Path) -> Path:
    save_language_model(moved(), tmp_path / "sft", "card")
    return tmp_path / "sft"


def test_a_new_adapter_adds_nothing_and_has_the_bases_identity() -> None:
    base = load_language_model(BASE)
    policy = load_language_model(BASE, lora=LoraConfig())
    assert policy.digest() == base.digest()
    assert torch.equal(states(policy), states(base))
    move(policy)
    assert policy.digest() != base.digest()


def test_what_an_adapter_adds_is_the_product_of_its_matrices() -> None:
    """W + (α/r) B A in a plain model gives the same states."""
    policy, plain = moved(), load_language_model(BASE)
    weights = policy.own_weights
    with torch.no_grad():
        for name, module in plain.model.named_modules():
            if f"{name}.lora_A.weight" in weights:
                product = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
                module.weight += 2.0 * product
    assert (states(policy) - states(load_language_model(BASE))).abs().max() > 0.1
    torch.testing.assert_close(states(policy), states(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["new", "saved"])
def test_the_reference_is_the_same_base_as_it_was(start: str, tmp_path: Path) -> None:
    """One copy in memory; what the policy learns doesn't reach it, and reading it leaves the policy as it was."""
    policy = (
        load_language_model(BASE, lora=LoraConfig())
        if start == "new"
        else load_language_model(str(saved(tmp_path)))
    )
    before = states(policy)
    reference = load_reference(policy, None)
    digest = reference.digest()
    assert reference.model is policy.model
    awake = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    move(policy)
    after = states(policy)
    assert torch.equal(states(reference), before)
    assert torch.equal(states(policy), after)
    assert not torch.equal(after, before)
    assert reference.digest() == digest
    assert {n for n, p in policy.model.named_parameters() if p.requires_grad} == awake
    assert not any(p.requires_grad for p in reference.own_weights.values())
    assert all(p.requires_grad for p in policy.own_weights.values())
    # A new adapter's reference is no adapter at all; a trained one's is one of its own.
    assert (len(reference.own_weights) == 0) == (start == "new")


def test_an_error_while_the_reference_speaks_leaves_the_policy_as_it_was() -> None:
    policy = moved()
    reference, before = freeze(policy), states(policy)
    with pytest.raises(ZeroDivisionError), reference.speaking():
        raise ZeroDivisionError
    assert torch.equal(states(policy), before)


def test_a_gradient_through_the_policy_survives_reading_the_reference() -> None:
    policy = moved()
    reference = freeze(policy)
    mask = torch.ones(1, 2, dtype=torch.bool)
    found: list[Tensor] = []
    for between in (False, True):
        loss = policy.hidden(IDS[:, :2], mask, IDS[:, 2:]).square().sum()
        if between:
            states(reference)
        weight = next(iter(policy.own_weights.values()))
        found.append(torch.autograd.grad(loss, weight)[0])
    assert torch.equal(*found)


def test_the_base_of_an_adapter_is_its_reference_by_name(tmp_path: Path) -> None:
    policy = load_language_model(str(saved(tmp_path)))
    reference = load_reference(policy, BASE)
    assert reference.model is policy.model
    assert torch.equal(states(reference), states(load_language_model(BASE)))


def test_a_saved_adapter_is_peft_s_own(tmp_path: Path) -> None:
    policy = moved()
    save_language_model(policy, tmp_path / "final", "card", findable=True)
    said = json.loads((tmp_path / "final/adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(
        said["base_model_name_or_path"], dtype=torch.float32
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, of transformers
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "final").eval()
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits[0, 1:-1]
    torch.testing.assert_close(policy.head(states(policy)[0]), expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "final/README.md").read_text() == "card"
    # Two processes write the same bytes: the order is no set's.
    assert said["target_modules"] == sorted(said["target_modules"])


def test_what_is_read_again_is_what_was_saved(tmp_path: Path) -> None:
    policy = moved()
    save_language_model(policy, tmp_path / "one", "card")
    found = read_weights(tmp_path / "one", policy)
    assert found.keys() == policy.own_weights.keys()
    assert all(torch.equal(x, policy.own_weights[name]) for name, x in found.items())
    again = load_language_model(str(tmp_path / "one"))
    assert again.digest() == policy.digest()


@pytest.mark.parametrize(
    ("lora", "match"),
    [
        ({"target_modules": ("nowhere",)}, "names no layer"),
        ({"target_modules": ("lm_head",)}, "embeddings or the head"),
        ({"target_modules": ("embed_tokens", "q_proj")}, "embeddings or the head"),
    ],
)
def test_an_adapter_in_a_wrong_place_is_refused(lora: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_language_model(BASE, lora=LoraConfig(**lora))


def test_an_adapter_on_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an adapter already"):
        load_language_model(str(saved(tmp_path)), lora=LoraConfig())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("use_dora", True),
        ("peft_type", "IA3"),
        ("base_model_name_or_path", None),
        ("r", "x"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(key: str, value: object, tmp_path: Path) -> None:
    path = saved(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError):
        load_language_model(str(path.parent))


def test_a_pickled_adapter_is_not_read(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    torch.save(load_file(directory / "adapter_model.safetensors"), directory / "adapter_model.bin")
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load_language_model(str(directory))
