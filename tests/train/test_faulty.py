"""Faults of a run and who finds them, one seed; `benchmarks/faults.py` has all faults and twenty."""

from pathlib import Path

import pytest

from tests.train.faulty import FAULTS, SOUND, Sound, watch

FIRST: dict[str, str] = {
    "KL spike: rate ×50, one update": "shortened",
    "poisoned batch: rewards ×1000": "max_raw_grad_norm",
    "poisoned batch: other tokens": "max_mismatch",
    "sampler at temperature 1.2": "max_mismatch",
    "NaN in the reward": "reward check",
    "NaN in the reward, unchecked": "finite",
    "inf in an activation": "finite",
    "NaN in a gradient": "finite",
    "fp16 overflow of the gradient": "finite",
    "−inf in a weight": "finite",
    "NaN in a moment": "finite",
    "KL estimate below zero": "possible",
}
"""What finds a fault in its first update."""


@pytest.mark.slow
def test_what_breaks_at_once_is_found_at_once_and_each_fault_begins_from_the_same_run(
    tmp_path: Path,
) -> None:
    """Nothing is applied that is not within its limits; and nothing of a fault is left for the next."""
    sound = Sound(tmp_path / "given", 2000, warm=12)
    before = watch(SOUND, sound, updates=2, whole=True)
    found = {name: watch(FAULTS[name], sound, updates=1) for name in FIRST}
    assert {name: [sign.by for sign in signs] for name, signs in found.items()} == {
        name: [by] for name, by in FIRST.items()
    }
    refused = {name for name, signs in found.items() if not signs[0].is_kept}
    assert refused == {name for name, by in FIRST.items() if by != "shortened"}
    assert before == watch(SOUND, sound, updates=2, whole=True) == []
