"""A run whose reward is served: it fails, its run verifies, and goes on as if nothing had been."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main as cli
from kleash.ledger import read
from kleash.replay import verify_run
from tests.rewards.serving import Asked, Served, lengths, reply, serving
from tests.train.small import in_memory, remains, small_settings

RESPONSES = 8
"""Of a step's rollout: four prompts, two each. Samples are fewer, so that a request tells which it is for."""


@pytest.fixture
def memory() -> Iterator[Path]:
    with in_memory() as directory:
        yield directory


def breaks_at(rollout: int) -> Any:
    """Lengths, and 500 for the responses of that rollout, from 1, until the server is given another answer."""
    seen = 0

    def answer(handler: Any, asked: Asked) -> None:
        nonlocal seen
        seen += len(asked.document["responses"]) == RESPONSES
        (reply(b"out of memory", 500) if seen >= rollout else lengths)(handler, asked)

    return answer


def write(path: Path, settings: dict[str, Any]) -> Path:
    """Settings as TOML."""

    def text(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        return "{" + ", ".join(f"{json.dumps(k)} = {text(v)}" for k, v in value.items()) + "}"

    path.write_text("".join(f"{key} = {text(value)}\n" for key, value in settings.items()))
    return path


def settings_of(served: Served, directory: Path) -> dict[str, Any]:
    settings = small_settings(directory, steps=2, checkpoint_every=2)
    settings["reward"] = {
        "model": {served.url: 0.5, "tests.train.small:count_a": -1.5},
        "monitor": [served.url],
        "length_penalty": 0.25,
        "length_free": 1,
        "server": {"retries": 1, "backoff_s": 0.0, "batch_size": 8},
    }
    return settings


def train(config: Path, run: Path, *more: str) -> int:
    return cli.run(["train", str(config), "--run", str(run), "--skip-self-test", "--json", *more])


@pytest.mark.e2e
def test_a_run_goes_on_when_its_server_is_mended(
    memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lengths) as served:
        config = write(memory / "run.toml", settings_of(served, memory))
        assert train(config, memory / "whole") == 0
        served.answer = breaks_at(3)  # the reward and the monitor ask about the first, each
        assert train(config, memory / "broken") == 5
        error = json.loads(capsys.readouterr().out.partition("\n}\n")[2])["error"]
        assert served.url in error["what"]
        assert error["got"] == "HTTP 500, beginning 'out of memory', at attempt 2"
        assert "--resume" in error["do"]
        assert verify_run(memory / "broken").ok
        entries = read(memory / "broken" / "ledger")
        assert [e.body["step"] for e in entries if e.type == "update"] == [1]
        assert entries[-1].type == "run.failed"
        served.answer = lengths
        assert train(config, memory / "broken", "--resume") == 0
    assert verify_run(memory / "broken").ok
    assert remains(memory / "broken") == remains(memory / "whole")


@pytest.mark.e2e
def test_what_a_run_says_of_its_rewards(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lengths) as served:
        config = write(memory / "run.toml", settings_of(served, memory))
        assert train(config, memory / "run") == 0
    url, other = served.url, "tests.train.small:count_a"
    text = (memory / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 2
    for line in lines:
        first, second = line[f"reward_part/{url}"], line[f"reward_part/{other}"]
        assert line["reward_mean"] == pytest.approx(0.5 * first - 1.5 * second, abs=1e-6)
        assert line[f"monitor/{url}"] == first
        assert -1 <= line["reward_length_correlation"] <= 1
    card = (memory / "run" / "final" / "README.md").read_text(encoding="utf-8")
    assert f"0.5 × {url} + -1.5 × {other}" in card


@pytest.mark.e2e
def test_a_run_that_cannot_reach_its_server_begins_and_can_be_gone_on_with(
    memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lengths) as served:
        config = write(memory / "run.toml", settings_of(served, memory))
        served.answer = reply(b"", 503)
        assert train(config, memory / "run") == 5
        assert verify_run(memory / "run").ok
        served.answer = lengths
        assert train(config, memory / "run", "--resume") == 0
        assert train(config, memory / "whole") == 0
    assert remains(memory / "run") == remains(memory / "whole")


def test_a_token_is_in_no_file_of_a_run(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "t0p-s3cret-" + "x" * 30
    monkeypatch.setenv("REWARD_TOKEN", token)

    def echo(handler: Any, asked: Asked) -> None:
        reply(json.dumps(asked.headers["Authorization"]).encode(), 500)(handler, asked)

    with serving(lengths) as served:
        settings = settings_of(served, memory)
        settings["reward"]["server"]["token_env"] = "REWARD_TOKEN"
        config = write(memory / "run.toml", settings)
        assert train(config, memory / "run") == 0
        served.answer = echo
        assert train(config, memory / "broken") == 5
    files = [path for run in ("run", "broken") for path in (memory / run).rglob("*")]
    assert not [path for path in files if path.is_file() and token.encode() in path.read_bytes()]
    assert b"REWARD_TOKEN" in (memory / "run" / "config.json").read_bytes()
