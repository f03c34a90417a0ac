"""`kleash lab`: the golden table on the terminal and as JSON, other problems, and what is refused."""

import json
from pathlib import Path

import pytest

from kleash.cli import main as cli

PROBLEM = {
    "vocab": 2,
    "length": 1,
    "ref_logits": [[0.0, 0.0]],
    "rewards": [1.3862943611198906, 0.0],
}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert cli.run(["lab", "estimators", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_golden_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--beta", "1")
    assert found["kl"] == pytest.approx(0.27515735, abs=1e-8)
    figures = found["estimators"]["k1"]
    assert figures.keys() == {"mean", "std", "gradient_cosine", "gradient_norm_ratio"}
    assert figures["std"] / found["kl"] == pytest.approx(2.523, abs=1e-3)
    assert figures["gradient_cosine"] is None


def test_a_problem_and_a_policy_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """π = (.8, .2) against (.5, .5), once as the optimum at β = 1 and once as a table: 0.192745 nats."""
    problem, policy = tmp_path / "mdp.json", tmp_path / "policy.json"
    problem.write_text(json.dumps(PROBLEM), encoding="utf-8")
    policy.write_text(json.dumps([[1.3862943611198906, 0.0]]), encoding="utf-8")
    one = run(capsys, "--mdp", str(problem), "--beta", "1")
    other = run(capsys, "--mdp", str(problem), "--policy", str(policy))
    assert one == other
    assert one["kl"] == pytest.approx(0.192745, abs=1e-6)
    assert one["estimators"]["k2"]["gradient_cosine"] == pytest.approx(1)
    # 1.875 against 1.386294: the gradient of the forward KL
    assert one["estimators"]["k3"]["gradient_norm_ratio"] == pytest.approx(1.352527, abs=1e-6)


def test_the_table_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lab", "estimators"]) == 0
    said = capsys.readouterr().out
    assert "2.04047 nats/response, over 4,096 sequences" in said
    assert "exact_rao_blackwell" in said


@pytest.mark.parametrize(
    "words",
    [
        ["--beta", "0"],
        ["--beta", "nan"],
        ["--beta", "1", "--policy", "x.json"],
        ["--mdp", "missing.json"],
        ["--policy", "missing.json"],
    ],
)
def test_bad_input_has_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lab", "estimators", *words]) == 2
    assert "error" in capsys.readouterr().err
