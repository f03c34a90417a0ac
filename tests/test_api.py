"""kleash from Python: the same run as from the command line, and frames that say what the files say."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import kleash
from kleash.config import build, resolved
from kleash.errors import ConfigError, InputError
from kleash.ledger import UpdateEntry, read
from kleash.records import StepRecord
from kleash.report.figures import Chart
from kleash.report.stacked import stack
from kleash.train.config import RunConfig
from tests.train.small import small_settings

GOLDEN = Path(__file__).parent / "golden" / "ledger-v1"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_settings(tmp_path_factory.mktemp("small"), steps=4)


@pytest.fixture(scope="module")
def made(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[StepRecord]]:
    """A run of four steps, one of which is refused."""
    path = tmp_path_factory.mktemp("made") / "run"
    limited = {**settings, "guard": {"max_kl_new_old": 0.1, "on_breach": "reject"}}
    return path, list(kleash.run(limited, run=path, skip_self_test=True))


def test_a_dictionary_a_file_and_a_config_are_one_run(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "tiny.toml"
    tables = [
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])
        for name, table in settings.items()
    ]
    file.write_text("\n".join(tables))
    configs = [settings, file, str(file), build(RunConfig, settings, "here")]
    metrics: list[list[Any]] = []
    for index, config in enumerate(configs):
        steps = kleash.run(config, run=tmp_path / str(index), skip_self_test=True)
        metrics.append([next(steps).metrics, next(steps).metrics])
        steps.close()
        assert kleash.verify(tmp_path / str(index)).status == "interrupted"
    assert metrics[1:] == metrics[:1] * 3
    rest = kleash.run(file, run=tmp_path / "1", skip_self_test=True, resume=True)
    assert [record.step for record in rest] == [3, 4]


@pytest.mark.parametrize(
    "config",
    [{"train": {"step": 3}}, {"train": {"steps": "3"}}, {"train": {"steps": 0}}, {"nothing": {}}],
)
def test_a_wrong_configuration_is_refused_at_the_call(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        kleash.run(config, run=tmp_path / "run")
    with pytest.raises(InputError, match="cannot read the configuration"):
        kleash.run(tmp_path / "none.toml", run=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_frame_is_metrics_jsonl_and_the_ledger_step_by_step(
    made: tuple[Path, list[StepRecord]],
) -> None:
    path, records = made
    frame: Any = kleash.read_run(path).frame()
    assert frame.index.name == "step"
    assert list(frame.index) == [1, 2, 3, 4]
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for name, value in row.items():
            if name == "step":
                continue
            found = frame.loc[row["step"], name]
            assert found == value if value is not None else math.isnan(found), name
    entries = [UpdateEntry.from_json(e.body) for e in read(path / "ledger") if e.type == "update"]
    for record, entry in zip(records, entries, strict=True):
        row: Any = frame.loc[record.step]
        assert (row["ledger/kl"], row["ledger/kl_coef"]) == (entry.kl.value, entry.kl_coef)
        for end, value in (("low", entry.kl.low), ("high", entry.kl.high)):
            found = row[f"ledger/kl_{end}"]
            assert found == value if value is not None else math.isnan(found)
        assert row["verdict"] == record.verdict.action
        assert row["reasons"] == "; ".join(record.verdict.reasons)
    assert list(frame["verdict"]) == ["reject", "accept", "accept", "accept"]
    assert frame["ptx_loss"].isna().all()
    assert frame["ledger/kl_low"].dtype == float


def test_a_frame_of_a_ledger_of_the_first_version() -> None:
    frame: Any = kleash.read_run(GOLDEN).frame()
    assert list(frame.index) == [1, 2, 3, 4]
    assert (frame["ledger/kl"] == frame["kl_policy_ref_per_response"]).all()
    assert (frame["ledger/kl_coef"] == frame["kl_coef"]).all()


def test_a_frame_without_a_ledger_or_a_step(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"config": {}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kl_coef": null, "reward_mean": "nan"}\n')
    frame: Any = kleash.read_run(tmp_path).frame()
    assert frame.loc[1, ["kl_coef", "reward_mean", "ledger/kl"]].isna().all()
    assert pd.isna(frame.loc[1, "verdict"])
    (tmp_path / "metrics.jsonl").unlink()
    empty = kleash.read_run(tmp_path)
    assert len(empty.frame()) == 0
    assert len(empty.samples()) == 0
    with pytest.raises(InputError, match="nothing to plot"):
        empty.plot()


def test_samples_are_samples_jsonl(made: tuple[Path, list[StepRecord]]) -> None:
    path, _ = made
    frame: Any = kleash.read_run(path).samples()
    lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    assert len(frame) == len(lines) > 0
    for (_, row), line in zip(frame.iterrows(), lines, strict=True):
        names = ("step", "prompt", "response", "reward", "kl_policy_ref", "reference_response")
        assert [row[name] for name in names] == [line[name] for name in names]
        assert row["kl_policy_ref"] == pytest.approx(sum(line["kl_per_token"]), rel=1e-6)


def test_a_plot_shows_kl_with_its_interval_and_target_then_beta_then_reward(
    made: tuple[Path, list[StepRecord]],
) -> None:
    path, records = made
    figure: Any = kleash.read_run(path).plot()
    lines = {trace.yaxis: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert list(lines["y"].y) == [record.kl.value for record in records]
    assert list(lines["y2"].y) == [record.kl_coef for record in records]
    assert list(lines["y3"].y) == [record.metrics["reward_mean"] for record in records]
    domains = [figure.layout[f"yaxis{n}"].domain for n in ("", "2", "3")]
    assert domains[0][0] > domains[1][1] > domains[1][0] > domains[2][1]
    assert [x.text for x in figure.layout.annotations if "<b>" in x.text] == [
        "<b>KL(π‖π_ref), nats per response</b>",
        "<b>β, the KL penalty (log axis)</b>",
        "<b>Reward, mean per response</b>",
    ]
    target = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert [(shape.y0, shape.yref) for shape in target] == [(0.3, "y")]
    assert {shape.xref for shape in figure.layout.shapes} == {"x domain"}


def test_a_chart_without_figures_leaves_no_gap() -> None:
    layout = {"xaxis": {}, "yaxis": {}}
    charts = [
        Chart(title="a", figure={"data": [], "layout": layout}, reading=""),
        Chart(title="b", figure=None, reading=""),
    ]
    assert stack(charts)["layout"]["yaxis"]["domain"] == [0.0, 1.0]
    assert stack([charts[1]])["data"] == []


def test_verify_finds_what_was_changed(made: tuple[Path, list[StepRecord]], tmp_path: Path) -> None:
    found = kleash.verify(str(made[0]))
    assert found.ok
    assert kleash.read_run(made[0]).verify() == found
    assert kleash.verify(made[0], head=found.head).ok
    copy = shutil.copytree(made[0], tmp_path / "copy")
    (copy / "metrics.jsonl").write_text("")
    assert not kleash.verify(copy).ok


def test_what_is_offered_is_there_and_nothing_else() -> None:
    for name in kleash.__all__:
        assert getattr(kleash, name) is not None
        assert name in dir(kleash)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = kleash.nonsense  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("absent", "call", "extra"),
    [
        ("torch", "kleash.run({}, run='none')", "train"),
        ("pandas", f"kleash.read_run({str(GOLDEN)!r}).frame()", "pandas"),
        ("pandas", f"kleash.read_run({str(GOLDEN)!r}).samples()", "pandas"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(absent: str, call: str, extra: str) -> None:
    """Without any of it the rest works: in a process of its own, where the package can't be imported."""
    script = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        f"import kleash; from kleash.errors import InputError\n"
        f"assert kleash.verify({str(GOLDEN)!r}).ok\n"
        f"assert len(kleash.read_run({str(GOLDEN)!r}).plot().data) > 2\n"
        f"try:\n    {call}\nexcept InputError as error:\n    print(error.do)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"pip install 'kleash[{extra}]'\n"


def test_a_resolved_configuration_gives_itself(settings: dict[str, Any], tmp_path: Path) -> None:
    """What config.json holds can be handed back in."""
    config = build(RunConfig, settings, "here")
    steps = kleash.run(resolved(config), run=tmp_path / "run", skip_self_test=True)
    assert next(steps).step == 1
    steps.close()
    written = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert written == resolved(config)
