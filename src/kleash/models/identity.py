"""Which weights these are: a digest that says so to anyone, and quicker answers to whether they are still the same."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of as many bytes."""


def weights_digest(model: nn.Module) -> str:
    """`state_digest` of all that a module has."""
    return state_digest(model.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over every tensor's name, shape and bytes: the identity of a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(state):  # one at a time: it may be gathered as it is asked for
        tensor = state[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def are_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are the same, tensor by tensor; bits, so that a NaN is one NaN, and −0 is not 0."""
    return one.keys() == other.keys() and all(
        x is (y := other[name]) or (x.shape == y.shape and x.dtype == y.dtype and _equal(x, y))
        for name, x in one.items()
    )


class Fingerprint(NamedTuple):
    """What some tensors' bits sum to, and their exclusive or: quick, and nothing that can't be forged."""

    sums: tuple[int, ...]
    parities: tuple[int, ...]


def fingerprint(state: Mapping[str, Tensor]) -> Fingerprint:
    """Tells whether a set of weights was changed by accident since.

    Examples:
        >>> fingerprint({"x": torch.tensor([1.0, 1.0])}) == fingerprint({"x": torch.tensor([2.0, 2.0])})
        False
    """
    found = [_summed(state[name]) for name in sorted(state)]
    sums, parities = zip(*found, strict=True) if found else ((), ())
    return Fingerprint(sums, parities)


def _summed(tensor: Tensor) -> tuple[int, int]:
    words = _words(tensor)
    return int(words.sum(dtype=torch.int64)), int(torch.hash_tensor(words).view(torch.int64))


def _words(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().flatten()
    return flat.view(_WHOLE[flat.element_size()])


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(_words(one), _words(other))
