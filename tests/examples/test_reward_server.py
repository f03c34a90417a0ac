"""The reward server of the documentation: a user's first, so that it must run as it is printed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kleash.cli import main as cli
from kleash.rewards.scorers import load_scorer

EXAMPLE = Path(__file__).parents[2] / "examples" / "reward_server.py"


@pytest.fixture
def url() -> Iterator[str]:
    """Of the example, run as a command on a port that is free."""
    command = [sys.executable, str(EXAMPLE), "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_it_scores(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_scorer(url).score(["p"] * 3, ["abC.", "", "É"]) == [0.5, 0.0, 0.0]
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "ab"}\n{"prompt": "p", "response": "A"}\n')
    assert cli.run(["score", url, str(path)]) == 0
    assert capsys.readouterr().out == "1.000000\n0.000000\n"


def test_the_page_shows_it_as_it_is() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    code = EXAMPLE.read_text(encoding="utf-8").partition("\n\n\n")[2]
    assert code.strip() in page
