"""`kleash demo`, in small: the whole story in one command."""

import json
from pathlib import Path

import pytest

from kleash.cli import main as cli

SMALL = {
    "pairs": 96,
    "fit_epochs": 1,
    "steps": 2,
    "num_prompts": 4,
    "max_new_tokens": 8,
    "evaluations": 1,
}
ROW = {
    "name",
    "proxy_reward",
    "gold_reward",
    "kl_policy_ref_per_response",
    "kl_low",
    "kl_high",
    "distinct_2",
    "mean_length",
    "run",
}


@pytest.mark.slow
@pytest.mark.e2e
def test_the_demo_trains_verifies_and_reports(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    assert cli.run(["demo", "--out", str(out), *settings, "--json"]) == 0
    captured = capfd.readouterr()
    said = json.loads(captured.out)
    assert [arm["name"] for arm in said["arms"]] == ["no penalty", "fixed β", "leashed"]
    assert all(arm.keys() == ROW for arm in said["arms"])
    assert said["verified"] is True
    assert Path(said["report"]).is_file()
    assert "leashed 2/2" in captured.err
    for arm in said["arms"]:
        assert cli.run(["verify", arm["run"]]) == 0
    assert cli.run(["demo", "--out", str(out)]) == 2


def test_a_setting_the_demo_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--set", "stps=2"]) == 2
    assert "did you mean steps?" in capsys.readouterr().err
