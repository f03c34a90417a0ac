"""Injected breaches of every limit, and updates within all of them: none is taken for the other."""

import math
import random
from dataclasses import replace

import pytest

from kleash.guard import GuardConfig, check, decide, start
from tests.guard.injected import FINE, KINDS, TARGETS, draw_breach, inject


def test_no_breach_is_accepted_and_nothing_within_its_limits_is_refused() -> None:
    """Of every limit in every way; `benchmarks/breaches.py` does ten thousand."""
    found = inject(700, seed=1)
    assert {name for name, _ in found.injected} == {*TARGETS}
    assert {kind for _, kind in found.injected} == {*KINDS}
    assert not found.accepted
    assert found.refused == 0


def test_without_what_was_injected_each_would_have_been_accepted() -> None:
    """So that it is the breach that is refused, and not what stands beside it."""
    draw = random.Random(2)
    cases = [case for case in (draw_breach(draw) for _ in range(300)) if case.kind != "missing"]
    assert len(cases) > 200
    for case in cases:
        target = TARGETS[case.target]
        mended = target.put(case.evidence, 1e9 if target.is_floor else 0.0)
        breach = check(case.config, case.state, mended)
        assert (breach.unfit, breach.too_far) == ([], [])
        assert decide(case.config, case.state, 1, mended, {}, None).verdict.keeps


@pytest.mark.parametrize(
    "name", [name for name, target in TARGETS.items() if target.is_always_number]
)
@pytest.mark.parametrize("value", [math.nan, -math.inf, -1.0])
def test_what_can_be_no_measurement_is_refused_without_a_limit(name: str, value: float) -> None:
    """−∞ is under every ceiling: a limit alone would let it pass."""
    evidence = TARGETS[name].put(FINE, value)
    # The sampler's reading is only shown where it is limited.
    config = GuardConfig(max_mismatch=1.0 if name == "mismatch" else None)
    assert not decide(config, start(config, 9), 1, evidence, {}, None).verdict.keeps


def test_entropy_over_every_floor_is_refused() -> None:
    config = GuardConfig(min_entropy=0.5)
    evidence = replace(FINE, facts=replace(FINE.facts, entropy=math.inf))
    verdict = decide(config, start(config, 9), 1, evidence, {}, None).verdict
    assert verdict.action == "reject"
    assert verdict.reasons == ("the entropy per token is inf: not a number to act on",)
