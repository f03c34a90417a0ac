"""`kleash lab NAME`: a study end to end on the embedded models, its files, what is found again, and what is refused."""

import csv
import json
import tomllib
from pathlib import Path

import pytest
from pyarrow import parquet

from kleash.cli import main as cli
from kleash.cli.lab_study import _merged, _plan
from kleash.config import resolved
from kleash.errors import ConfigError
from kleash.lab.catalogue import STUDIES

TINY = {
    "setting.steps": 4,
    "setting.num_prompts": 4,
    "setting.max_new_tokens": 8,
    "setting.pairs": 24,
    "setting.evaluation.num_prompts": 4,
    "setting.evaluation.group_size": 2,
    "seeds": 2,
    "proxies": '["tiny-reviews/base"]',
    "pairs": [24],
    "betas": [0.1],
    "pool.samples": 8,
}
"""An over-optimisation study of a few seconds."""


def tiny(out: Path, *words: str) -> list[str]:
    settings = [x for key, value in TINY.items() for x in ("--set", f"{key}={value}")]
    return ["lab", "overopt", *settings, "--out", str(out), "--jobs", "1", *words]


@pytest.mark.slow
def test_a_study_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files agree with each other; asked again it makes nothing; with one more seed it makes one seed more."""
    assert cli.run(tiny(tmp_path, "--json")) == 0
    first = json.loads(capsys.readouterr().out)
    folder = tmp_path / "overopt"
    assert json.loads((folder / "findings.json").read_text()) == first
    table = first["findings"]["tables"][0]
    with (folder / "table.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == table["columns"] == parquet.read_schema(folder / "table.parquet").names
    assert [row[0] for row in rows] == ["24 pairs", "24 pairs"]
    assert first["findings"]["answer"] in (folder / "report.html").read_text()
    assert {path.suffix for path in folder.glob("figure.*")} == {".svg", ".pdf", ".png"}
    # Two proxies, two arms with and two without a penalty, one pool.
    assert (first["cost"]["pieces_made"], first["cost"]["pieces_found"]) == (7, 0)
    runs = sorted(tmp_path.glob("pieces/train-arm-*/run"))
    assert len(runs) == 4
    assert not list(tmp_path.glob("pieces/train-arm-*/run/final"))

    assert cli.run(tiny(tmp_path, "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["findings"] == first["findings"]
    assert (again["cost"]["pieces_made"], again["cost"]["pieces_found"]) == (0, 7)

    assert cli.run(tiny(tmp_path)) == 0
    shown = capsys.readouterr()
    assert "overopt: about" in shown.err
    assert "gold ends below its peak:" in shown.out
    assert str(folder / "report.html") in shown.out

    # Its weights are gone, and its record is as good as ever.
    assert cli.run(["verify", str(runs[0] / "ledger")]) == 0
    assert "4 steps" in capsys.readouterr().out


def test_a_file_and_single_settings_lie_over_the_quick_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seeds = 3\n[setting]\nsteps = 7\n", encoding="utf-8")
    plan = _plan(STUDIES["overopt"], path, ["setting.pairs=50"], quick=True)
    assert (plan.config.seeds, plan.config.setting.steps) == (3, 7)
    assert (plan.config.setting.pairs, plan.config.setting.num_prompts) == (50, 16)
    assert plan.command == f"kleash lab overopt {path} --quick --set setting.pairs=50"
    whole = _plan(STUDIES["overopt"], None, [], quick=False)
    assert whole.seconds > 5 * plan.seconds


def test_tables_over_tables() -> None:
    under = {"a": {"x": 1, "y": 2}, "b": [1]}
    assert _merged(under, {"a": {"y": 3}, "b": [2]}) == {"a": {"x": 1, "y": 3}, "b": [2]}
    assert under == {"a": {"x": 1, "y": 2}, "b": [1]}


def test_a_setting_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _plan(STUDIES["overopt"], None, ["setting.stepps=7"], quick=False)
    assert "setting.steps" in caught.value.do


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_shows_its_settings_as_a_file_that_sets_them(
    name: str, quick: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every one, with what --quick and --set make of it; and nothing is made."""
    words = [*(["--quick"] if quick else []), "--set", "seeds=4", "--out", str(tmp_path / "out")]
    assert cli.run(["lab", name, *words, "--settings"]) == 0
    written = capsys.readouterr().out
    path = tmp_path / "mine.toml"
    path.write_text(written, encoding="utf-8")
    config = _plan(STUDIES[name], None, ["seeds=4"], quick=quick).config
    assert _plan(STUDIES[name], path, [], quick=False).config == config
    assert tomllib.loads(written) == resolved(config)

    assert cli.run(["lab", name, *words, "--settings", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == resolved(config)
    assert not (tmp_path / "out").exists()


def test_its_help_names_settings_that_a_study_has(capsys: pytest.CaptureFixture[str]) -> None:
    for name in STUDIES:
        assert cli.run(["lab", name, "--help"]) == 0
        said = " ".join(capsys.readouterr().out.replace("│", "").split())
        assert "--settings" in said
        assert "rl." not in said
    plan = _plan(STUDIES["overopt"], None, ["seeds=3", "setting.steps=20"], quick=False)
    assert (plan.config.seeds, plan.config.setting.steps) == (3, 20)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_its_module_and_a_quick_version_of_six_minutes(name: str) -> None:
    """By what it says of its own cost, on two cores."""
    plan = _plan(STUDIES[name], None, [], quick=True)
    assert plan.seconds <= 2 * 360
    assert callable(plan.module.run)
    assert plan.seconds <= _plan(STUDIES[name], None, [], quick=False).seconds


def test_the_book_of_all_of_them_is_made_in_forty_minutes() -> None:
    """By what they say of their own cost, on two cores; what they share makes it less."""
    assert sum(_plan(study, None, [], quick=True).seconds for study in STUDIES.values()) <= 2 * 2400


def test_studies_are_known_without_torch() -> None:
    import subprocess
    import sys

    script = (
        "import sys, kleash.cli.lab; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_what_a_model_of_unknown_size_takes_is_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not there, and that is said when it is loaded: until then nobody knows its size."""
    words = ["--quick", "--set", "setting.policy=no/such", "--out", str(tmp_path), "--jobs", "1"]
    assert cli.run(["lab", "overopt", *words]) == 2
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == (
        "overopt: how long isn't known: a model's size can't be told before it is loaded"
    )


def test_a_place_where_nothing_can_be_made_is_not_a_full_disk(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["lab", "overopt", "--quick", "--out", "/proc/kleash"]) == 5
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "/proc/kleash/pieces cannot be made or written" in said
    assert "name another directory with --out" in said
    assert "space" not in said


GOLD = """
import os, signal
from pathlib import Path

def gold(prompts, responses):
    calls = Path("calls")
    number = 1 + (int(calls.read_text()) if calls.exists() else 0)
    calls.write_text(str(number))
    if number == 2:
        raise KeyboardInterrupt
    if number == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    return [float(len(text)) for text in responses]
"""
"""A gold reward at whose second call somebody presses Ctrl-C, and at whose fourth it is told to end; each proxy asks
it once."""


def test_what_is_stopped_says_so_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stopping_gold.py").write_text(GOLD, encoding="utf-8")
    command = tiny(Path("out"), "--set", "setting.gold=stopping_gold:gold")
    finished: list[set[Path]] = []
    for code in (130, 143):
        assert cli.run(command) == code
        said = capsys.readouterr()
        assert said.err.splitlines()[-1] == "stopped; the same command goes on where it was"
        assert not said.out
        finished.append(set(tmp_path.glob("out/pieces/*/result.json")))
    assert [len(each) for each in finished] == [1, 2]
    assert finished[0] < finished[1]
