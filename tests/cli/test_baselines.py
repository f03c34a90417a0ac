"""`kleash dpo` and `kleash sft` as a user runs them, on the embedded model and for a few small steps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main as cli

CONFIG = """
[data]
{data}
[rollout]
num_prompts = 4
group_size = 2
max_new_tokens = 5
[reward]
model = "scoring:score"
[train]
steps = 4
batch_size = 2
meter_every = 3
num_samples = 2
threads = 1
"""
SCORING = "def score(prompts, responses):\n    return [float(len(text)) for text in responses]\n"
PAIR = '{"prompt": "the film", "chosen": " is good .", "rejected": " is bad ."}\n'
TEXT = '{"prompt": "the film", "completion": " is good ."}\n'


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with two configurations, their data and a reward function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "scoring", raising=False)
    (tmp_path / "scoring.py").write_text(SCORING)
    (tmp_path / "pairs.jsonl").write_text(PAIR * 3)
    (tmp_path / "texts.jsonl").write_text(TEXT * 3)
    (tmp_path / "dpo.toml").write_text(CONFIG.format(data='pairs = "pairs.jsonl"'))
    (tmp_path / "sft.toml").write_text(CONFIG.format(data='texts = "texts.jsonl"'))
    return tmp_path


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


@pytest.mark.e2e
@pytest.mark.parametrize("method", ["dpo", pytest.param("sft", marks=pytest.mark.slow)])
def test_a_run_is_trained_verified_and_reported(
    method: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([method, f"{method}.toml", "--json"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    run = Path("runs") / method
    assert (said["run"], said["status"], said["steps"]) == (str(run), "finished", 4)
    assert said["verified"] is True
    assert said["final_kl"]["value"] > 0
    assert said["metrics"]["reward_mean"] > 0
    # Nothing of TRL's own: a line of ours for each measurement.
    assert [line.split()[:2] for line in err.splitlines()] == [
        ["training", f"{step}/4"] for step in (0, 3, 4)
    ]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 3, 4]
    assert (run / "report.html").is_file()
    assert cli.run(["verify", str(run), "--head", said["head"]]) == 0
    assert capsys.readouterr().out.count("✓") == 10
    assert cli.run(["report", str(run), "--out", "page.html"]) == 0
    assert not [path for path in directory.iterdir() if path.name == "trainer_output"]


@pytest.mark.parametrize(
    ("method", "setting", "what"),
    [
        ("dpo", "data.pairs=none.jsonl", "cannot read"),
        ("dpo", "data.pairs=texts.jsonl", "'chosen' is not a text"),
        ("dpo", "data.paris=a.jsonl", "data.pairs"),
        ("dpo", "dpo.beta=0", "dpo.beta"),
        ("dpo", "rl.kl_target=4", "rl"),
        ("dpo", "guard.max_kl_new_old=1", "max_kl_new_old"),
        ("dpo", "rollout.num_prompts=100000", "more prompts"),
        ("sft", "data.texts=none.jsonl", "cannot read"),
        ("sft", "data.texts=pairs.jsonl", "'completion' is not a text"),
        ("sft", "reward.model=nowhere:score", "nowhere"),
        ("sft", "train.device=abacus", "train.device"),
    ],
)
def test_what_cannot_be_had_is_bad_input_and_leaves_nothing(
    method: str, setting: str, what: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([method, f"{method}.toml", "--set", setting, "--json"]) == 2
    out, err = capsys.readouterr()
    assert what in out
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_over_the_limit_is_exit_code_3(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["dpo", "dpo.toml", "--set", "guard.max_kl=1e-6", "--run", "over"]) == 3
    assert "guard.max_kl" in capsys.readouterr().err
    assert cli.run(["verify", "over", "--json"]) == 0
    assert document(capsys)["status"] == "failed"
    assert Path("over/report.html").is_file()


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_without_trl_the_command_says_what_to_install(
    method: str,
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith(("trl", "kleash.integrations"))]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        """Finds no TRL."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] == "trl":
                raise ModuleNotFoundError("No module named 'trl'", name="trl")

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert cli.run([method, f"{method}.toml", "--json"]) == 2
    said = document(capsys)["error"]
    assert said["got"] == "no trl"
    assert said["do"] == "pip install 'kleash[trl]'"
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.e2e
def test_ctrl_c_ends_the_run_cleanly(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "from kleash.cli.main import main; main()", "dpo"]
    with subprocess.Popen(
        [*command, "dpo.toml", "--set", "train.steps=10000", "--run", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KLEASH_DEBUG": "1"},
    ) as process:
        try:
            metrics = Path("run/metrics.jsonl")
            until = time.monotonic() + 120
            while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
                assert time.monotonic() < until, "no second measurement within two minutes"
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted after" in out
    assert cli.run(["verify", "run", "--json"]) == 0
    assert document(capsys)["status"] == "interrupted"
    assert Path("run/final/model.safetensors").is_file()


def test_the_examples_are_configurations() -> None:
    from kleash.config import load
    from kleash.integrations.trl.config import DPORunConfig, SFTRunConfig

    examples = Path(__file__).parents[2] / "examples"
    assert load(DPORunConfig, examples / "tiny_dpo.toml").dpo.loss == "sigmoid"
    assert load(SFTRunConfig, examples / "tiny_sft.toml").sft.completion_only
