"""What a run shows of its KL is what its decisions were made from, though every hash in it be right.

Each run here is written whole by the ledger's own writer, chain, head and digests included: as by somebody who holds
the files and has the program.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash import control
from kleash.control import ControlConfig
from kleash.guard import GuardConfig, judge
from kleash.ledger import UpdateEntry, digest_run, encode
from kleash.records import KLReading, Signals, Unit, UpdateFacts
from kleash.replay import verify_run
from tests.ledger.version1 import Version1

PER_RESPONSE = KLReading(
    value=4.0,
    low=3.5,
    high=4.5,
    n=64,
    clusters=16,
    unit="response",
    direction="policy_ref",
    estimator="exact",
    reference="base",
)
PER_TOKEN = replace(PER_RESPONSE, unit="token", value=0.25, low=0.2, high=0.3)
MOVED = replace(PER_TOKEN, direction="new_old", value=0.01, low=None, high=None)
FACTS = UpdateFacts(finite=True, kl_new_old=MOVED, grad_norm=1.0)
OPTIMISATION = {
    "optimizer": {"beta1": 0.9},
    "algorithm": {"num_epochs": 2, "num_minibatches": 2},
    "rollout": {"num_prompts": 16, "group_size": 4},
}
"""Four gradient steps an update."""
SIGNALS = Signals(
    num_responses=64,
    reward_std=1.5,
    log_ratio_std=2.5,
    correlation=0.25,
    response_length=16.0,
    momentum=0.9**4,
)
STEPS = 3

Metrics = dict[str, Any]


def entry_of(
    unit: Unit, step: int, state: control.State, limits: GuardConfig, *, applied: bool = True
) -> UpdateEntry:
    """An honest step; the digest of its metrics is yet to come."""
    kl = replace(PER_RESPONSE, value=3.0 + step)
    seen = kl if unit == "response" else PER_TOKEN
    signals = replace(SIGNALS, applied=applied)
    chosen = control.update(state, seen, signals)
    return UpdateEntry(
        step=step,
        kl=kl,
        kl_control=None if seen is kl else seen,
        signals=signals,
        kl_coef=chosen.kl_coef,
        facts=FACTS,
        verdict=judge(limits, kl, FACTS),
        control=chosen.to_json(),
        rollout_sha256="a" * 64,
        metrics_sha256="",
    )


def metrics_of(entry: UpdateEntry) -> Metrics:
    """The line that a training run writes of a step, as far as the ledger has it too."""
    readings = {reading.name: reading for reading in (entry.kl, PER_TOKEN)}
    return {
        "step": entry.step,
        "reward_mean": 0.5,
        **{name: reading.value for name, reading in readings.items()},
        **{f"{name}_low": reading.low for name, reading in readings.items()},
        **{f"{name}_high": reading.high for name, reading in readings.items()},
        "kl_new_old_per_token": MOVED.value,
        "kl_coef": entry.kl_coef,
        "reward_std_within": SIGNALS.reward_std,
        "log_ratio_std_within": SIGNALS.log_ratio_std,
        "reward_log_ratio_correlation": SIGNALS.correlation,
        "response_length": SIGNALS.response_length,
    }


def write_run(
    run: Path,
    unit: Unit = "response",
    *,
    rl: Mapping[str, Any] | None = None,
    edit_entry: Callable[[UpdateEntry], UpdateEntry] = lambda entry: entry,
    edit_metrics: Callable[[Metrics], object] = lambda metrics: None,
) -> Path:
    """A run whose second step was edited before it was written; all that is computed from it is right."""
    target = {"kl_target": 4.0 if unit == "response" else 0.2, "kl_unit": unit}
    config = ControlConfig.model_validate(target if rl is None else {**rl, "kl_unit": unit})
    limits = GuardConfig(max_kl=None)
    settings = OPTIMISATION | {
        "model": {},
        "rl": config.model_dump(mode="json"),
        "guard": limits.model_dump(mode="json"),
    }
    started = {"config": settings, "versions": {}, "digests": {}}
    run.mkdir()
    (run / "config.json").write_bytes(encode(started))
    state, applied, lines = control.init(config), True, list[bytes]()
    with Version1.create(run / "ledger") as ledger:
        ledger.append("run.started", started)
        for step in range(1, STEPS + 1):
            entry = entry_of(unit, step, state, limits, applied=applied)
            metrics = metrics_of(entry)
            if step == 2:
                entry = edit_entry(entry)
                edit_metrics(metrics)
            lines.append(encode(metrics) + b"\n")
            digest = hashlib.sha256(lines[-1]).hexdigest()
            ledger.append("update", replace(entry, metrics_sha256=digest).to_json())
            state = control.from_json(entry.control, config)
            applied = entry.verdict.action == "accept"
        (run / "metrics.jsonl").write_bytes(b"".join(lines))
        ledger.append("run.finished", {"steps": STEPS, "files": digest_run(run)})
    return run


def problems(run: Path) -> list[str]:
    return [str(problem) for problem in verify_run(run).problems]


@pytest.mark.parametrize("unit", ["response", "token"])
@pytest.mark.parametrize("rl", [None, {"controller": "fixed", "kl_coef": 0.0}])
def test_an_honest_run_verifies(tmp_path: Path, unit: Unit, rl: Mapping[str, Any] | None) -> None:
    found = verify_run(write_run(tmp_path / "run", unit, rl=rl))
    assert found.problems == ()
    assert found.steps == STEPS


def steered(seen: KLReading) -> Callable[[UpdateEntry], UpdateEntry]:
    """The controller is shown another reading than was measured, and does what follows from that."""

    def edit(entry: UpdateEntry) -> UpdateEntry:
        config = ControlConfig(kl_target=4.0, kl_unit="response")
        first = entry_of("response", 1, control.init(config), GuardConfig(max_kl=None))
        chosen = control.update(control.from_json(first.control, config), seen, entry.signals)
        return replace(entry, kl_control=seen, kl_coef=chosen.kl_coef, control=chosen.to_json())

    return edit


@pytest.mark.parametrize("value", [0.1, 5.0, 400.0])
def test_with_a_target_per_response_the_controller_saw_what_the_guard_saw(
    tmp_path: Path, value: float
) -> None:
    run = write_run(tmp_path / "run", edit_entry=steered(replace(PER_RESPONSE, value=value)))
    assert problems(run) == [
        "ledger.jsonl line 3: kl_control is another reading, though the target is per response"
    ]


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (None, "kl_control is not kl_policy_ref_per_token"),
        (PER_RESPONSE, "kl_control is not kl_policy_ref_per_token"),
        (replace(PER_TOKEN, direction="ref_policy"), "kl_control is not kl_policy_ref_per_token"),
        (replace(PER_TOKEN, n=65), "not readings of one rollout"),
        (replace(PER_TOKEN, clusters=15), "not readings of one rollout"),
        (replace(PER_TOKEN, level=0.5), "not readings of one rollout"),
        (replace(PER_TOKEN, estimator="k1"), "not readings of one rollout"),
        (replace(PER_TOKEN, reference="another"), "not readings of one rollout"),
    ],
)
def test_with_a_target_per_token_it_saw_the_same_rollout_per_token(
    tmp_path: Path, seen: KLReading | None, says: str
) -> None:
    """With a fixed β, which takes any reading: a law with a target refuses most of these itself."""
    run = write_run(
        tmp_path / "run",
        "token",
        rl={"controller": "fixed", "kl_coef": 0.1},
        edit_entry=lambda entry: replace(
            entry,
            kl_control=seen,
            signals=replace(SIGNALS, num_responses=(seen or entry.kl).n),
        ),
    )
    assert len(problems(run)) == 1
    assert problems(run)[0].startswith("ledger.jsonl line 3: ")
    assert says in problems(run)[0]


@pytest.mark.parametrize(
    "kl", [PER_TOKEN, MOVED, replace(PER_RESPONSE, direction="ref_policy")], ids=lambda kl: kl.name
)
def test_the_reading_of_a_step_is_the_kl_from_the_reference_per_response(
    tmp_path: Path, kl: KLReading
) -> None:
    """Also where no limit and no target looks at it."""
    run = write_run(
        tmp_path / "run",
        rl={"controller": "fixed", "kl_coef": 0.1},
        edit_entry=lambda entry: replace(entry, kl=kl),
    )
    assert problems(run) == [
        f"ledger.jsonl line 3: kl is {kl.name}, where kl_policy_ref_per_response belongs"
    ]


@pytest.mark.parametrize("unit", ["response", "token"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kl_policy_ref_per_response", 0.5),
        ("kl_policy_ref_per_response", 5),
        ("kl_policy_ref_per_response", None),
        ("kl_policy_ref_per_response", "5.0"),
        ("kl_policy_ref_per_response_low", 0.0),
        ("kl_policy_ref_per_response_high", None),
        ("kl_new_old_per_token", 0.0),
        ("kl_coef", 0.5),
        ("reward_std_within", 1.0),
        ("log_ratio_std_within", None),
        ("reward_log_ratio_correlation", -0.25),
        ("response_length", 17.0),
        ("step", 2.0),
    ],
)
def test_metrics_show_the_figures_of_the_ledger(
    tmp_path: Path, unit: Unit, key: str, value: Any
) -> None:
    run = write_run(
        tmp_path / "run", unit, edit_metrics=lambda metrics: metrics.update({key: value})
    )
    says = f"{key}: not what the ledger says was used or measured"
    assert problems(run) == [f"metrics.jsonl line 2: {says}"]


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("correlation", -0.25, "reward_log_ratio_correlation"),
        ("correlation", None, "reward_log_ratio_correlation"),
        ("reward_std", 1.5000000000000002, "reward_std_within"),
        ("log_ratio_std", float("inf"), "log_ratio_std_within"),
        ("response_length", 15.0, "response_length"),
    ],
)
def test_a_signal_in_the_ledger_is_the_one_that_the_run_showed(
    tmp_path: Path, field: str, value: float | None, key: str
) -> None:
    """With a fixed β, which follows from any signals."""
    run = write_run(
        tmp_path / "run",
        rl={"controller": "fixed", "kl_coef": 0.1},
        edit_entry=lambda entry: replace(entry, signals=replace(SIGNALS, **{field: value})),
    )
    says = f"{key}: not what the ledger says was used or measured"
    assert problems(run) == [f"metrics.jsonl line 2: {says}"]


@pytest.mark.parametrize("key", ["", "_low", "_high"])
def test_metrics_show_what_a_controller_per_token_saw(tmp_path: Path, key: str) -> None:
    key = f"kl_policy_ref_per_token{key}"
    run = write_run(tmp_path / "run", "token", edit_metrics=lambda m: m.update({key: 0.01}))
    assert problems(run) == [
        f"metrics.jsonl line 2: {key}: not what the ledger says was used or measured"
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_that_are_no_numbers_are_compared_as_they_are_written(
    tmp_path: Path, value: float
) -> None:
    """NaN is not equal to itself; what was recorded as NaN is shown as NaN."""
    kl = replace(PER_RESPONSE, value=value, low=None, high=None)
    shown = {kl.name: value, f"{kl.name}_low": None, f"{kl.name}_high": None}

    def edit(entry: UpdateEntry) -> UpdateEntry:
        verdict = judge(GuardConfig(max_kl=None), kl, FACTS)
        return replace(entry, kl=kl, verdict=verdict)

    fixed = {"controller": "fixed", "kl_coef": 0.1}
    run = write_run(
        tmp_path / "run", rl=fixed, edit_entry=edit, edit_metrics=lambda m: m.update(shown)
    )
    assert problems(run) == []
    other = {**shown, kl.name: 4.0}
    run = write_run(
        tmp_path / "other", rl=fixed, edit_entry=edit, edit_metrics=lambda m: m.update(other)
    )
    assert len(problems(run)) == 1
