"""`kleash reward`, `kleash score` and `kleash models` as a user runs them."""

import json
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main as cli
from tests.rewards.serving import lengths, reply, serving


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_embedded_models_are_plain_directories(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "list", "--json"]) == 0
    models = {each["name"]: each for each in document(capsys)["models"]}
    assert models.keys() == {"tiny-reviews/base", "tiny-reviews/gold"}
    for each in models.values():
        assert (Path(each["path"]) / "config.json").is_file()
        assert each["parameters"] > 1_000_000


def test_praise_scores_above_a_pan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "a wonderful , moving film ."}, {"text": "a dull and stupid mess ."}]
    path = write_lines(tmp_path / "texts.jsonl", rows)
    assert cli.run(["score", "tiny-reviews/gold", str(path), "--json"]) == 0
    praise, pan = document(capsys)["scores"]
    assert praise > 0 > pan
    assert cli.run(["score", "tiny-reviews/gold", str(path)]) == 0
    assert capsys.readouterr().out == f"{praise:.6f}\n{pan:.6f}\n"


@pytest.mark.parametrize("row", [{"words": "no text"}, {"prompt": "no response"}])
def test_a_line_that_cannot_be_scored_is_bad_input(
    row: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [row])
    assert cli.run(["score", "tiny-reviews/gold", str(path)]) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_server_scores_and_is_sent_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [{"text": "four"}, {"text": "sixsix"}])
    monkeypatch.setenv("REWARD_TOKEN", "t0ken")
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with serving(lengths) as served:
        command = ["score", served.url, str(path), "--json"]
        assert cli.run([*command, "--token-env", "REWARD_TOKEN"]) == 0
        assert document(capsys) == {"scores": [4.0, 6.0]}
        assert served.requests[0].headers["Authorization"] == "Bearer t0ken"
        assert cli.run([*command, "--token-env", "NO_TOKEN"]) == 2
        assert cli.run([*command, "--token-env", "not a name"]) == 2
        assert cli.run([*command, "--label", "1"]) == 2
        served.answer = reply(b"", 404)
        assert cli.run(command) == 5
    assert cli.run(["score", "http://me:t0ken@127.0.0.1/", str(path)]) == 2
    said = capsys.readouterr()
    assert "t0ken" not in said.out + said.err


@pytest.mark.e2e
def test_a_fitted_reward_model_can_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [
        {
            "prompt": f"film {i} is",
            "chosen": f"film {i} is good .",
            "rejected": f"film {i} is bad .",
        }
        for i in range(24)
    ]
    config, out = tmp_path / "reward.toml", tmp_path / "proxy"
    config.write_text(f"[data]\npairs = '{write_lines(tmp_path / 'pairs.jsonl', pairs)}'\n")
    settings = ["--set", "train.epochs=2", "--set", "train.batch_size=8"]
    assert cli.run(["reward", str(config), *settings, "--out", str(out), "--json"]) == 0
    said = document(capsys)
    assert said["model"] == str(out)
    assert said["report"]["num_pairs"] + said["report"]["held_out"]["num_pairs"] == 24
    assert len(said["report"]["held_out"]["reliability"]) == 10
    path = write_lines(tmp_path / "texts.jsonl", [{"text": "film 3 is good ."}])
    assert cli.run(["score", str(out), str(path), "--json"]) == 0
    assert len(document(capsys)["scores"]) == 1
