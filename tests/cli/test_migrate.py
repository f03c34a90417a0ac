"""`kleash migrate-trl`, as it is called."""

import json
from pathlib import Path

import pytest

from kleash.cli.main import run
from kleash.config import load
from kleash.train.config import RunConfig

OLD = "init_kl_coef: 0.15\nadap_kl_ctrl: true\ntarget: 6\nbatch_size: 64\nfoo: bar\n"


def test_it_writes_a_configuration_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "ppo.yaml", tmp_path / "ppo.toml"
    old.write_text(OLD)
    assert run(["migrate-trl", str(old), "--out", str(new)]) == 0
    assert load(RunConfig, new).rl.kl_target == 6.0
    assert "# - foo = 'bar'" in new.read_text()
    assert capsys.readouterr().out == ""
    assert run(["migrate-trl", str(old)]) == 0
    assert capsys.readouterr().out.strip() == new.read_text().strip()
    new.write_text("mine")
    assert run(["migrate-trl", str(old), "--out", str(new)]) == 2
    assert new.read_text() == "mine"


def test_json_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "ppo.yaml"
    old.write_text(OLD)
    assert run(["migrate-trl", str(old), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["from"] == "ppo-0.11"
    assert said["config"]["rl"]["controller"] == "ziegler"
    assert [each["key"] for each in said["unknown"]] == ["foo"]


def test_bad_input_is_exit_2(tmp_path: Path) -> None:
    assert run(["migrate-trl", str(tmp_path / "nothing.yaml")]) == 2
    (tmp_path / "a.yaml").write_text("foo: 1\n")
    assert run(["migrate-trl", str(tmp_path / "a.yaml")]) == 2
