"""Breaches in real runs, a few; `benchmarks/breaches.py` has hundreds.

What is kept is measured again by plain torch, and what is refused leaves everything as it was.
"""

from pathlib import Path

import pytest

from tests.train.breach import Case, broken, free_run, limited


@pytest.mark.parametrize(
    "case",
    [
        Case("activation, measuring", "nan", "rloo", 3),
        Case("value head", "inf", "ppo", 3),
        Case("reward, unchecked", "-inf", "ppo", 4),
    ],
)
def test_what_is_no_number_is_refused_and_leaves_no_trace(tmp_path: Path, case: Case) -> None:
    """In both steps in which it breaks, and in no other."""
    outcome = broken(tmp_path / "given", tmp_path / "run", case)
    assert outcome.faults == []
    assert outcome.actions == {"accept": 5, "reject": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "least"),
    [
        (Case("max_kl_new_old", "shrink", "ppo", 3), 5),
        (Case("max_path_variation", "reject", "rloo", 3), 3),
        (Case("max_kl_canary", "rollback", "ppo", 3), 2),
    ],
)
def test_nothing_is_kept_over_its_limit_by_another_measure(
    tmp_path: Path, case: Case, least: int
) -> None:
    free = free_run(tmp_path / "given", tmp_path / "free", case.algorithm, case.seed)
    outcome = limited(tmp_path / "given", tmp_path / "run", case, free)
    assert outcome.faults == []
    assert outcome.breaches >= least
    assert case.mode in outcome.actions
