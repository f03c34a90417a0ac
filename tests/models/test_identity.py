"""Whether weights are the same: to the bit, quickly, and by what is written down."""

import pytest
import torch
from torch import Tensor

from kleash.models.identity import are_same, fingerprint, state_digest

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]


def state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = torch.randn(6, 4)
    return {"a": weights.to(dtype), "b": torch.ones(8).to(dtype), "c": torch.ones(()).to(dtype)}


@pytest.mark.parametrize("dtype", TYPES)
def test_a_copy_is_the_same(dtype: torch.dtype) -> None:
    one = state(dtype)
    other = {name: x.clone() for name, x in one.items()}
    assert are_same(one, other)
    assert fingerprint(one) == fingerprint(other)
    assert state_digest(one) == state_digest(other)


@pytest.mark.parametrize("dtype", TYPES[:4])
def test_one_bit_makes_it_another(dtype: torch.dtype) -> None:
    one, other = state(dtype), state(dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one["a"].element_size()]
    other["a"].view(bits)[3, 2] ^= 1
    assert not are_same(one, other)
    assert fingerprint(one) != fingerprint(other)
    assert state_digest(one) != state_digest(other)


def test_bits_decide_and_not_numbers() -> None:
    zero, nan = torch.zeros(2), torch.full((2,), torch.nan)
    assert are_same({"x": nan}, {"x": nan.clone()})
    assert not are_same({"x": zero}, {"x": -zero})
    assert not are_same({"x": zero}, {"x": zero.double()})
    assert not are_same({"x": zero}, {"x": zero.view(1, 2)})
    assert not are_same({"x": zero}, {"y": zero})
    assert not are_same({"x": zero}, {"x": zero, "y": zero})


def test_what_is_changed_alike_everywhere_is_seen() -> None:
    """An exclusive or of pairs is 0 before and after."""
    one = {"norm": torch.ones(8)}
    assert fingerprint(one) != fingerprint({"norm": 2 * torch.ones(8)})
