"""The example of a leash on TRL's GRPO: as it is run."""

import importlib.util
import json
from pathlib import Path

import pytest

from kleash.replay import verify_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_grpo_leash.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing`:FutureWarning")
def test_it_comes_to_its_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("trl_grpo_leash", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(tmp_path / "run")
    assert f"verified: {example.STEPS} steps, finished" in capsys.readouterr().out
    assert verify_run(tmp_path / "run").ok
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    late = [line["kl_policy_ref_per_response"] for line in lines[-12:]]
    assert sum(late) / len(late) == pytest.approx(example.TARGET, rel=0.3)
    assert lines[-1]["reward_mean"] > lines[0]["reward_mean"]
