"""Sequence classifiers that score text: load, make from a language model, save, and run in batches.

Scores go by text, so a reward model may use another tokenizer than the policy. A text longer than
the model's context loses its beginning, never its end: the response is what is judged. Everything
here is float32 with dropout off, pads on the right, and gives a text the same score in whatever
batch it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kleash.errors import InputError
from kleash.models.loading import locate, quietly, readable


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModel:
    """A sequence classifier with its tokenizer, in evaluation mode."""

    name: str
    """As the user named it."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    max_length: int
    """Longest text in tokens that the model reads."""

    @property
    def num_labels(self) -> int:
        """Number of outputs per text; a reward model proper has one."""
        return int(self.model.config.num_labels or 1)


class Encoded(NamedTuple):
    """Texts as token ids, at most `max_length` each, and how long they were before."""

    ids: list[list[int]]
    lengths: list[int]
    """In tokens, before anything was left out."""

    @property
    def num_truncated(self) -> int:
        """Number of texts whose beginning was left out."""
        return sum(length > len(ids) for ids, length in zip(self.ids, self.lengths, strict=True))


def load_reward_model(name: str, *, device: str = "cpu") -> RewardModel:
    """Loads a trained sequence classifier from its safetensors.

    Args:
        name: an embedded name, a local directory or a hub id.
        device: where its weights go.

    Raises:
        InputError: nothing is there, it cannot be read, or it has no trained head.
    """
    model, missing = _load(name, device, {})
    if missing:
        raise InputError(
            f"{name!r} has no trained classification head",
            expected="a sequence classifier whose every weight is in its files",
            got=f"{type(model).__name__} without {', '.join(sorted(missing)[:3])}",
            do="name a reward model, or fit one on this model with `kleash reward`",
        )
    return _assemble(name, model)


def new_reward_model(base: str, *, seed: int, device: str = "cpu") -> RewardModel:
    """A scalar head on a copy of a language model's trunk, ready to be fitted.

    Every score starts at 0, so that the fit begins at the loss of a coin and has no drawn preference
    to unlearn. A base that is a reward model already keeps its head.

    Args:
        base: an embedded name, a local directory or a hub id of a causal language model.
        seed: draws what a head has below its last layer; the global random state is left alone.
        device: where the weights go.

    Raises:
        InputError: nothing is there, or it cannot be given a head.
    """
    model, missing = _load(base, device, {"num_labels": 1})
    trunk = sorted(key for key in missing if key.startswith(f"{model.base_model_prefix}."))
    if trunk:
        raise InputError(
            f"the weights of {base!r} are not those of a language model",
            expected=f"every weight of the trunk of {type(model).__name__}",
            got=f"none for {', '.join(trunk[:3])}",
        )
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if key in missing:
            is_last = parameter.ndim < 2 or parameter.shape[0] == 1
            std = 0.0 if is_last else parameter.shape[-1] ** -0.5
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(std * drawn)
    model.config.id2label, model.config.label2id = {0: "reward"}, {"reward": 0}
    return _assemble(base, model)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of an embedded model, a local directory or a hub id.

    Raises:
        InputError: there is none.
    """
    with readable(name, "text classifier"), quietly():
        return AutoTokenizer.from_pretrained(locate(name), trust_remote_code=False)


@torch.no_grad()
def rescale(reward: RewardModel, factor: float) -> None:
    """Multiplies every score by `factor`, inside the last layer of the head.

    Raises:
        InputError: the model has no linear layer at its end.
    """
    trunk = f"{reward.model.base_model_prefix}."
    heads = [
        module
        for name, module in reward.model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == reward.num_labels
        and not name.startswith(trunk)
    ]
    if not heads:
        raise InputError(
            f"the scores of {reward.name!r} cannot be rescaled",
            expected="a linear layer at its end",
            got=type(reward.model).__name__,
        )
    for parameter in heads[-1].parameters():
        parameter.mul_(factor)


def save_reward_model(reward: RewardModel, directory: Path) -> None:
    """Writes model (safetensors) and tokenizer as a plain Hugging Face directory.

    The tokenizer's `model_max_length` says how long a text the model reads: loaded again, it reads as much.
    """
    tokenizer = reward.tokenizer
    declared, tokenizer.model_max_length = tokenizer.model_max_length, reward.max_length
    try:
        with quietly():
            reward.model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
    finally:
        tokenizer.model_max_length = declared


def encode(reward: RewardModel, texts: Sequence[str], *, max_length: int | None = None) -> Encoded:
    """Tokenises texts the one way that fitting and scoring share.

    The tokenizer's own special tokens are added once: a text that a chat template has already begun
    with the beginning-of-text token does not get a second one.

    Args:
        reward: whose tokenizer.
        texts: whole texts, prompt and response together.
        max_length: a limit in tokens below the model's own.
    """
    limit = min(max_length or reward.max_length, reward.max_length)
    rows = _tokenise(reward, texts)
    lengths = [len(row) for row in rows]
    long = [i for i, length in enumerate(lengths) if length > limit]
    if long:
        for i, row in zip(long, _tokenise(reward, [texts[i] for i in long], limit), strict=True):
            rows[i] = row
    return Encoded(rows, lengths)


def forward(reward: RewardModel, ids: Sequence[Sequence[int]]) -> Tensor:
    """The model's outputs for one batch of token ids.

    Returns:
        [B, L] float32, L = `reward.num_labels`.
    """
    longest = max(map(len, ids))
    rows = [[*row, *[reward.pad_id] * (longest - len(row))] for row in ids]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    device = reward.model.device
    logits: Tensor = reward.model(
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(mask, device=device),
    ).logits
    return logits


@torch.inference_mode()
def predict(reward: RewardModel, ids: Sequence[Sequence[int]], *, batch_size: int = 32) -> Tensor:
    """The model's outputs for any number of texts, texts of like length batched together.

    Returns:
        [N, L] float32 on the CPU, in the order of `ids`.
    """
    out = torch.empty(len(ids), reward.num_labels)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        out[batch] = forward(reward, [ids[i] for i in batch]).float().cpu()
    return out


def _tokenise(
    reward: RewardModel, texts: Sequence[str], limit: int | None = None
) -> list[list[int]]:
    """Token ids; a text beyond `limit` loses its beginning, but not its special tokens."""
    if not texts:
        return []
    tokenizer = reward.tokenizer
    bos = tokenizer.bos_token
    if isinstance(bos, str) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        texts = [text.removeprefix(bos) for text in texts]
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        rows: list[list[int]] = tokenizer(
            list(texts), truncation=limit is not None, max_length=limit, verbose=False
        )["input_ids"]
    finally:
        tokenizer.truncation_side = side
    # Nothing at all cannot be scored; a lone padding token can, and says "empty" as well as any.
    return [row or [reward.pad_id] for row in rows]


def _load(name: str, device: str, overrides: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """The classifier and the names of the weights that its files do not hold."""
    # transformers draws what the files do not hold from the global random state.
    with readable(name, "text classifier"), quietly(), torch.random.fork_rng(devices=[]):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            locate(name),
            **overrides,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return model.to(device).eval(), set(info["missing_keys"])


def _assemble(name: str, model: PreTrainedModel) -> RewardModel:
    """Model and tokenizer, agreeing on padding and on the longest text."""
    tokenizer = load_tokenizer(name)
    embedding: Any = model.get_input_embeddings()
    vocabulary = int(embedding.weight.shape[0])
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"the tokenizer of {name!r} does not fit the model",
            expected=f"at most {vocabulary} tokens, the rows of its embedding",
            got=f"{len(tokenizer)} tokens",
        )
    candidates = (tokenizer.pad_token_id, model.config.pad_token_id, tokenizer.eos_token_id)
    pad_id = next((i for i in candidates if isinstance(i, int) and 0 <= i < vocabulary), 0)
    # The classifiers find the last real token by comparing with this.
    model.config.pad_token_id = pad_id
    model.config.use_cache = False
    context = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return RewardModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        pad_id=pad_id,
        max_length=min(int(context), int(tokenizer.model_max_length)),
    )
