"""Writes a model as a plain Hugging Face directory with float16 weights."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Saves model and tokenizer; `from_pretrained` gives float32 parameters back.

    Args:
        model: The model.
        tokenizer: Saved beside it, so that the directory is complete on its own.
        directory: Made if missing.
    """
    model.save_pretrained(directory)
    # Calls with padding or truncation leave both behind in the tokenizer.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(directory)
    path = directory / "model.safetensors"
    # Half the size on disk; config.json still says float32, which is what loading goes by.
    halves = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # The class name that transformers 4 knows as well.
    for name in ("is_local", "local_files_only"):
        config.pop(name, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
