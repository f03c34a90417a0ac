"""From a name to a loaded language model, and back to a plain Hugging Face directory. Nothing in a file is executed."""

import copy
import hashlib
import shutil
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from kleash.errors import ConfigError, InputError
from kleash.models.adapters import CONFIG_FILE, base_of, is_adapter, load_adapter, new_adapter
from kleash.models.checks import can_unpad, check_head, check_past
from kleash.models.config import DType, LoraConfig
from kleash.models.loading import check_unpickled, locate, quietly, readable
from kleash.models.policy import LanguageModel


def load_language_model(
    name: str, device: str = "cpu", lora: LoraConfig | None = None, dtype: DType = "float32"
) -> LanguageModel:
    """A causal language model in eval mode, from safetensors only; its adapter, where it has one, too.

    What can be trained is in float32: the adapter's matrices, or every weight.

    Args:
        name: an embedded or fetched model's name, a directory, or a hub id; the directory of a LoRA adapter; or a
            GGUF file, whose weights are unpacked.
        device: where to put it.
        lora: an adapter to give it; None: none but its own.
        dtype: what it computes in.

    Raises:
        InputError: there is no such model, or it cannot be used.
        ConfigError: it can't be given the adapter.
    """
    with readable(name, "language model"), quietly():
        path = Path(name if is_gguf(name) else locate(name)).expanduser()
        has_adapter = is_adapter(path)
        base = base_of(path) if has_adapter else name
    if not has_adapter:
        if lora is None:
            loaded = _load_plain(base, device, "float32")
            return loaded if dtype == "float32" else replace(loaded, compute=getattr(torch, dtype))
        loaded = _load_plain(base, device, dtype)
        return replace(loaded, adapter=new_adapter(loaded.model, lora, base))
    if lora is not None:
        raise ConfigError(
            f"{name} is an adapter already",
            expected="no [model.lora]: it is that adapter which is trained, at the rank that it has",
            got=f"rank {lora.rank}",
            do="remove [model.lora], or name a model without one",
        )
    loaded = _load_plain(base, device, dtype)
    with readable(name, "LoRA adapter"), quietly():
        adapter = load_adapter(loaded.model, path, base)
    return replace(loaded, name=name, adapter=adapter)


def _load_plain(name: str, device: str, dtype: DType) -> LanguageModel:
    with readable(name, "language model"), quietly():
        if is_gguf(name):
            tokenizer, model = load_gguf(Path(name), dtype)
            info: dict[str, Any] = {"missing_keys": [], "mismatched_keys": []}
        else:
            path = locate(name)
            check_unpickled(name, Path(path))
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
                path,
                dtype=getattr(torch, dtype),
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
    if can_unpad(loaded):
        return replace(loaded, unpads=True)
    check_past(loaded)
    return loaded


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file."""
    return name.endswith(".gguf") and Path(name).expanduser().is_file()


def load_gguf(path: Path, dtype: DType = "float32") -> tuple[Any, Any]:
    """The tokenizer and the model of a GGUF file, its weights unpacked: a plain model, which can be saved as one.

    Raises:
        ValueError: it can't be read.
    """
    auto, where = cast(Any, AutoModelForCausalLM), path.expanduser()
    given: dict[str, Any] = {"gguf_file": where.name, "trust_remote_code": False}
    try:
        # The reader of GGUF draws a bar of its own, which nothing turns off.
        with redirect_stderr(StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(where.parent, **given)
            loaded = auto.from_pretrained(where.parent, dtype=dtype, **given)
    except Exception as error:  # a reader of bytes, which raises whatever these make it raise
        raise ValueError(f"{type(error).__name__}: {error}") from error
    # What was read remembers that it was packed, and could not be written as what it is now.
    config = loaded.config
    del config.quantization_config
    config.name_or_path = path.stem
    plain = auto.from_config(config, dtype=getattr(torch, dtype))
    plain.load_state_dict(loaded.state_dict())
    return tokenizer, plain


def freeze(language_model: LanguageModel) -> LanguageModel:
    """A frozen copy of the weights in memory, not of what a path holds: the reference is what the policy *was*.

    Of a base with an adapter only the adapter is copied, and not even that where it adds nothing yet.
    """
    if language_model.adapter is not None:
        return replace(language_model, adapter=language_model.adapter.frozen())
    model = copy.deepcopy(language_model.model).eval()
    model.requires_grad_(False)
    return replace(language_model, model=model)


def load_reference(policy: LanguageModel, name: str | None) -> LanguageModel:
    """The reference: a frozen copy of the policy, or another model that shares its vocabulary.

    Of a policy that is an adapter the model it belongs to is at hand, with the adapter off.

    Raises:
        ConfigError: the two don't share a vocabulary, so that a KL between them means nothing.
    """
    if name is None:
        return freeze(policy)
    if policy.adapter is not None and name == policy.adapter.base:
        return replace(policy, name=name, adapter=replace(policy.adapter, name=None))
    reference = replace(load_language_model(name, str(policy.device)), compute=policy.compute)
    if policy.compute is None and policy.dtype != reference.dtype:
        reference.model.to(policy.dtype)  # as an adapter's base is, it is not trained
    reference.model.requires_grad_(False)
    if policy.vocab_size != reference.vocab_size:
        raise _vocabulary_mismatch(policy, reference, f"{reference.vocab_size} logits")
    if vocabulary_digest(policy.tokenizer) != vocabulary_digest(reference.tokenizer):
        raise _vocabulary_mismatch(policy, reference, "the same size, other tokens")
    return replace(reference, chat=policy.chat)


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 over (token, id) pairs: two tokenizers with it in common mean the same by an id."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def first_difference(tokenizer: Any, other: Any) -> str | None:
    """Where two tokenizers part: the first id that means something else to each; None where they mean the same."""
    one, two = ({i: token for token, i in t.get_vocab().items()} for t in (tokenizer, other))
    for token in sorted(one.keys() | two.keys()):
        if one.get(token) != two.get(token):
            mine, theirs = (_token_shown(v, token) for v in (one, two))
            return f"token {token} is {mine} to one and {theirs} to the other"
    return None


def _token_shown(vocabulary: dict[int, str], token: int) -> str:
    return ascii(vocabulary[token][:40]) if token in vocabulary else "none"


def own_state(language_model: LanguageModel) -> dict[str, Tensor]:
    """What `save_language_model` writes, by the names that it is written from."""
    adapter = language_model.adapter
    if adapter is not None:
        return adapter.all_matrices
    return dict(language_model.model.state_dict(keep_vars=True))


def save_language_model(
    language_model: LanguageModel,
    directory: Path,
    card: str,
    *,
    findable: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Writes a plain Hugging Face directory: safetensors, tokenizer, model card; of an adapter as peft has it.

    Args:
        language_model: what.
        directory: where.
        card: README.md.
        findable: whether an adapter names its base by where it lies, for peft to find it, and not as it was given.
        weights: `own_state`, collected from the processes that have a part of it each; None: it is here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    adapter = language_model.adapter
    with quietly():
        if adapter is None:
            language_model.model.save_pretrained(
                directory, safe_serialization=True, state_dict=weights
            )
        else:
            path = Path(locate(adapter.base))
            base = str(path.resolve()) if findable and path.is_dir() else adapter.base
            adapter.save(directory, base, weights)
        language_model.tokenizer.save_pretrained(directory)
    for file in directory.glob("*.safetensors"):
        # safetensors writes for the owner alone, whatever the umask says of the rest.
        config = CONFIG_FILE if adapter is not None else "config.json"
        shutil.copymode(directory / config, file)
    (directory / "README.md").write_text(card, encoding="utf-8")


def read_weights(directory: Path, like: LanguageModel) -> dict[str, Tensor]:
    """The weights of a model that was saved, by the names that `like.own_weights` has them under."""
    if like.adapter is None:
        return load_language_model(str(directory)).own_weights
    return like.adapter.read(directory)


def _vocabulary_mismatch(policy: LanguageModel, reference: LanguageModel, got: str) -> ConfigError:
    return ConfigError(
        "policy and reference don't share a vocabulary",
        expected=f"the vocabulary of {policy.name}: {policy.vocab_size} logits",
        got=f"{reference.name}: {got}",
        do="take the model the policy was fine-tuned from, or leave model.reference out",
    )
