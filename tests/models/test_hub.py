"""Loading and naming models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kleash.errors import ConfigError, InputError
from kleash.models.embedded import list_models, resolve
from kleash.models.hub import (
    freeze,
    load_language_model,
    load_reference,
    save_language_model,
)
from kleash.models.identity import weights_digest
from kleash.models.policy import Head


def test_a_model_with_weights_missing_is_refused(tmp_path: Path) -> None:
    """What the files don't hold would be drawn at random: an "exact" KL against noise."""
    copy = tmp_path / "broken"
    shutil.copytree(resolve("tiny-reviews/base"), copy)
    weights = load_file(copy / "model.safetensors")
    name = next(key for key in weights if key.endswith("down_proj.weight"))
    del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not complete") as caught:
        load_language_model(str(copy))
    assert name in caught.value.got


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x00" * 100),
        ("model.safetensors", b""),
        ("config.json", b'{"model_type": "llama", "hidden_size": "x"}'),
        ("config.json", b"{}"),
        ("tokenizer.json", b"[]"),
    ],
)
def test_a_broken_file_is_bad_input(name: str, content: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(resolve("tiny-reviews/base"), copy)
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot load"):
        load_language_model(str(copy))


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    copy = tmp_path / "pickled"
    shutil.copytree(resolve("tiny-reviews/base"), copy)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    assert load_language_model(str(copy)).unpads  # beside safetensors nobody looks at them
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pickled") as caught:
        load_language_model(str(copy))
    assert caught.value.got == "pytorch_model.bin"


def test_weights_that_are_no_numbers_are_refused_as_that(tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(resolve("tiny-reviews/base"), copy)
    weights = load_file(copy / "model.safetensors")
    next(x for name, x in weights.items() if name.endswith("up_proj.weight"))[0, 0] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not all numbers"):
        load_language_model(str(copy))


def test_a_token_that_the_model_does_not_know_is_refused() -> None:
    model = load_language_model("tiny-reviews/base")
    last = model.vocab_size - 1
    word = model.tokenizer.decode([last])
    assert last in model.encode(word)
    model.model.resize_token_embeddings(last)
    with pytest.raises(InputError, match="the tokenizer of tiny-reviews/base is not its model's"):
        model.encode(word)


def test_saved_weights_can_be_read_by_whoever_reads_the_rest(tmp_path: Path) -> None:
    save_language_model(load_language_model("tiny-reviews/base"), tmp_path / "out", "card")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_the_embedded_models_are_there_in_float32() -> None:
    found = {model.name: model for model in list_models()}
    assert set(found) == {"tiny-reviews/base", "tiny-reviews/gold"}
    base = load_language_model("tiny-reviews/base")
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    count = sum(p.numel() for p in base.model.parameters())
    assert found["tiny-reviews/base"].parameters == count
    assert 3e6 <= count <= 5e6


def test_a_missing_model_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        load_language_model("tiny-reviews/bsae")
    assert "tiny-reviews/base" in caught.value.do


def test_a_reference_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Pitfall 44."""
    policy = load_language_model("tiny-reviews/base")
    other = tmp_path / "other"
    shutil.copytree(resolve("tiny-reviews/base"), other)
    text = (other / "tokenizer.json").read_text()
    vocab = json.loads(text)
    names = list(vocab["model"]["vocab"])
    a, b = names[-1], names[-2]
    vocab["model"]["vocab"][a], vocab["model"]["vocab"][b] = (
        vocab["model"]["vocab"][b],
        vocab["model"]["vocab"][a],
    )
    (other / "tokenizer.json").write_text(json.dumps(vocab))
    with pytest.raises(ConfigError, match="vocabulary"):
        load_reference(policy, str(other))


def test_the_reference_is_a_copy_of_the_weights_in_memory() -> None:
    """Pitfall 34: not of what stands at the path the policy was loaded from."""
    policy = load_language_model("tiny-reviews/base")
    with torch.no_grad():
        next(iter(policy.model.parameters())).add_(0.01)
    reference = freeze(policy)
    assert weights_digest(reference.model) == weights_digest(policy.model)
    assert not any(p.requires_grad for p in reference.model.parameters())
    with torch.no_grad():
        next(iter(policy.model.parameters())).add_(0.01)
    assert weights_digest(reference.model) != weights_digest(policy.model)


def test_a_head_caps_and_scales_its_logits() -> None:
    head = Head(torch.eye(2), None, scale=2.0, softcap=3.0)
    logits = head(torch.tensor([[1.0, 100.0]]))
    assert torch.allclose(logits, 3 * torch.tanh(torch.tensor([[2 / 3, 200 / 3]])))


def test_without_a_reference_there_is_no_kl_and_no_run(tmp_path: Path) -> None:
    """Pitfall 33: a reference that can't be had is an error, never log-probabilities of 0."""
    policy = load_language_model("tiny-reviews/base")
    with pytest.raises(InputError, match="nothing-here"):
        load_reference(policy, str(tmp_path / "nothing-here"))
