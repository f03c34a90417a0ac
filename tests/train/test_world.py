"""One run on several processes: the figures of one process, the same weights on all, and an end when one is gone."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from kleash.errors import ConfigError, InputError
from kleash.ledger import read
from kleash.replay import verify_run
from kleash.rollout.seeds import seeded
from kleash.train.algorithms import ALGORITHMS, Targets
from kleash.train.config import RunConfig
from kleash.train.evaluate import collect
from kleash.train.experience import Experience
from kleash.train.joint import check_together
from kleash.train.loss import accumulated, loss_pieces
from kleash.train.resume import read_earlier
from kleash.train.run import prepare, train
from kleash.train.setup import Setup
from kleash.train.world import ALONE, World, launched
from tests.train.small import LETTERS, in_memory, remains, small_settings

ROOT = Path(__file__).parents[2]
GUARD = {
    "canary_prompts": 5,
    "max_kl_canary": 9.0,
    "max_path_log_ratio": 900.0,
    "max_kl": 9.0,
    "max_kl_new_old": 0.001,  # so that updates are shortened by a line search
    "alarms": {"kl": {"mean": 0.5}},
}
TWICE = {"num_epochs": 2, "num_minibatches": 2}


def settings_of(directory: Path, **sections: Any) -> dict[str, Any]:
    directory.mkdir(exist_ok=True)
    plain = small_settings(directory, steps=4, checkpoint_every=2)
    plain["rollout"]["group_size"] = 3
    plain["reward"] = {"model": "tests.train.ranks:uneven"}
    plain["optimizer"] = {"learning_rate": 2e-3}
    if "ptx" in sections:
        texts = directory / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": f"{a}b{a}"}) + "\n" for a in LETTERS))
        plain["ptx"] = {"data": str(texts)}
    for name, section in sections.items():
        plain[name] = {**plain.get(name, {}), **section}
    return plain


ILL_CONDITIONED = {"kl_drawn_share", "reward_log_ratio_correlation"}
"""Ratios of what is nearly nothing in the first steps: they move so with train.micro_batch_size too, on one process."""
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm": TWICE, "guard": GUARD},
    # Three prompts, so that shares are unequal, and minibatches of which a process may have no row.
    "grpo": {
        "rollout": {"num_prompts": 3},
        "algorithm": {"name": "grpo", "num_epochs": 2, "num_minibatches": 4},
        "guard": GUARD,
        "reward": {"monitor": ["tests.train.small:count_a"]},
    },
}
MORE: dict[str, dict[str, Any]] = {
    "one minibatch": {"algorithm": {"name": "rloo", "num_epochs": 2, "num_minibatches": 1}},
    "an adapter, beside texts": {
        "algorithm": TWICE,
        "model": {"lora": {"rank": 2}},
        "ptx": {"num_texts": 4},
    },
    "stale, of several rewards": {
        "rollout": {"staleness": 1},
        "algorithm": {"name": "gspo", "correction": "sequence", **TWICE},
        "reward": {"model": {"tests.train.ranks:uneven": 0.7, "tests.train.small:count_a": 0.3}},
        "model": {"refresh_every": 2, "refresh_share": 0.5},
    },
}


def launch(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """In a process of its own: it forks, which one with threads must not."""
    command = [sys.executable, "-m", "tests.train.ranks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=json.dumps(jobs))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def metrics(run: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def make(root: Path, runs: dict[str, dict[str, Any]], sizes: tuple[int, ...]) -> Path:
    """Each run by so many processes, under its name and their number."""
    jobs: list[dict[str, Any]] = [
        {
            "settings": settings_of(root / f"{name} made", **sections),
            "size": size,
            "run": str(root / f"{name} by {size}"),
        }
        for name, sections in runs.items()
        for size in sizes
    ]
    for job, found in zip(jobs, launch(*jobs), strict=True):
        assert found["codes"] == [0] * job["size"], found["said"]
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("runs"), RUNS, (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_figures_are_those_of_one_process(made: Path, name: str) -> None:
    assert_alike(made / f"{name} by 1", made / f"{name} by 2")


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_so_they_are_of_other_runs_and_of_three(tmp_path: Path, name: str) -> None:
    make(tmp_path, {name: MORE[name]}, (1, 3))
    assert_alike(tmp_path / f"{name} by 1", tmp_path / f"{name} by 3")


def assert_alike(alone: Path, together: Path, ill: set[str] = ILL_CONDITIONED) -> None:
    """β, verdicts and every metric; what was sampled is the same to the last token."""
    lines = list(zip(metrics(alone), metrics(together), strict=True))
    assert len(lines) == 4
    for one, several in lines:
        assert one.keys() == several.keys()
        for figure, value in one.items():
            near = 1e-4 if figure in ill else 1e-5
            expected = None if value is None else pytest.approx(value, rel=near, abs=near)
            assert several[figure] == expected, figure
    updates = [
        [e.body for e in read(run / "ledger") if e.type == "update"] for run in (alone, together)
    ]
    for one, several in zip(*updates, strict=True):
        assert several["rollout_sha256"] == one["rollout_sha256"]
        assert several["verdict"]["action"] == one["verdict"]["action"]
        assert several["kl_coef"] == pytest.approx(one["kl_coef"], rel=1e-5, abs=1e-5)
    found = verify_run(together)
    assert found.ok, found.problems
    assert found.status == "finished"


@pytest.mark.slow
def test_the_line_search_is_made_by_all(made: Path) -> None:
    """Or the test above says nothing of it."""
    fractions = [line["step_fraction"] for line in metrics(made / "ppo by 2")]
    assert [x for x in fractions if x is not None]


@pytest.mark.slow
def test_the_ledger_says_how_many_made_the_run(made: Path) -> None:
    started = [read(made / f"ppo by {size}" / "ledger")[0].body for size in (1, 2)]
    assert [body.get("processes") for body in started] == [None, 2]


@pytest.mark.slow
def test_one_process_asks_nothing_of_torch_distributed(tmp_path: Path, made: Path) -> None:
    """And makes what it made where it knew of no others: a fork that was told of a world of one."""
    settings = json.loads((made / "ppo by 1/config.json").read_text())["config"]
    list(
        train(
            RunConfig.model_validate_json(json.dumps(settings)),
            tmp_path / "run",
            skip_self_test=True,
        )
    )
    assert not torch.distributed.is_initialized()
    for name in ("metrics.jsonl", "samples.jsonl", "drift.jsonl", "final/model.safetensors"):
        left, expected = (
            (run / name).read_bytes() for run in (tmp_path / "run", made / "ppo by 1")
        )
        assert left == expected, name


@pytest.mark.slow
def test_a_run_of_two_goes_on_as_two_alone(made: Path) -> None:
    settings = json.loads((made / "ppo by 2/config.json").read_text())["config"]
    config = RunConfig.model_validate_json(json.dumps(settings))
    with pytest.raises(ConfigError, match="another number of processes") as caught:
        list(train(config, made / "ppo by 2", resume=True))
    assert caught.value.got == "1"
    assert caught.value.expected.startswith("2: ")
    assert verify_run(made / "ppo by 2").status == "finished"


def assert_goes_on_to_the_same_end(sections: dict[str, Any], rank: int) -> None:
    """One of two processes is killed in the fifth step; what is left is gone on with to the last byte."""
    with in_memory() as directory:
        settings = settings_of(directory / "made", **sections)
        settings["train"]["steps"] = 6
        whole, broken = directory / "whole", directory / "broken"
        first = {"settings": settings, "size": 2, "run": str(broken), "kill": [rank, 5]}
        undisturbed, killed = launch({**first, "kill": [0, 99], "run": str(whole)}, first)
        assert undisturbed["codes"] == [0, 0], undisturbed["said"]
        assert killed["codes"][rank] == -9
        assert killed["codes"][1 - rank] == 5, killed["said"]
        assert "go on with --resume" in killed["said"][1 - rank]
        found = verify_run(broken)
        assert found.ok, found.problems
        assert found.status != "finished"
        again = {**first, "resume": True}
        del again["kill"]
        (resumed,) = launch(again)
        assert resumed["codes"] == [0, 0], resumed["said"]
        left, expected = remains(broken), remains(whole)
        assert [n for n in {*left, *expected} if left.get(n) != expected.get(n)] == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_left_of_a_killed_process_goes_on_to_the_same_end(rank: int) -> None:
    assert_goes_on_to_the_same_end(RUNS["ppo"], rank)


@pytest.mark.slow
def test_what_fails_on_one_process_ends_all_with_the_reason(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "made", **RUNS["ppo"])
    job = {"settings": settings, "size": 2}
    strict = {**settings, "guard": {"max_kl": 1e-9, "on_breach": "reject"}}
    failed, nudged, halted = launch(
        {**job, "run": str(tmp_path / "failed"), "fail": [1, 2]},
        {**job, "run": str(tmp_path / "nudged"), "nudge": [1, 2]},
        {**job, "run": str(tmp_path / "halted"), "settings": strict},
    )
    assert failed["codes"] == [5, 5]
    assert "process 1 of 2: ResourceError: the device is on fire" in failed["said"][0]
    assert nudged["codes"] == [5, 5]
    assert all("do not agree on update of step 2" in said for said in nudged["said"])
    assert halted["codes"] == [3, 3], halted["said"]
    for name in ("failed", "nudged", "halted"):
        assert verify_run(tmp_path / name).ok


@pytest.mark.slow
def test_all_go_back_to_a_checkpoint_together(tmp_path: Path) -> None:
    strict = {"max_kl": 0.02, "max_kl_canary": 0.02, "on_breach": "reject", "rollback_after": 1}
    settings = settings_of(
        tmp_path / "made",
        guard=strict,
        rl={"kl_target": 3.0},
        optimizer={"learning_rate": 3e-2},
        train={"steps": 10, "checkpoint_every": 1},
    )
    jobs = [{"settings": settings, "size": n, "run": str(tmp_path / f"{n}")} for n in (1, 2)]
    assert [found["codes"] for found in launch(*jobs)] == [[3], [3, 3]]
    actions = [
        [e.body["verdict"]["action"] for e in read(tmp_path / run / "ledger") if e.type == "update"]
        for run in ("1", "2")
    ]
    assert actions[0] == actions[1]
    assert "rollback" in actions[0]
    assert verify_run(tmp_path / "2").ok


@pytest.fixture(scope="module")
def setups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setup]:
    root = tmp_path_factory.mktemp("setups")
    sections: dict[str, dict[str, Any]] = {
        "ppo": {},
        "grpo": {"algorithm": {"name": "grpo"}},
        "gspo": {"algorithm": {"name": "gspo", "correction": "token"}},
    }
    return {
        name: prepare(RunConfig.model_validate(settings_of(root / name, **each)))
        for name, each in sections.items()
    }


def of(experience: Experience, own: range) -> Experience:
    """What a process has of it whose rows these are."""
    rows, metered = slice(own.start, own.stop), experience.metered
    part = replace(
        metered,
        hidden=metered.hidden[rows],
        ref_hidden=metered.ref_hidden[rows],
        first=own.start,
    )
    return replace(experience, metered=part)


def gradient(setup: Setup, experience: Experience, targets: Targets, rows: Tensor) -> Tensor:
    """Of a minibatch's loss, the part of which the experience has the rows; flat, in double precision."""
    learner, config = setup.learner, setup.config
    learner.optimizer.zero_grad(set_to_none=True)
    given = learner, ALGORITHMS[config.algorithm.name], experience, targets, rows, config
    loss = accumulated(loss_pieces(*given, size=2))
    if loss.total.requires_grad:
        loss.total.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.trained]
    return torch.cat([grad.flatten() for grad in grads]).double()


@pytest.mark.parametrize(
    "name", ["grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ppo", "gspo"))]
)
@hypothesis_settings(max_examples=25)
@given(
    chosen=st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True),
    size=st.integers(2, 4),
)
def test_the_gradients_of_all_add_up_to_that_of_one(
    setups: dict[str, Setup], name: str, chosen: list[int], size: int
) -> None:
    """Whatever rows a minibatch has, and also where a process has none of them."""
    setup = setups[name]
    config = setup.config
    experience = collect(
        setup.learner, setup.prompts[:4], config.rollout, (setup.reward, []), seeded(0, "test")
    )
    algorithm = ALGORITHMS[config.algorithm.name]
    targets = algorithm.targets(experience, 0.3, config.algorithm, config.penalty.resolved)
    rows = torch.tensor(chosen)
    whole = gradient(setup, experience, targets, rows)
    shares = [World(rank=rank, size=size).rows(experience.rollout) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(12))
    parts = [gradient(setup, of(experience, share), targets, rows) for share in shares]
    # A minibatch whose rewards are all alike has a gradient of rounding alone.
    error = float((torch.stack(parts).sum(0) - whole).norm())
    assert error <= 1e-6 + 1e-6 * float(whole.norm())


@given(size=st.integers(1, 64), count=st.integers(0, 300))
def test_shares_are_all_there_is_once_and_alike(size: int, count: int) -> None:
    shares = [World(rank=rank, size=size).share(count) for rank in range(size)]
    assert [each for share in shares for each in share] == list(range(count))
    lengths = [len(share) for share in shares]
    assert set(lengths) <= {math.floor(count / size), math.ceil(count / size)}


def test_what_is_not_done_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = World(rank=0, size=5)
    with pytest.raises(ConfigError, match="more processes than prompts") as caught:
        check_together(RunConfig.model_validate(settings_of(tmp_path)), several)
    assert "num_prompts = 4" in caught.value.expected
    natural = {**settings_of(tmp_path), "algorithm": {"name": "trpo"}}
    with pytest.raises(ConfigError, match="trpo can't be made by several") as caught:
        check_together(RunConfig.model_validate(natural), replace(several, size=2))
    assert launched("cpu") is ALONE
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE is no number"):
        launched("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="named device"):
        launched("cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="launched for what isn't done") as caught:
        launched("cpu")
    assert "--use_fsdp" in str(caught.value.do)


@pytest.mark.slow
def test_processes_that_do_not_see_the_run_say_so(tmp_path: Path, made: Path) -> None:
    assert read_earlier(made / "ppo by 2").saved
    with pytest.raises(InputError):
        read_earlier(tmp_path / "elsewhere")
