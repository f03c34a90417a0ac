"""Intervals that hold together, and claims about all of several."""

import pytest
import torch

from kleash.lab.study.findings import decide_all
from kleash.lab.study.many import p_value, stepwise, together
from kleash.lab.study.statistics import Estimate

SAYS = ("All are.", "One is not.", "Open.")


def between(low: float | None, high: float | None) -> Estimate:
    return Estimate(value=0.0, low=low, high=high, n=3)


@pytest.mark.parametrize(
    ("ends", "holds", "lowest"),
    [
        ([(0.2, 0.9), (0.1, 3.0)], True, 0.1),
        ([(0.4, 0.5), (-1.0, 3.0)], None, -1.0),
        ([(-5.0, 3.0), (-1.0, -0.1)], False, -1.0),
        ([(0.4, 0.5), (None, None)], None, None),
    ],
)
def test_all_are_above_where_the_lowest_end_is(
    ends: list, holds: bool | None, lowest: float | None
) -> None:
    """And what is shown is the interval that decides: of one that is not above, or the lowest."""
    claim = decide_all("all", [between(*each) for each in ends], SAYS)
    assert claim.holds is holds
    assert claim.estimate is not None
    assert claim.estimate.low == lowest


def test_one_that_could_not_be_had_leaves_it_open() -> None:
    assert decide_all("all", [between(0.1, 0.2), None], SAYS).holds is None
    assert decide_all("all", [between(-2.0, -1.0), None], SAYS).holds is False
    assert decide_all("all", [], SAYS).holds is None


def test_intervals_that_hold_together_do() -> None:
    """Eight means of 0, three seeds each: all eight intervals hold 0 in 95 % of studies, which single ones don't."""
    generator = torch.Generator().manual_seed(0)
    studies = torch.randn(1000, 8, 3, generator=generator, dtype=torch.double).tolist()
    kept = sum(all(each and each.is_above(0.0) is None for each in together(s)) for s in studies)
    single = sum(all((p_value(x) or 0.0) > 0.05 for x in s) for s in studies)
    assert kept >= 0.93 * 1000  # three standard errors below 0.95
    assert single < 0.75 * 1000


def test_of_means_that_are_0_holm_settles_one_in_a_twentieth_of_studies() -> None:
    """Two of five are far from 0 and are found; that of the rest any is settled has a chance of 5 %."""
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(1000, 5, 5, generator=generator, dtype=torch.double)
    draws[:, :2] += 100.0
    found = [stepwise(study) for study in draws.tolist()]
    verdicts = [[each.is_above(0.0) if each else None for each in study] for study in found]
    assert all(study[:2] == [True, True] for study in verdicts)
    wrong = sum(any(each is not None for each in study[2:]) for study in verdicts) / 1000
    assert 0.03 <= wrong <= 0.065


def test_holm_by_hand() -> None:
    """p of 0.002, 0.03 and 0.04: against 0.05/3, and then 0.05/2, which ends it."""
    samples = [[t, t + 1.0, t - 1.0] for t in (12.9, 3.258, 2.798)]
    assert [p_value(each) for each in samples] == pytest.approx([0.002, 0.03, 0.04], abs=5e-4)
    samples.append([1.0])
    found = stepwise(samples)
    assert [each.level if each else None for each in found[:3]] == pytest.approx(
        [1 - 0.05 / 3, 0.975, 0.975]
    )
    assert [each.is_above(0.0) if each else None for each in found] == [True, None, None, None]


@pytest.mark.parametrize(("sample", "p"), [([2.0, 2.0], 0.0), ([0.0, 0.0], 1.0), ([1.0], None)])
def test_without_spread_a_mean_is_sure(sample: list[float], p: float | None) -> None:
    assert p_value(sample) == p
