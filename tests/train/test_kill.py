"""`kill -9` at any instant: nothing that was acknowledged is lost, and the run goes on to the same end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "kills", [pytest.param(40, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long)]
)
def test_a_run_that_is_killed_over_and_over_is_the_one_that_never_was(
    tmp_path: Path, kills: int
) -> None:
    """In a process of its own: it forks, which one with threads must not."""
    command = [sys.executable, "-m", "tests.train.kill", str(tmp_path), "--kills", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["kills"] >= kills
    assert (report["lost"], report["different"], report["stuck"]) == ([], [], [])
    assert all(report["phases"].values()), report["phases"]
