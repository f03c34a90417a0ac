"""From a name to a loaded language model, and back to a plain Hugging Face directory. Nothing in a file is executed."""

import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kleash.errors import ConfigError, InputError
from kleash.models.loading import locate, quietly, readable
from kleash.models.policy import LanguageModel, check_head


def load_language_model(name: str, device: str = "cpu") -> LanguageModel:
    """A causal language model in float32 and eval mode, from safetensors only.

    Args:
        name: an embedded model's name, a directory, or a hub id.
        device: where to put it.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    with readable(name, "language model"), quietly():
        path = locate(name)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
            path,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    # transformers draws at random what the files do not hold: noise, where a reference is asked for.
    if missing := sorted({*info["missing_keys"], *(str(x[0]) for x in info["mismatched_keys"])}):
        raise InputError(
            f"the weights of {name!r} are not complete",
            expected=f"every weight of {type(model).__name__} in its files",
            got=f"none that fits for {', '.join(missing[:3])}",
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {name} names no end-of-sequence token",
            expected="eos_token in tokenizer_config.json: it is how a response ends",
            do="set it, or use another model",
        )
    loaded = LanguageModel(name, model.to(device).eval(), tokenizer)
    check_head(loaded)
    return loaded


def freeze(language_model: LanguageModel) -> LanguageModel:
    """A frozen copy of the weights in memory, not of what a path holds: the reference is what the policy *was*."""
    model = copy.deepcopy(language_model.model).eval()
    model.requires_grad_(False)
    return LanguageModel(language_model.name, model, language_model.tokenizer)


def load_reference(policy: LanguageModel, name: str | None) -> LanguageModel:
    """The reference: a frozen copy of the policy, or another model that shares its vocabulary.

    Raises:
        ConfigError: the two don't share a vocabulary, so that a KL between them means nothing.
    """
    if name is None:
        return freeze(policy)
    reference = load_language_model(name, str(policy.device))
    reference.model.requires_grad_(False)
    if policy.vocab_size != reference.vocab_size:
        raise _vocabulary_mismatch(policy, reference, f"{reference.vocab_size} logits")
    if vocabulary_digest(policy.tokenizer) != vocabulary_digest(reference.tokenizer):
        raise _vocabulary_mismatch(policy, reference, "the same size, other tokens")
    return reference


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 over (token, id) pairs: two tokenizers with it in common mean the same by an id."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def save_language_model(language_model: LanguageModel, directory: Path, card: str) -> None:
    """Writes a plain Hugging Face directory: safetensors, tokenizer, model card."""
    directory.mkdir(parents=True, exist_ok=True)
    with quietly():
        language_model.model.save_pretrained(directory, safe_serialization=True)
        language_model.tokenizer.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):
        # safetensors writes for the owner alone, whatever the umask says of the rest.
        shutil.copymode(directory / "config.json", weights)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _vocabulary_mismatch(policy: LanguageModel, reference: LanguageModel, got: str) -> ConfigError:
    return ConfigError(
        "policy and reference don't share a vocabulary",
        expected=f"the vocabulary of {policy.name}: {policy.vocab_size} logits",
        got=f"{reference.name}: {got}",
        do="take the model the policy was fine-tuned from, or leave model.reference out",
    )
