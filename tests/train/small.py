"""A language model of a few hundred weights, saved as any other: for runs that are over in a second.

Beside it what such a run is made from, and what is left of it when it is over.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kleash.ledger import read

LETTERS = "abcdefgh"


def save_small_model(directory: Path, seed: int = 5) -> Path:
    """Writes it; its tokens are letters, of which one ends a response."""
    vocabulary = {"<e>": 0, "<u>": 1, **{letter: 2 + i for i, letter in enumerate(LETTERS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<e>", unk_token="<u>", pad_token="<e>"
    ).save_pretrained(directory)
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "eos_token_id": 0,
        "initializer_range": 0.5,
    }
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(directory)
    return directory


def save_prompts(path: Path) -> Path:
    """Writes prompts for it."""
    path.write_text("".join(f"{a}{b}\n" for a in LETTERS for b in LETTERS[:3]))
    return path


def count_a(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward."""
    return [float(text.count("a")) - 0.1 * len(text) for text in responses]


def small_settings(
    directory: Path, reward: str = "tests.train.small:count_a", **train: Any
) -> dict[str, Any]:
    """Of a run of seven steps, with a checkpoint every three; model and prompts are written."""
    return {
        "model": {"policy": str(save_small_model(directory / "model"))},
        "data": {"prompts": str(save_prompts(directory / "prompts.txt"))},
        "rollout": {"num_prompts": 4, "group_size": 2, "max_new_tokens": 4},
        "reward": {"model": reward},
        "rl": {"kl_target": 0.3},
        "algorithm": {"num_epochs": 1, "num_minibatches": 2},
        "optimizer": {"learning_rate": 1e-2},
        "train": {
            "steps": 7,
            "threads": 1,
            "device": "cpu",
            "num_samples": 2,
            "sample_every": 2,
            "checkpoint_every": 3,
            "trackers": [],
            **train,
        },
    }


@contextmanager
def in_memory() -> Generator[Path]:
    """A directory that no disk is behind, where there can be one: a sync of it takes no time."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory).resolve()


def remains(run: Path) -> dict[str, bytes]:
    """All that a run is, but when it was and how often it was begun: weights, newest checkpoint, files, record.

    Checkpoints hold the optimiser and the states of all random streams.
    """
    checkpoints = sorted((run / "checkpoints").iterdir()) if (run / "checkpoints").is_dir() else []
    trees = [run / "final", *checkpoints[-1:]]
    paths = [p for tree in trees for p in tree.rglob("*") if p.is_file()]
    paths += [run / f"{name}.jsonl" for name in ("metrics", "samples", "drift")]
    paths += [run / "config.json"]
    entries = read(run / "ledger")
    bodies = [(e.type, e.body) for e in entries if e.type in ("run.started", "update")]
    record = json.dumps([*bodies, (entries[-1].type, entries[-1].body)])
    return {
        **{str(path.relative_to(run)): path.read_bytes() for path in paths},
        "ledger": record.encode(),
    }
