"""Several reward models as one whose weights are the mean of theirs: WARM (Ramé et al. 2024, arXiv 2401.12187)."""

import json
from collections.abc import Sequence
from dataclasses import replace
from reprlib import repr as shortened
from typing import Any

from kleash.errors import ConfigError
from kleash.models.reward_model import RewardModel, load_reward_model

_NO_MATTER = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
"""What a configuration says of how a model was saved. Dropout, of which there is none when a text is scored, may
differ too."""


def load_average(names: Sequence[str], *, device: str = "cpu") -> RewardModel:
    """θ̄ = 1/K Σ_k θ_k of K reward models, summed in double precision and then rounded to float32.

    Args:
        names: of two or more, as `load_reward_model` takes them; fitted from one initial model, or their mean is no
            good, which nothing here can tell.
        device: where the weights go.

    Raises:
        InputError: there is no such model.
        ConfigError: two of them differ in architecture, shape, labels, tokenizer or longest text; it says in what.
    """
    average = load_reward_model(names[0])
    model: Any = average.model
    common, state = _common(average), model.state_dict()
    sums = {key: each.double() for key, each in state.items() if each.is_floating_point()}
    for name in names[1:]:
        other = load_reward_model(name)
        _check_same(average.name, name, common, _common(other))
        for key, each in other.model.state_dict().items():
            if key in sums:
                sums[key] += each
    for key, each in sums.items():
        state[key].copy_(each / len(names))
    return replace(average, name=", ".join(names), model=model.to(device))


def _common(reward: RewardModel) -> dict[str, Any]:
    """What the members of an average must have in common, by what it is."""
    config = reward.model.config.to_dict()
    own = {key: x for key, x in config.items() if key not in _NO_MATTER and "drop" not in key}
    return {
        "architecture": type(reward.model).__name__,
        **{f"config {key}": value for key, value in own.items()},
        **{f"shape of {key}": tuple(each.shape) for key, each in reward.model.state_dict().items()},
        **{f"tokenizer {key}": value for key, value in _tokenizer(reward.tokenizer).items()},
        "longest text": reward.max_length,
    }


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """All by which a tokenizer makes ids of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    # How the last batch was cut and padded, which each call says anew.
    own = {key: value for key, value in parts.items() if key not in {"truncation", "padding"}}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return {**own, "special tokens": special, "chat template": tokenizer.chat_template}


def _check_same(name: str, other: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    """That two models can be averaged.

    Raises:
        ConfigError: they can't, and the first thing in which they differ.
    """
    for key in {**one, **two}:
        mine, theirs = one.get(key), two.get(key)
        if mine != theirs:
            said = f"{shortened(mine)} and {shortened(theirs)}"
            raise ConfigError(
                f"the weights of {name!r} and {other!r} can't be averaged",
                expected="reward models of one architecture, shape, labels and tokenizer",
                got=f"another {key}: {said}",
                do='fit them on one model with `kleash reward`, or take reward.combine = "mean", which averages scores',
            )
