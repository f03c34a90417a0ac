"""Exit codes, help, and what is on the screen when something goes wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kleash import __version__
from kleash.cli import main as cli
from kleash.errors import (
    ConfigError,
    InputError,
    KleashError,
    LimitError,
    ResourceError,
    RewardError,
    TamperError,
)

LEDGER = [f"ledger {name}" for name in ("key", "prove", "check", "export", "log")]
COMMANDS = ["demo", "train", "reward", "score", "verify", "report"]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"kleash {__version__}\n"


@pytest.mark.parametrize("command", [*COMMANDS, "models list", *LEDGER])
def test_help_has_an_example_and_offers_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: kleash {command}" in shown
    assert "--json" in shown


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in [*COMMANDS, "models"])


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["train"], ["verify", "--nonsense"], ["score", "one"], ["models"]]
)
def test_a_command_line_that_says_nothing_is_bad_input(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no"), 2),
        (ConfigError("no"), 2),
        (LimitError("no"), 3),
        (TamperError("no"), 4),
        (ResourceError("no"), 5),
        (RewardError("no"), 5),
        (PermissionError(13, "Permission denied"), 5),
        (MemoryError(), 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), 5),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), 5),
        (RuntimeError("a shape is wrong"), 1),
        (KleashError("no"), 1),
        (ZeroDivisionError("no"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_ending_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error

    app = typer.Typer()
    app.command("fails")(fails)
    app.callback()(lambda: None)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.delenv(cli.DEBUG, raising=False)
    assert cli.run(["fails"]) == code


def test_a_bug_leaves_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails() -> None:
        raise ZeroDivisionError("a \x1b[2Jscreen")

    app = typer.Typer()
    app.command("fails")(fails)
    app.callback()(lambda: None)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(cli.DEBUG, raising=False)
    assert cli.run(["fails"]) == 1
    shown = capsys.readouterr().err
    assert "this is a bug" in shown
    assert "Traceback" not in shown
    assert "\x1b" not in shown
    [log] = tmp_path.glob("kleash-*.log")
    assert "ZeroDivisionError" in log.read_text()
    monkeypatch.setenv(cli.DEBUG, "1")
    with pytest.raises(ZeroDivisionError):
        cli.run(["fails"])


def test_a_refused_configuration_is_one_json_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[rl]\nkl_targt = 4.0\n")
    assert cli.run(["train", str(path), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["do"] == "did you mean rl.kl_target?"


@pytest.mark.parametrize("command", ["train", "reward"])
def test_a_directory_in_use_is_refused_and_left_alone(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, used = tmp_path / "run.toml", tmp_path / "used"
    config.write_text('[data]\npairs = "none.jsonl"\n' if command == "reward" else "")
    used.mkdir()
    (used / "report.html").write_text("mine")
    option = "--out" if command == "reward" else "--run"
    assert cli.run([command, str(config), option, str(used)]) == 2
    # The panel may break the line anywhere: how long the path is decides.
    assert "already there" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert [path.read_text() for path in used.iterdir()] == ["mine"]


WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "numpy", "scipy", "datasets"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from kleash.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "report"])
def test_an_auditor_needs_no_torch(command: str) -> None:
    done = without_torch(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Example: kleash {command}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["demo"], ["train", "x.toml"], ["reward", "x.toml"], ["score", "m", "x.jsonl"]]
)
def test_without_torch_the_rest_says_what_to_install(arguments: list[str]) -> None:
    done = without_torch(*arguments)
    assert done.returncode == 2
    assert "pip install 'kleash[train]'" in re.sub(r"\s+", " ", done.stderr)
    assert "Traceback" not in done.stderr
