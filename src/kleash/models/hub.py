"""From a name to a loaded language model, and back to a plain Hugging Face directory. Nothing in a file is executed."""

import copy
import difflib
import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from kleash.errors import ConfigError, InputError
from kleash.models.embedded import names, resolve
from kleash.models.policy import LanguageModel, check_head

# The command line has a progress bar of its own.
disable_progress_bar()


def load_language_model(name: str, device: str = "cpu") -> LanguageModel:
    """A causal language model in float32 and eval mode, from safetensors only.

    Args:
        name: an embedded model's name, a directory, or a hub id.
        device: where to put it.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    path = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _no_model(name, error) from error
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
    language_model.model.save_pretrained(directory, safe_serialization=True)
    language_model.tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _no_model(name: str, error: Exception) -> InputError:
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        reason = "no such directory"
    return InputError(
        f"cannot load the language model {name!r}",
        expected="an embedded model's name, a Hugging Face directory with safetensors, or a hub id",
        got=reason[:300],
        do=f"did you mean {near[0]!r}?" if near else f"embedded models: {', '.join(names())}",
    )


def _vocabulary_mismatch(policy: LanguageModel, reference: LanguageModel, got: str) -> ConfigError:
    return ConfigError(
        "policy and reference don't share a vocabulary",
        expected=f"the vocabulary of {policy.name}: {policy.vocab_size} logits",
        got=f"{reference.name}: {got}",
        do="take the model the policy was fine-tuned from, or leave model.reference out",
    )
