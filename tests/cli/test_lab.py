"""`kleash lab`: the golden table and the plant, on the terminal and as JSON; other problems, and what is refused."""

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


def test_the_table_is_shown_in_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lab", "estimators", "--stale-beta", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "2.04047 nats/response, over 4,096 sequences" in said
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80
    rows = {line.split()[0]: line for line in said.split("On data from")[0].splitlines() if line}
    for name, words in {
        "k1": "nothing",
        "k2": "KL(π‖π_ref), own token only",
        "k3": "KL(π_ref‖π), own token only",
        "k3_sequence": "KL(π_ref‖π), whole",
        "k2_ratio": "wrong",
        "k1_in_reward": "KL(π‖π_ref), whole",
        "k3_in_reward": "wrong",
        "exact_in_reward": "later tokens only",
        "exact_rao_blackwell": "KL(π‖π_ref), whole",
        "exact_regressed": "unbiased",
    }.items():
        assert words in rows[name]
    for title in ("As a value", "In the loss", "In the reward", "In both", "β = 0.3"):
        assert title in said
    assert "+676.36 %" in said
    assert "nan" not in said


PROMISED = [
    *("k1", "k2", "k3", "exact", "topk_merged", "topk_sampled", "k2_sequence", "k3_sequence"),
    *("k1_in_reward", "k2_in_reward", "k3_in_reward", "exact_in_reward"),
    *("exact_rao_blackwell", "exact_regressed"),
]
"""Names of rows that others read."""


def test_stale_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--stale-beta", "0.3")
    assert set(PROMISED) <= found["estimators"].keys()
    assert found["gradient_noise"].keys() == found["estimators"].keys()
    assert found["stale"]["beta"] == 0.3
    for name, bias in (
        ("k1", -0.3623),
        ("k3", 6.76),
        ("k1_ratio", -0.0316),
        ("k3_ratio_prefix", 0),
    ):
        figures = found["stale"]["estimators"][name]
        assert figures["mean"] / found["kl"] - 1 == pytest.approx(bias, abs=5e-3)
    # On its own data nothing is stale.
    fresh = run(capsys, "--beta", "1", "--stale-beta", "1")
    for name, figures in fresh["stale"]["estimators"].items():
        assert figures == pytest.approx(fresh["estimators"][name], nan_ok=True)


def test_what_k3_cannot_hold_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """T8: at β = 0.03 some tokens are so rare that k3 goes on as a line, and is no longer unbiased."""
    assert cli.run(["lab", "estimators", "--beta", "0.03", "--stale-beta", "5"]) == 0
    said = capsys.readouterr().out
    assert "k3 is on its straight line" in said
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80
    assert cli.run(["lab", "estimators"]) == 0
    assert "straight" not in capsys.readouterr().out


def test_a_policy_that_has_not_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, policy = tmp_path / "mdp.json", tmp_path / "policy.json"
    problem.write_text(json.dumps(PROBLEM), encoding="utf-8")
    policy.write_text(json.dumps(PROBLEM["ref_logits"]), encoding="utf-8")
    words = ("--mdp", str(problem), "--policy", str(policy))
    found = run(capsys, *words)
    assert found["kl"] == 0
    for figures in found["estimators"].values():
        assert figures == {"mean": 0, "std": 0, "gradient_cosine": None, "gradient_norm_ratio": 0}
    assert cli.run(["lab", "estimators", *words]) == 0
    said = capsys.readouterr().out
    assert "0 nats/response" in said
    assert "nan" not in said


@pytest.mark.parametrize(
    "words",
    [
        ["--beta", "0"],
        ["--beta", "nan"],
        ["--beta", "1", "--policy", "x.json"],
        ["--mdp", "missing.json"],
        ["--policy", "missing.json"],
        ["--stale-beta", "-1"],
        ["--stale-beta", "inf"],
        ["--beta", "0.001"],
        ["--stale-beta", "1e-310"],
    ],
)
def test_bad_input_has_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lab", "estimators", *words]) == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": True},
        {"vocab": 10**9, "length": 10**9},
        {"rewards": [float("nan"), 0.0]},
        {"rewards": [[0.0, 0.0]]},
        {"ref_logits": [[False, True]]},
        {"ref_logits": [[0.0, 1e300]]},
        {"length": None},
    ],
)
def test_a_wrong_file_has_exit_code_2_and_says_what_is_wrong(
    change: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = tmp_path / "mdp.json"
    problem.write_text(json.dumps(PROBLEM | change), encoding="utf-8")
    assert cli.run(["lab", "estimators", "--mdp", str(problem), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert said["what"]
    assert said["expected"]
    assert said["got"]


def control(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert cli.run(["lab", "control", "--batch", "8", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_controllers_on_the_plant(capsys: pytest.CaptureFixture[str]) -> None:
    found = control(capsys, "--steps", "80", "--delay", "1")
    each = found["controllers"]
    assert next(iter(each)) == "tilt"
    assert len(each) > 1
    for run_ in each.values():
        assert len(run_["kl"]) == len(run_["kl_coef"]) == 80
        assert run_["kl"][0] == 0
        assert (run_["peak"], run_["recovery"], run_["held"]) == (None, None, 0)
        assert {"rise", "overshoot", "settling", "rms", "mean_error"} <= run_.keys()
    assert each["fixed"]["kl_coef"] == [0.2] * 80
    assert found["lambda_target"] == pytest.approx(5, abs=1e-6)
    assert found["beta_target"] == pytest.approx(0.2, abs=1e-6)
    assert found["fastest_rise"] == 44
    assert found["kl_max"] == pytest.approx(8.084461, abs=1e-6)
    conditions = {"eta": 0.1, "batch": 8, "delay": 1, "seed": 0, "steps": 80, "reward_scale_at": []}
    assert conditions.items() <= found.items()


@pytest.mark.slow
def test_the_reward_doubles_half_way_where_nothing_else_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = control(capsys, "--controller", "fixed")
    assert list(found["controllers"]) == ["fixed"]
    assert found["steps"] == 1200
    assert found["reward_scale_at"] == [{"step": 600, "factor": 2}]
    run_ = found["controllers"]["fixed"]
    assert run_["kl"][599] == pytest.approx(2.04046781, abs=1e-4)
    assert run_["kl"][1199] == pytest.approx(3.33920208, abs=1e-4)
    assert run_["recovery"] is None
    assert run_["peak"] == pytest.approx(3.33920208 / 2.04046781 - 1, abs=1e-4)


def test_figures_are_of_one_change_of_the_reward(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--controller", "fixed", "--eta", "1", "--steps", "200")
    changes = ("--reward-scale-at", "150:8", "--reward-scale-at", "100:1")
    run_ = control(capsys, *words, *changes)["controllers"]["fixed"]
    assert run_["peak"] == pytest.approx(0, abs=1e-6)
    assert max(run_["kl"]) > 4


def test_the_plant_is_shown_in_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "control.html"
    words = ["--batch", "8", "--steps", "90", "--reward-scale-at", "60:2", "--out", str(out)]
    assert cli.run(["lab", "control", *words]) == 0
    said = capsys.readouterr().out.replace(str(out), "OUT")
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80
    assert "┊ step 60: the reward times 2" in said
    assert "never" in said
    assert said.count("▁▁") >= 2
    page = out.read_text(encoding="utf-8")
    assert "KL(π‖π_ref), nats per response" in page
    assert "target 2.04047 nats" in page
    assert "Run by run" not in page


def test_a_plant_that_runs_away_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--batch", "8", "--steps", "30", "--kl-coef", "60", "--controller", "fixed")
    assert cli.run(["lab", "control", *words]) == 0
    assert "ηβ reached 6" in capsys.readouterr().out


def test_a_plant_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """π_ref = (.5, .5), R = (2 log 2, 0): at λ = 1 π = (.8, .2) and the KL 0.192745 nats; at most log 2."""
    problem = tmp_path / "mdp.json"
    problem.write_text(json.dumps(PROBLEM), encoding="utf-8")
    found = control(capsys, "--mdp", str(problem), "--target", "0.1927447", "--steps", "5")
    assert found["lambda_target"] == pytest.approx(1, abs=1e-5)
    assert found["kl_max"] == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize(
    "words",
    [
        ["--eta", "-0.1"],
        ["--eta", "nan"],
        ["--target", "8.1"],
        ["--target", "0"],
        ["--target", "nan"],
        ["--batch", "1"],
        ["--delay", "-1"],
        ["--delay", "16"],
        ["--steps", "0"],
        ["--seed", "-1"],
        ["--kl-coef", "-1"],
        ["--kl-coef", "nan"],
        ["--out", "nowhere/plot.html"],
        ["--controller", "none"],
        ["--reward-scale-at", "600"],
        ["--reward-scale-at", "600:"],
        ["--reward-scale-at", "half:2"],
        ["--reward-scale-at", "600:nan"],
        ["--reward-scale-at", "600:-1"],
        ["--reward-scale-at", "1200:2"],
        ["--mdp", "missing.json"],
    ],
)
def test_a_plant_that_cannot_be_has_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["lab", "control", *words, "--json"]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert said["what"]
    assert said["expected"]
    assert said["got"]
