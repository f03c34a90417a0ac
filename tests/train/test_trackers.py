"""Trackers are told what metrics.jsonl says, under its names, and can't harm a run."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kleash.errors import ConfigError
from kleash.train.config import RunConfig
from kleash.train.run import train
from kleash.train.tracker_config import TrackerOptions
from kleash.train.trackers import (
    OpenTrackers,
    Trackers,
    check_trackers,
    mlflow_names,
    open_trackers,
)
from tests.train.small import small_settings


def drawn(directory: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard would draw: a value by step, by name."""
    events = EventAccumulator(str(directory)).Reload()
    names: Any = events.Tags()["scalars"]
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in names}


def test_what_tensorboard_draws_is_metrics_jsonl_and_what_was_not_measured_is_not_there(
    tmp_path: Path,
) -> None:
    settings = small_settings(tmp_path, steps=3, trackers=["tensorboard"])
    list(train(RunConfig.model_validate(settings), tmp_path / "run", skip_self_test=True))
    found = drawn(tmp_path / "run" / "tensorboard")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert len(metrics) == 3
    for name in {name for row in metrics for name in row} - {"step"}:
        measured = {row["step"]: float(row[name]) for row in metrics if row[name] is not None}
        assert found.get(name, {}) == pytest.approx(measured, rel=1e-6), name
    assert any(row["ptx_loss"] is None for row in metrics)
    assert {name for name in found if name.startswith("seconds/")} == {
        "seconds/collect",
        "seconds/update",
    }


@pytest.mark.parametrize(("name", "package"), [("comet_ml", "comet-ml"), ("dvclive", "dvclive")])
def test_an_absent_one_is_named_with_its_package(name: str, package: str) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=f"{name}.*pip install {package}"):
        check_trackers(("tensorboard", name))


@pytest.mark.parametrize("name", ["nonsense", "all", ""])
def test_an_unknown_one_is_told_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"mlflow.*tensorboard.*trackio.*wandb"):
        check_trackers((name,))


def test_options_say_where_and_under_which_name(tmp_path: Path) -> None:
    options = TrackerOptions(name="first", directory=str(tmp_path / "shared"))
    opened = open_trackers(tmp_path / "run", Trackers(("tensorboard",), "cpu", options))
    assert opened is not None
    opened.log({"kl_coef": 0.25, "ptx_loss": None, "reward_mean": math.nan}, step=4)
    opened.end_training()
    found = drawn(tmp_path / "shared" / "first")
    assert found["kl_coef"] == {4: 0.25}
    assert math.isnan(found["reward_mean"][4])
    assert "ptx_loss" not in found
    assert not (tmp_path / "run").exists()


class Full(GeneralTracker):
    """A tracker of a user's, whose disk is full from the second step on."""

    name = "full"
    requires_logging_directory = False

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.steps: list[int] = []

    @property
    def tracker(self) -> None:
        """Nothing stands behind it."""

    def start(self) -> None:
        """Prints, as some do."""
        sys.stdout.write("started\n")

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        """Takes one step."""
        assert step is not None
        self.steps.append(step)
        if step > 1:
            raise OSError(28, "No space left\x1b[31m")

    def finish(self) -> None:
        """Has nothing to write."""
        raise AssertionError("it failed before")


def test_one_that_fails_says_so_once_and_the_others_go_on(tmp_path: Path) -> None:
    full, board = Full(), open_trackers(tmp_path, Trackers(("tensorboard",), "cpu"))
    assert board is not None
    both = OpenTrackers({"full": full, **board._trackers})
    both.log({"kl_coef": 1.0}, step=1)
    with pytest.warns(RuntimeWarning, match=r"full failed at step 2 .*\\x1b\[31m"):
        both.log({"kl_coef": 2.0}, step=2)
    both.log({"kl_coef": 3.0}, step=3)
    both.end_training()
    assert full.steps == [1, 2]
    assert drawn(tmp_path / "tensorboard")["kl_coef"] == {1: 1.0, 2: 2.0, 3: 3.0}


def test_what_a_tracker_prints_is_not_on_stdout_and_one_that_does_not_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "aim", Full)
    assert open_trackers(tmp_path, Trackers(("aim",), "cpu")) is not None
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "started\n")
    (tmp_path / "tensorboard").touch()
    with pytest.raises(ConfigError, match="'tensorboard' can't be started"):
        open_trackers(tmp_path, Trackers(("tensorboard",), "cpu"))


def test_a_run_goes_on_with_other_trackers(tmp_path: Path) -> None:
    """What watches a run is no part of it: a tracker that is out of order must not keep it from going on."""
    settings = small_settings(tmp_path, steps=3, trackers=["tensorboard"])
    steps = train(RunConfig.model_validate(settings), tmp_path / "run", skip_self_test=True)
    next(steps)
    steps.close()
    settings["train"] |= {"trackers": [], "tracker_options": {"project": "another"}}
    config = RunConfig.model_validate(settings)
    rest = list(train(config, tmp_path / "run", skip_self_test=True, resume=True))
    assert [record.step for record in rest] == [2, 3]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("kl_policy_ref_per_response", "kl_policy_ref_per_response"),
        ("monitor/module:function", "monitor/module:function"),
        ("monitor/http://host:80/score", "monitor/http:__host:80_score"),
        ("slice/../..", "slice/.._.."),
        ("slice/..", "slice/__"),
        ("slice/é\n", "slice/__"),
    ],
)
def test_mlflow_is_given_names_that_it_takes(name: str, taken: str) -> None:
    assert mlflow_names({name: 1.5}) == {taken: 1.5}


def test_mlflow_takes_those_names() -> None:
    validation = pytest.importorskip("mlflow.utils.validation")
    for name in mlflow_names(
        dict.fromkeys(("slice/..", "monitor/http://a/b", "slice/" + "x" * 400), 1)
    ):
        validation._validate_metric_name(name)


@pytest.mark.filterwarnings("default")  # its own, of its database's library
def test_mlflow_keeps_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    options = TrackerOptions(project="paper", name="first")
    opened = open_trackers(tmp_path, Trackers(("mlflow",), "cpu", options))
    assert opened is not None
    opened.log({"kl_coef": 0.5, "ptx_loss": None, "monitor/http://a/b": 2.0}, step=3)
    opened.end_training()
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("paper")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "first"
    assert run.data.metrics == {"kl_coef": 0.5, "monitor/http:__a_b": 2.0}
