"""The example of a leash on TRL's GRPO: as it is run."""

import importlib.util
import json
from pathlib import Path

import pytest

from kleash.replay import verify_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_grpo_leash.py"


STEPS = 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing`:FutureWarning")
def test_a_few_of_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That a leash on GRPO comes to its target is shown in `tests/integrations`."""
    spec = importlib.util.spec_from_file_location("trl_grpo_leash", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(tmp_path / "run", steps=STEPS)
    shown = capsys.readouterr().out
    assert f"verified: {STEPS} steps, finished" in shown
    assert verify_run(tmp_path / "run").ok
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (
        abs(lines[0]["kl_policy_ref_per_response"]) < 1e-5 < lines[-1]["kl_policy_ref_per_response"]
    )
    assert shown.count("reward") == len(lines) == STEPS
