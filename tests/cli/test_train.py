"""`kleash train` as a user runs it, on the embedded model and for a few small steps."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main as cli
from kleash.cli.console import Screen
from kleash.cli.options import vacant_directory
from kleash.cli.train import held, noting
from kleash.errors import InputError
from kleash.ledger import read
from kleash.records import KLReading, StepRecord, Verdict
from kleash.report.view import RunView

CONFIG = """
[rollout]
num_prompts = 4
group_size = 2
max_new_tokens = 6
[reward]
model = "scoring:score"
[rl]
kl_target = 4.0
[train]
steps = 2
num_samples = 2
"""
SCORING = "def score(prompts, responses):\n    return [float(len(text)) for text in responses]\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration in an empty working directory, with its reward function beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "scoring", raising=False)
    (tmp_path / "scoring.py").write_text(SCORING)
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG)
    return path


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


@pytest.mark.e2e
def test_a_run_is_trained_verified_and_reported(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(config), "--set", "train.steps=3", "--json"]) == 0
    said = document(capsys)
    run = Path("runs/tiny")
    assert (said["run"], said["status"], said["steps"]) == (str(run), "finished", 3)
    assert said["verified"] is True
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert said["metrics"]["kl_policy_ref_per_response"] >= 0
    assert said["final_kl"]["value"] > said["metrics"]["kl_policy_ref_per_response"]
    assert said["final_kl"]["direction"] == "policy_ref"
    assert said["refused"] == 0
    assert said["head"] == read(run / "ledger")[-1].leaf
    assert (run / "report.html").is_file()
    assert (run / "final" / "model.safetensors").is_file()
    assert cli.run(["verify", str(run), "--head", said["head"]]) == 0
    assert capsys.readouterr().out.count("✓") == 10
    assert cli.run(["verify", str(run), "--head", "0" * 64, "--json"]) == 4
    assert document(capsys)["ok"] is False
    assert cli.run(["report", str(run), "--out", "page.html", "--json"]) == 0
    assert document(capsys) == {"report": "page.html", "runs": [str(run)]}
    ledger = run / "ledger" / "segments" / "000000.jsonl"
    ledger.write_bytes(re.sub(rb'(?<="kl_coef":)[0-9]', b"7", ledger.read_bytes(), count=1))
    assert cli.run(["verify", str(run)]) == 4
    assert "✗" in capsys.readouterr().out


@pytest.mark.e2e
def test_a_reward_that_fails_ends_the_run_with_a_record(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "scoring.py").write_text(
        "calls = 0\n"
        "def score(prompts, responses):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return [float('nan') if calls > 2 else 1.0 for _ in responses]\n"
    )
    assert cli.run(["train", str(config), "--set", "train.steps=50", "--run", "broken"]) == 5
    assert "broken" in capsys.readouterr().err
    assert cli.run(["verify", "broken", "--json"]) == 0
    assert document(capsys)["status"] == "failed"
    assert Path("broken/report.html").is_file()


@pytest.mark.parametrize(
    "setting",
    [
        "model.policy=not/a/model",
        "data.prompts=none.txt",
        "data.prompts=empty.txt",
        "reward.model=scoring:missing",
        "reward.model=nowhere:score",
        "rollout.num_prompts=100000",
        "rollout.max_new_tokens=100000",
        "train.device=abacus",
    ],
)
def test_what_cannot_be_had_is_bad_input_and_leaves_nothing(
    setting: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "empty.txt").write_text("")
    assert cli.run(["train", str(config), "--set", setting]) == 2
    shown = capsys.readouterr().err
    assert "error" in shown
    assert "Traceback" not in shown
    assert not Path("runs").exists()


def test_a_run_takes_the_next_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert vacant_directory(None, "a") == Path("runs/a")
    for name in ("a", "a-2", "a-3"):
        Path("runs", name).mkdir(parents=True)
    assert vacant_directory(None, "a") == Path("runs/a")  # it is empty
    Path("runs/a/metrics.jsonl").touch()
    Path("runs/a-2/metrics.jsonl").touch()
    assert vacant_directory(None, "a") == Path("runs/a-3")
    with pytest.raises(InputError):
        vacant_directory(Path("runs/a"), "b")
    assert vacant_directory(Path("runs/new"), "b") == Path("runs/new")


def test_what_the_controller_has_to_say_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    kl = KLReading(
        value=4.0,
        low=None,
        high=None,
        n=8,
        clusters=4,
        unit="response",
        direction="policy_ref",
        estimator="exact",
        reference="base",
    )
    notes = ("", "held", "held", "", "at its rail of 0.5", "at its rail of 12", "\x1b[2J\nred")
    records = [
        StepRecord(step=i, kl=kl, kl_coef=0.1, verdict=Verdict(action="accept"), note=note)
        for i, note in enumerate(notes, 1)
    ]
    assert list(noting(iter(records), Screen())) == records
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "step 2: held",
        "step 5: at its rail of 0.5",
        "step 7: ␛[2J⏎red",
    ]


@pytest.mark.parametrize(
    ("rl", "kl", "said"),
    [
        ({}, 5.0, "5.00 on average over the last third, for 5.05: held"),
        ({}, 3.0, "3.00 on average over the last third, for 5.05: not held"),
        (
            {"kl_at_most": True},
            4.0,
            "5.00 interval's upper end on average over the last third, for 5.05: held",
        ),
        (
            {"kl_at_most": True},
            6.0,
            "7.00 interval's upper end on average over the last third, for 5.05: not held",
        ),
    ],
)
def test_a_run_is_judged_by_the_targets_that_it_had(rl: dict, kl: float, said: str) -> None:
    """Twelve steps of a ramp to 6 nats, of which the last four are for 4.9, 5.0, 5.1 and 5.2."""
    targets = tuple(4.1 + 0.1 * step for step in range(12))
    name = "kl_policy_ref_per_response"
    metrics = {"kl_target": targets, name: (kl,) * 12, f"{name}_high": (kl + 1.0,) * 12}
    view = RunView(
        name="ramp",
        config={"rl": {"kl_target": 6.0, **rl}},
        versions={},
        digests={},
        steps=tuple(range(1, 13)),
        metrics=metrics,
        samples=(),
    )

    assert said in str(held(view))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_cleanly_and_it_can_be_gone_on_with(
    config: Path, capsys: pytest.CaptureFixture[str], sent: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-c", "from kleash.cli.main import main; main()", "train"]
    with subprocess.Popen(
        [*command, str(config), "--set", "train.steps=10000", "--run", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KLEASH_DEBUG": "1"},
    ) as process:
        try:
            metrics = Path("run/metrics.jsonl")
            until = time.monotonic() + 120
            while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
                assert time.monotonic() < until, "no second step within two minutes"
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            process.send_signal(sent)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "interrupted after" in out
    assert "--run run --resume" in err
    assert cli.run(["verify", "run", "--json"]) == 0
    said = document(capsys)
    assert said["status"] == "interrupted"
    made = metrics.read_text().count("\n")
    assert said["steps"] == made
    assert Path("run/final/model.safetensors").is_file()
    words = ["train", str(config), "--run", "run", "--resume"]
    # Not as it was begun: refused, and nothing is touched.
    assert cli.run([*words, "--set", f"train.steps={made + 1}"]) == 2
    assert "train.steps" in capsys.readouterr().err
    assert metrics.read_text().count("\n") == made


@pytest.mark.e2e
def test_a_run_goes_on_from_the_command_line(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--resume` begins where nothing is, goes on where something is, and has nothing to add to a finished run."""
    words = ["train", str(config), "--set", "train.steps=3", "--resume"]
    assert cli.run([*words, "--run", "whole", "--json"]) == 0
    whole = document(capsys)
    with pytest.MonkeyPatch.context() as patch:
        scoring = importlib.import_module("scoring")
        calls = iter(range(100))
        real = scoring.score

        def breaks(prompts: list[str], responses: list[str]) -> list[float]:
            if next(calls) == 3:
                raise OSError("the reward's server is away")
            return real(prompts, responses)

        patch.setattr(scoring, "score", breaks)
        assert cli.run([*words, "--run", "run"]) == 5
    capsys.readouterr()
    assert cli.run([*words, "--run", "run", "--json"]) == 0
    said = json.loads((captured := capsys.readouterr()).out)
    assert "the run goes on" in captured.err
    assert (said["status"], said["steps"], said["verified"]) == ("finished", 3, True)
    assert said["metrics"] == whole["metrics"]
    assert cli.run([*words, "--run", "run"]) == 2
    assert "has finished" in capsys.readouterr().err
