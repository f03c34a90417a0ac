"""`kleash lab closed-form`: what it prints, what it promises as JSON, and what it refuses."""

import json
import math
from pathlib import Path

import pytest

from kleash.cli import main as cli

REWARDS = [1.0, 0.0, -1.0, 0.5]
PROBLEM = {
    "vocab": 2,
    "length": 2,
    "ref_logits": [[0.0, 0.0], [0.5, 0.0], [0.0, 1.0]],
    "rewards": REWARDS,
}


@pytest.fixture
def problem(tmp_path: Path) -> str:
    path = tmp_path / "mdp.json"
    path.write_text(json.dumps(PROBLEM), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_what_is_promised_as_json_and_that_it_is_true(
    problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--algorithms", "rloo", "--beta", "0.5", "--steps", "40", "--mdp", problem, "--json"]
    assert cli.run(["lab", "closed-form", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    rloo = found["algorithms"]["rloo"]

    assert list(found["algorithms"]) == ["rloo"]
    assert rloo.keys() == {
        *("j", "gap", "gain_lost", "reward", "kl", "kl_to_optimum", "seconds", "policy")
    }
    # From the policy alone, by hand: the law of the four sequences, the reference's, and log Z.
    first, after_0, after_1 = ([math.exp(x) for x in row] for row in rloo["policy"])
    law = [first[0] * p for p in after_0] + [first[1] * p for p in after_1]
    half, low = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.e)
    reference = [0.5 * half, 0.5 * (1 - half), 0.5 * low, 0.5 * (1 - low)]
    reward = sum(p * r for p, r in zip(law, REWARDS, strict=True))
    kl = sum(p * math.log(p / q) for p, q in zip(law, reference, strict=True))
    z = sum(q * math.exp(r / 0.5) for q, r in zip(reference, REWARDS, strict=True))

    assert sum(law) == pytest.approx(1, abs=1e-9)
    assert rloo["reward"] == pytest.approx(reward, abs=1e-9)
    assert rloo["kl"] == pytest.approx(kl, abs=1e-9)
    assert rloo["j"] == pytest.approx(reward - 0.5 * kl, abs=1e-9)
    assert found["j_star"] == pytest.approx(0.5 * math.log(z), abs=1e-9)
    assert rloo["gap"] == pytest.approx(0.5 * rloo["kl_to_optimum"], abs=1e-9)
    assert rloo["gain_lost"] < 0.05


@pytest.mark.slow
def test_it_is_shown_in_eighty_columns(problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--algorithms", "reinforce++", "--steps", "2", "--mdp", problem]
    assert cli.run(["lab", "closed-form", *words]) == 0
    said = capsys.readouterr().out

    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80
    assert [line.split()[0] for line in said.splitlines() if "%" in line] == ["reinforce++"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--algorithms", "roo"], "did you mean rloo?"),
        (["--algorithms", "rloo,,xx"], "xx"),
        (["--beta", "0"], "a positive number"),
        (["--beta", "nan"], "a positive number"),
        (["--beta", "1e-9"], "take a larger β"),
        (["--mdp", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["lab", "closed-form", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_rewards_that_float32_cannot_tell_apart_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {"vocab": 2, "length": 1, "ref_logits": [[0.0, 0.0]], "rewards": [0.0, 1e13]}
    (tmp_path / "large.json").write_text(json.dumps(problem), encoding="utf-8")

    words = ["--mdp", str(tmp_path / "large.json"), "--beta", "1e12", "--json"]
    assert cli.run(["lab", "closed-form", *words]) == 2
    assert "too large" in json.loads(capsys.readouterr().out)["error"]["what"]
