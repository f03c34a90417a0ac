"""What is on disk is what is in the view; what was not measured stays None."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kleash.errors import InputError
from kleash.report import load_run

MakeRun = Callable[..., Path]


def test_a_run_is_read_as_written(make_run: MakeRun) -> None:
    run = load_run(make_run("leashed"))
    assert run.name == "leashed"
    assert run.steps == (1, 2, 3, 4)
    assert run.series("kl_policy_ref_per_response") == (0.25, None, 9.0, 4.0)
    assert run.last("kl_policy_ref_per_response_high") == 4.25
    assert run.monitors == ("tiny-reviews/gold",)
    assert (run.target, run.unit) == (4.0, "response")
    assert (run.accepted, run.rejected) == (3, 1)
    assert [sample.kl_per_token for sample in run.samples] == [(1.0, 0.04)] * 2
    assert run.samples[0].monitor == {"tiny-reviews/gold": 0.75}


def test_where_the_kl_is_is_read_as_written(make_run: MakeRun) -> None:
    drift = load_run(make_run("leashed")).drift
    assert [line.step for line in drift] == [1, 2, 4]
    last = drift[-1]
    assert [(at.position, at.nats, at.count) for at in last.by_position] == [
        (0, 3.0, 8),
        (1, 1.0, 6),
        (2, 0.5, 2),
    ]
    assert [(part.text, part.nats, part.count) for part in last.by_prompt] == [
        ("It begins", 6.0, 4),
        ("At first", 3.0, 3),
    ]
    assert [(part.text, part.nats, part.count) for part in last.by_token] == [
        (" good", 2.0, 5),
        ("\n\n", -1.0, 1),
    ]


def test_what_was_not_measured_is_none_never_zero(make_run: MakeRun) -> None:
    run = load_run(make_run(metrics=[{"step": 1, "reward_mean": None}, {"step": 2, "late": 1.0}]))
    assert run.series("reward_mean") == (None, None)
    assert run.series("late") == (None, 1.0)
    assert run.series("never") == (None, None)
    assert run.last("never") is None
    assert (run.accepted, run.rejected, run.gold) == (None, None, None)


def test_an_unfinished_run_and_missing_samples_are_fine(make_run: MakeRun) -> None:
    run = load_run(make_run(metrics=None, samples=None, drift=None))
    assert (run.steps, run.samples, run.drift) == ((), (), ())
    assert run.last("reward_mean") is None


def test_values_that_json_cannot_carry(make_run: MakeRun) -> None:
    run = load_run(make_run(metrics=[{"step": 1, "grad_norm": "nan", "value_loss": "-inf"}]))
    assert math.isnan(run.last("grad_norm") or 0.0)
    assert run.last("value_loss") == -math.inf
    parts = [{"token": "a", "nats": nats, "count": 1} for nats in ("nan", "inf", "-inf", None)]
    run = load_run(make_run("odd", drift=[{"step": 1, "by_token": parts}]))
    nan, *others = (part.nats for part in run.drift[0].by_token)
    assert math.isnan(nan or 0.0)
    assert others == [math.inf, -math.inf, None]


def test_the_monitor_called_gold_comes_before_the_others(make_run: MakeRun) -> None:
    run = load_run(make_run(metrics=[{"step": 1, "monitor/length": 1.0, "monitor/my-gold": 2.0}]))
    assert run.gold == "my-gold"


def test_the_target_comes_from_the_configuration_when_no_step_has_it(make_run: MakeRun) -> None:
    config = {"rl": {"kl_target": 0.25, "kl_unit": "token"}}
    run = load_run(make_run(config=config, metrics=None))
    assert (run.target, run.unit) == (0.25, "token")


GOOD = {"step": 1, "prompt": "p", "response": "r"}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("metrics.jsonl", "{"),
        ("metrics.jsonl", "[1]"),
        ("metrics.jsonl", "null"),
        ("metrics.jsonl", '{"reward_mean": 1.0}'),
        ("metrics.jsonl", '{"step": "1"}'),
        ("metrics.jsonl", '{"step": 2, "reward_mean": "high"}'),
        ("metrics.jsonl", '{"step": 2, "reward_mean": [1]}'),
        ("metrics.jsonl", '{"step": 2, "reward_mean": 1' + "0" * 400 + "}"),
        ("metrics.jsonl", '{"step": 2, "reward_mean": 1' + "0" * 5000 + "}"),
        ("metrics.jsonl", "[" * 100_000),
        ("drift.jsonl", "{"),
        ("drift.jsonl", '{"by_position": []}'),
        ("drift.jsonl", '{"step": 2, "by_position": {}}'),
        ("drift.jsonl", '{"step": 2, "by_position": [0.5]}'),
        ("drift.jsonl", '{"step": 2, "by_position": [{"nats": 0.5, "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_position": [{"position": -1, "nats": 0.5, "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_position": [{"position": 0, "nats": "x", "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_position": [{"position": 0, "nats": 0.5}]}'),
        ("drift.jsonl", '{"step": 2, "by_position": [{"position": true, "nats": 0, "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_position": [{"position": 1e9, "nats": 0, "count": 1}]}'),
        (
            "drift.jsonl",
            '{"step": 2, "by_position": [{"position": 9' + "0" * 400 + ', "nats": 0, "count": 1}]}',
        ),
        ("drift.jsonl", '{"step": 2, "by_prompt": [{"prompt": 7, "nats": 0.5, "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_prompt": [{"token": "a", "nats": 0.5, "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_token": [{"token": null, "nats": 0.5, "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_token": [{"token": "a", "nats": [], "count": 1}]}'),
        ("drift.jsonl", '{"step": 2, "by_token": [{"token": "a", "nats": 0.5, "count": 0.5}]}'),
        ("samples.jsonl", json.dumps({"step": 1, "prompt": "p"})),
        ("samples.jsonl", json.dumps(GOOD | {"prompt": 3})),
        ("samples.jsonl", json.dumps(GOOD | {"tokens": ["a"], "kl_per_token": []})),
        ("samples.jsonl", json.dumps(GOOD | {"tokens": "ab", "kl_per_token": [1, 2]})),
        ("samples.jsonl", json.dumps(GOOD | {"tokens": [1], "kl_per_token": [1.0]})),
        ("samples.jsonl", json.dumps(GOOD | {"monitor": {"gold": "good"}})),
        ("samples.jsonl", json.dumps(GOOD | {"reference_response": 0})),
    ],
)
def test_a_broken_line_is_named(make_run: MakeRun, file: str, line: str) -> None:
    run = make_run()
    lines = (run / file).read_text().splitlines()
    (run / file).write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(InputError, match=f"{file}, line 2,") as caught:
        load_run(run)
    assert caught.value.do


def test_bytes_that_are_no_text_are_named_by_line(make_run: MakeRun) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": \xff}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 5,"):
        load_run(run)


def test_a_broken_configuration_is_named(make_run: MakeRun) -> None:
    run = make_run()
    (run / "config.json").write_text('{\n  "config": {\n    x\n')
    with pytest.raises(InputError, match=r"config.json, line 3,"):
        load_run(run)


@pytest.mark.parametrize("config", [[], None, {"rl": 3}, {"rl": {"kl_target": "four"}}])
def test_a_configuration_of_another_shape_reads_as_unknown(make_run: MakeRun, config: Any) -> None:
    run = make_run(metrics=None)
    (run / "config.json").write_text(json.dumps({"config": config}))
    assert load_run(run).target is None


def test_no_run_there(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run at") as caught:
        load_run(tmp_path / "nowhere")
    assert caught.value.got == "no such directory"
    with pytest.raises(InputError) as caught:
        load_run(make_run(config=None))
    assert caught.value.got == "no config.json"
