"""Going on with a run: as if it had never stopped, or not at all."""

import copy
import json
import multiprocessing
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kleash.errors import (
    ConfigError,
    InputError,
    KleashError,
    RepeatError,
    ResourceError,
    RewardError,
    TamperError,
)
from kleash.ledger import read
from kleash.replay import verify_run
from kleash.train.config import RunConfig
from kleash.train.directory import last_timed
from kleash.train.resume import check_same
from kleash.train.run import train
from kleash.train.world import World
from tests.train.small import count_a, remains, save_prompts, save_small_model, small_settings

FILES = ("metrics", "samples", "drift")
REWARD = "resume_rewards:breaking"
_broken: dict[str, Any] = {}
MENDED = {"after": 10**9, "error": KeyboardInterrupt, "off": 0.0, "draws": False}


def breaking(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The reward, until it breaks off; it can draw at random, as the process's streams have it, and go wrong."""
    noise = [0.0] * len(responses)
    if _broken["draws"]:
        noise = [random.gauss() + np.random.normal() + float(torch.randn(())) for _ in responses]
    _broken["after"] -= 1
    if _broken["after"] < 0:
        raise _broken["error"]
    scores = count_a(list(prompts), list(responses))
    return [x + _broken["off"] + z for x, z in zip(scores, noise, strict=True)]


def calls_before(step: int) -> int:
    """Calls of the reward before a step's rollout is scored: samples are scored too."""
    return {1: 0, 2: 3, 3: 5, 4: 6, 5: 8, 6: 9, 7: 11}[step]


@pytest.fixture(autouse=True)
def _reward_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resume_rewards", sys.modules[__name__])
    _broken.update(MENDED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model is, for all runs: a run's record names it."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def common(place: Path) -> dict[str, Any]:
    return small_settings(place, REWARD)


@pytest.fixture
def settings(common: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(common)


def run(settings: dict[str, Any], directory: Path, *, resume: bool = False) -> int:
    """Trains; the number of steps that were made."""
    config = RunConfig.model_validate(settings)
    return len(list(train(config, directory, skip_self_test=True, resume=resume)))


def broken_off(
    settings: dict[str, Any], directory: Path, step: int, error: Any = KeyboardInterrupt
) -> Path:
    """A run that broke off as a step was scored."""
    _broken.update(after=calls_before(step), error=error)
    with pytest.raises((KeyboardInterrupt, KleashError)):
        run(settings, directory)
    _broken.update(after=10**9)
    return directory


def killed(settings: dict[str, Any], directory: Path, step: int) -> Path:
    """A run as a kill leaves it once a step is yielded: nothing after that is written."""
    steps = train(RunConfig.model_validate(settings), directory / "live", skip_self_test=True)
    for _ in range(step):
        next(steps)
    shutil.copytree(directory / "live", directory / "run")
    steps.close()
    return directory / "run"


def everything(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def twins() -> dict[str, dict[str, bytes]]:
    """What is left of the runs that never stopped."""
    return {}


Whole = Callable[[dict[str, Any]], dict[str, bytes]]


@pytest.fixture
def whole(twins: dict[str, dict[str, bytes]], tmp_path: Path) -> Whole:
    """What is left of a run that never stopped, made once."""

    def make(settings: dict[str, Any]) -> dict[str, bytes]:
        name = json.dumps([settings, _broken["draws"]])
        if name not in twins:
            assert run(settings, tmp_path / "whole") == settings["train"]["steps"]
            twins[name] = remains(tmp_path / "whole")
        return twins[name]

    return make


def assert_same(directory: Path, expected: dict[str, bytes]) -> None:
    found = verify_run(directory)
    assert found.ok, found.problems
    assert (found.status, found.steps) == ("finished", 7)
    left = remains(directory)
    assert sorted(left) == sorted(expected)
    assert [name for name in expected if left[name] != expected[name]] == []


VARIANTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "stale": {
        "rollout": {"staleness": 2},
        "algorithm": {"name": "rloo", "correction": "token"},
    },
    "refreshed": {"model": {"refresh_every": 2, "refresh_share": 0.5}},
    "penalised step": {"algorithm": {"name": "ppo_kl"}},
    "texts": {"ptx": {"num_texts": 2}},
    "limited": {"guard": {"max_kl": 50.0}},
    "adapter": {"model": {"lora": {"rank": 2}}},
    "adapter refreshed": {"model": {"lora": {"rank": 2}, "refresh_every": 2}},
    "trpo": {"algorithm": {"name": "trpo", "cg_probes": 2}},
    "per token": {"rl": {"kl_target": 0.1, "kl_unit": "token"}},
}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("ppo", 3),
        ("ppo", 6),
        ("stale", 6),
        ("limited", 6),
        *(
            pytest.param(name, 6, marks=pytest.mark.slow)
            for name in list(VARIANTS)[2:]
            if name != "limited"
        ),
    ],
)
def test_a_run_that_is_gone_on_with_is_the_one_that_never_stopped(
    settings: dict[str, Any], tmp_path: Path, place: Path, whole: Whole, name: str, step: int
) -> None:
    """Bit for bit: weights, optimiser, streams, controller, record. Pitfalls 36 and 37: the reference and β too."""
    for section, values in VARIANTS[name].items():
        settings[section] = {**settings.get(section, {}), **values}
    if name == "trpo":
        settings["algorithm"] = VARIANTS[name]["algorithm"]
    if name == "texts":
        (place / "texts.txt").write_text("abc\nbcd\ncde\ndef\nefg\n")
        settings["ptx"]["data"] = str(place / "texts.txt")
    expected = whole(settings)
    broken_off(settings, tmp_path / "run", step)
    broken = verify_run(tmp_path / "run")
    assert (broken.ok, broken.status, broken.steps) == (True, "interrupted", step - 1)
    run(settings, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", expected)


def test_where_nothing_is_a_run_begins(
    settings: dict[str, Any], tmp_path: Path, whole: Whole
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/below"):
        assert run(settings, tmp_path / name, resume=True) == 7
        assert_same(tmp_path / name, whole(settings))


@pytest.mark.parametrize("left", [(), ("config.json",), ("ledger",), ("config.json", "ledger")])
def test_a_run_that_was_killed_before_its_first_entry_begins(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: tuple[str, ...]
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    if "config.json" in left:
        (directory / "config.json").write_text("{")
    if "ledger" in left:
        (directory / "ledger").mkdir()
    assert run(settings, directory, resume=True) == 7
    assert_same(directory, whole(settings))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optimizer": {"learning_rate": 2e-2}}, "optimizer.learning_rate"),
        ({"train": {"steps": 8}}, "train.steps"),
        ({"rl": {"kl_target": 0.4}}, "rl.kl_target"),
        ({"data": {"prompts": "elsewhere.txt"}}, "data.prompts"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_another_configuration_is_refused_by_the_settings_name_and_nothing_is_lost(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    directory = killed(settings, tmp_path, 1)
    before = everything(directory)
    other = {**settings, **{key: {**settings[key], **value} for key, value in change.items()}}
    with pytest.raises(ConfigError, match=rf"another {named};") as caught:
        run(other, directory, resume=True)
    assert (caught.value.exit_code, everything(directory)) == (2, before)


@pytest.mark.parametrize("what", ["policy", "prompts"])
def test_a_model_or_prompts_that_changed_are_refused_and_nothing_is_lost(
    tmp_path: Path, what: str
) -> None:
    settings = small_settings(tmp_path, REWARD)
    directory = killed(settings, tmp_path, 4)
    before = everything(directory)
    if what == "policy":
        save_small_model(tmp_path / "model", seed=6)
    else:
        (tmp_path / "prompts.txt").write_text("ab\nba\ncb\nda\nhh\n")
    with pytest.raises(InputError, match=f"{what}.* changed since the run was started"):
        run(settings, directory, resume=True)
    assert everything(directory) == before
    save_small_model(tmp_path / "model")
    save_prompts(tmp_path / "prompts.txt")
    run(settings, directory, resume=True)
    assert verify_run(directory).status == "finished"


def test_a_finished_run_is_left_as_it_is(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, tmp_path / "run")
    before = everything(tmp_path / "run")
    with pytest.raises(InputError, match="has finished"):
        run(settings, tmp_path / "run", resume=True)
    assert everything(tmp_path / "run") == before


def test_a_halted_run_is_left_as_it_is_once_it_has_its_ending(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["guard"] = {"max_kl": 0.05}
    steps = train(RunConfig.model_validate(settings), tmp_path / "live", skip_self_test=True)
    for record in steps:
        if record.verdict.action == "halt":
            break
    shutil.copytree(tmp_path / "live", tmp_path / "run")  # killed before its ending
    with pytest.raises(KleashError, match="training halted"):
        next(steps)
    with pytest.raises(KleashError, match="training halted"):
        run(settings, tmp_path / "run", resume=True)
    for name in ("live", "run"):
        assert verify_run(tmp_path / name).ok, verify_run(tmp_path / name).problems
        assert verify_run(tmp_path / name).status == "failed"
        before = everything(tmp_path / name)
        with pytest.raises(InputError, match="the guard halted"):
            run(settings, tmp_path / name, resume=True)
        assert everything(tmp_path / name) == before
    assert remains(tmp_path / "run") == remains(tmp_path / "live")


@pytest.mark.parametrize("kind", ["a file", "files", "another ledger directory"])
def test_what_is_no_run_is_left_as_it_is(
    settings: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    directory = tmp_path / "run"
    if kind == "a file":
        directory.write_text("mine")
    else:
        directory.mkdir()
        (directory / "thesis.txt").write_text("mine")
        if kind == "another ledger directory":
            (directory / "ledger").mkdir()
    before = everything(tmp_path)
    with pytest.raises(InputError, match="holds no run"):
        run(settings, directory, resume=True)
    assert everything(tmp_path) == before


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{
        f"{name} flipped": lambda directory, name=name: flip(directory / name)
        for name in (
            "state.json",
            "state.safetensors",
            "manifest.json",
            "policy/model.safetensors",
            "policy/config.json",
            "policy/tokenizer.json",
        )
    },
    "state missing": lambda directory: (directory / "state.safetensors").unlink(),
    "manifest missing": lambda directory: (directory / "manifest.json").unlink(),
    "weights missing": lambda directory: (directory / "policy/model.safetensors").unlink(),
    "file added": lambda directory: (directory / "policy/extra.bin").write_bytes(b"x"),
    "all missing": shutil.rmtree,
}


def flip(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def left(common: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after steps 3 and 6 and nothing after that, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "resume_rewards", sys.modules[__name__])
        _broken.update(MENDED)
        return killed(common, tmp_path_factory.mktemp("left"), 6)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(x, marks=[] if number % 3 == 0 else pytest.mark.slow)
        for number, x in enumerate(DAMAGES)
    ],
)
def test_a_checkpoint_that_is_damaged_is_not_used_and_the_one_before_is(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: Path, damage: str
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    DAMAGES[damage](directory / "checkpoints/step-000006")
    assert run(settings, directory, resume=True) == 4
    resumed = [e.body for e in read(directory / "ledger") if e.type == "run.resumed"]
    assert [body["step"] for body in resumed] == [3]
    assert "step-000006 is not used" in resumed[0]["notes"][0]
    assert_same(directory, whole(settings))


def test_where_no_checkpoint_is_usable_a_run_goes_on_from_its_beginning(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: Path
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    for path in (directory / "checkpoints").iterdir():
        flip(path / "state.safetensors")
    assert run(settings, directory, resume=True) == 7
    [resumed] = [e.body for e in read(directory / "ledger") if e.type == "run.resumed"]
    assert (resumed["step"], resumed["checkpoint"], len(resumed["notes"])) == (0, None, 2)
    assert_same(directory, whole(settings))


def test_an_older_checkpoint_that_is_damaged_is_removed_at_the_end(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: Path
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    flip(directory / "checkpoints/step-000003/state.json")
    for name in (".step-000003.old", ".step-000007.tmp", "step-000005"):  # and what kills left
        shutil.copytree(directory / "checkpoints/step-000003", directory / "checkpoints" / name)
    assert run(settings, directory, resume=True) == 1
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["step-000006"]
    assert_same(directory, whole(settings))


def test_what_is_not_ours_among_the_checkpoints_is_not_removed(
    settings: dict[str, Any], tmp_path: Path, left: Path
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    (directory / "checkpoints/notes.txt").write_text("mine")
    run(settings, directory, resume=True)
    assert (directory / "checkpoints/notes.txt").read_text() == "mine"
    assert "notes.txt" in str(verify_run(directory).problems)


TAILS: dict[str, Callable[[bytes], bytes]] = {
    "one byte less": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "torn line more": lambda content: content + b'{"step":7,"lo',
    "zeros more": lambda content: content + bytes(600),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    "name",
    [name if name == "metrics" else pytest.param(name, marks=pytest.mark.slow) for name in FILES],
)
def test_a_file_of_lines_whose_end_is_torn_is_made_whole(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: Path, name: str, tail: str
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    path = directory / f"{name}.jsonl"
    path.write_bytes(TAILS[tail](path.read_bytes()))
    run(settings, directory, resume=True)
    assert_same(directory, whole(settings))


def test_files_of_lines_that_are_gone_or_were_changed_are_made_again(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: Path
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    flip(directory / "samples.jsonl")
    for name in ("metrics.jsonl", "drift.jsonl"):
        (directory / name).unlink()
    assert run(settings, directory, resume=True) == 7
    assert_same(directory, whole(settings))


def test_times_go_on_after_the_last_whole_line(
    settings: dict[str, Any], tmp_path: Path, left: Path
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    with (directory / "timings.jsonl").open("ab") as file:
        file.write(b'{"step":7,"coll')
    run(settings, directory, resume=True)
    lines = (directory / "timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("last", [b"", b"[]\n", b"{}\n", b"x\n", b'{"step":null}\n'])
def test_times_that_can_not_be_read_are_not_gone_by(tmp_path: Path, last: bytes) -> None:
    (tmp_path / "timings.jsonl").write_bytes(last)
    assert last_timed(tmp_path / "timings.jsonl") == 0


def test_a_step_that_is_made_again_is_timed_once(settings: dict[str, Any], tmp_path: Path) -> None:
    directory = killed(settings, tmp_path, 5)
    before = (directory / "timings.jsonl").read_bytes()
    assert run(settings, directory, resume=True) == 4
    after = (directory / "timings.jsonl").read_bytes()
    assert after.startswith(before)
    assert [json.loads(line)["step"] for line in after.splitlines()] == [1, 2, 3, 4, 5, 6, 7]


def test_another_configuration_is_refused_though_the_run_is_still_written(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Before its ledger is opened: what is asked for is wrong, whoever holds the lock."""
    steps = train(RunConfig.model_validate(settings), tmp_path / "run", skip_self_test=True)
    next(steps)
    other = {**settings, "rl": {**settings["rl"], "kl_target": 1.0}}
    with pytest.raises(ConfigError, match=r"another rl\.kl_target"):
        run(other, tmp_path / "run", resume=True)
    with pytest.raises(ResourceError, match="another process is writing"):
        run(settings, tmp_path / "run", resume=True)
    steps.close()
    # What was forged is said to be that, and not another configuration.
    segment = tmp_path / "run" / "ledger" / "segments" / "000000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"kl_target":0.3', b'"kl_target":0.4', 1))
    with pytest.raises(TamperError):
        run(settings, tmp_path / "run", resume=True)


def test_a_reward_that_does_not_repeat_itself_ends_the_run_and_the_record_says_so(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    directory = killed(settings, tmp_path, 5)
    _broken["off"] = 0.25
    with pytest.raises(RepeatError, match="entry 9 of its ledger was not made again") as caught:
        run(settings, directory, resume=True)
    assert caught.value.exit_code == 5
    ending = read(directory / "ledger")[-1]
    assert (ending.type, ending.body["steps"]) == ("run.failed", 3)
    assert "does not repeat itself" in ending.body["reason"]
    found = verify_run(directory)
    assert (found.ok, found.status, found.steps) == (True, "failed", 5), found.problems


def test_after_a_reward_that_did_not_repeat_itself_the_right_one_goes_on(
    settings: dict[str, Any], tmp_path: Path, whole: Whole
) -> None:
    directory = killed(settings, tmp_path, 5)
    _broken["off"] = 0.25
    with pytest.raises(RepeatError):
        run(settings, directory, resume=True)
    _broken["off"] = 0.0
    run(settings, directory, resume=True)
    assert_same(directory, whole(settings))


@pytest.mark.parametrize("step", [1, 4, *(pytest.param(x, marks=pytest.mark.slow) for x in (3, 7))])
def test_a_reward_that_fails_and_is_mended(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, step: int
) -> None:
    directory = broken_off(settings, tmp_path / "run", step, ValueError("no answer"))
    found = verify_run(directory)
    assert (found.ok, found.status, found.steps) == (True, "failed", step - 1), found.problems
    _broken.update(after=0)
    with pytest.raises(RewardError):
        run(settings, directory, resume=True)
    assert verify_run(directory).ok, verify_run(directory).problems
    _broken.update(after=10**9)
    run(settings, directory, resume=True)
    assert_same(directory, whole(settings))


@pytest.mark.parametrize("step", [4, *(pytest.param(x, marks=pytest.mark.slow) for x in (2, 6))])
def test_what_a_reward_draws_from_the_processes_streams_is_drawn_again(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, step: int
) -> None:
    """Also where it drew, and then broke off."""
    _broken["draws"] = True
    expected = whole(settings)
    directory = broken_off(settings, tmp_path / "run", step)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    run(settings, directory, resume=True)
    assert_same(directory, expected)


def _resume(settings: dict[str, Any], directory: Path, results: Any) -> None:
    sys.modules["resume_rewards"] = sys.modules[__name__]
    _broken.update(MENDED)
    try:
        run(settings, directory, resume=True)
        results.put("finished")
    except KleashError as error:
        results.put(f"{type(error).__name__}: {error.what}")


@pytest.mark.parametrize("step", [0, 5], ids=["a beginning", "a run"])
def test_of_processes_that_go_on_at_once_one_wins(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: Path, step: int
) -> None:
    """The others are refused, whether while it is at work or after, and harm nothing."""
    expected = whole(settings)
    directory = shutil.copytree(left, tmp_path / "run") if step else tmp_path / "run"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    others = [
        context.Process(target=_resume, args=(settings, directory, results)) for _ in range(3)
    ]
    for process in others:
        process.start()
    said = sorted(results.get(timeout=60) for _ in others)
    for process in others:
        process.join()
    refusals = [what for what in said if what != "finished"]
    assert len(refusals) == 2
    known = ("ResourceError: another process", "InputError")
    assert all(what.startswith(known) for what in refusals), refusals
    assert_same(directory, expected)


def test_another_process_is_refused_while_a_run_is_gone_on_with(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, left: Path
) -> None:
    directory = shutil.copytree(left, tmp_path / "run")
    steps = train(RunConfig.model_validate(settings), directory, skip_self_test=True, resume=True)
    next(steps)
    with pytest.raises(ResourceError, match="another process is writing"):
        run(settings, directory, resume=True)
    assert list(steps) == []
    assert_same(directory, whole(settings))


def test_of_two_runs_that_begin_in_one_place_the_first_stays_as_it_was_begun(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the second finds nothing there when it looks: it loads its models first."""
    import kleash.train.run as module

    first = train(RunConfig.model_validate(settings), tmp_path / "run", skip_self_test=True)
    other = {**settings, "optimizer": {"learning_rate": 1e-3}}
    real = module.prepare

    def meanwhile(config: RunConfig, world: World) -> Any:
        if config.optimizer.learning_rate == 1e-3:
            next(first)
        return real(config, world)

    monkeypatch.setattr(module, "prepare", meanwhile)
    with pytest.raises(ResourceError, match="another process is writing"):
        run(other, tmp_path / "run")
    assert len(list(first)) == 6
    shutil.rmtree(tmp_path / "run/checkpoints")  # the two share the process's streams
    expected = whole(settings)
    assert_same(
        tmp_path / "run", {n: x for n, x in expected.items() if not n.startswith("checkpoints")}
    )


@pytest.mark.parametrize("step", [3, 7, *(pytest.param(x, marks=pytest.mark.slow) for x in (1, 5))])
def test_a_run_whose_iterator_was_closed(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, step: int
) -> None:
    steps = train(RunConfig.model_validate(settings), tmp_path / "run", skip_self_test=True)
    for _ in range(step):
        next(steps)
    steps.close()
    found = verify_run(tmp_path / "run")
    assert (found.ok, found.status, found.steps) == (True, "interrupted", step)
    assert run(settings, tmp_path / "run", resume=True) == 7 - step
    expected = whole(settings)
    if step == 7:  # it has a checkpoint more
        shutil.rmtree(tmp_path / "run/checkpoints")
        expected = {n: x for n, x in expected.items() if not n.startswith("checkpoints")}
    assert_same(tmp_path / "run", expected)


@pytest.mark.parametrize("how", ["closed", pytest.param("interrupted", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_while_it_repeats_steps(
    settings: dict[str, Any], tmp_path: Path, whole: Whole, how: str
) -> None:
    directory = killed(settings, tmp_path, 6)
    shutil.rmtree(directory / "checkpoints/step-000006")
    if how == "closed":
        steps = train(
            RunConfig.model_validate(settings), directory, skip_self_test=True, resume=True
        )
        next(steps)
        steps.close()
    else:
        _broken.update(after=3, error=KeyboardInterrupt)  # step 4 and its samples, step 5
        with pytest.raises(KeyboardInterrupt):
            run(settings, directory, resume=True)
        _broken.update(after=10**9)
    found = verify_run(directory)
    assert (found.ok, found.status, found.steps) == (True, "interrupted", 6), found.problems
    ending = read(directory / "ledger")[-1]
    assert ending.body["steps"] == (4 if how == "closed" else 5)
    run(settings, directory, resume=True)
    assert_same(directory, whole(settings))


def test_a_checkpoint_that_is_made_again_with_another_content_is_not_kept(
    settings: dict[str, Any],
    tmp_path: Path,
    whole: Whole,
    left: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its updates are the same; one stream that none of them drew from isn't."""
    directory = shutil.copytree(left, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints/step-000006")
    with monkeypatch.context() as patch:
        import kleash.train.directory as module

        streams = module.random_tensors
        patch.setattr(
            module, "random_tensors", lambda: {**streams(), "random.extra": torch.zeros(1)}
        )
        with pytest.raises(RepeatError, match="its checkpoint after step 6 is another"):
            run(settings, directory, resume=True)
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["step-000003"]
    found = verify_run(directory)
    assert (found.ok, found.status) == (True, "failed"), found.problems
    run(settings, directory, resume=True)
    assert_same(directory, whole(settings))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_where_a_device_has_no_memory_the_knob_is_named_and_the_run_goes_on(
    settings: dict[str, Any],
    tmp_path: Path,
    whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
) -> None:
    expected, calls = whole(settings), iter(range(100))
    adam = torch.optim.AdamW.step

    def scarce(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(calls) == 9:
            raise error
        return adam(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", scarce)
        with pytest.raises(ResourceError, match="no memory left") as caught:
            run(settings, tmp_path / "run")
    assert "train.micro_batch_size" in caught.value.do
    assert verify_run(tmp_path / "run").ok
    run(settings, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", expected)


def test_settings_that_came_later_are_at_their_defaults(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """A run that was begun before there was such a setting can be gone on with; not with another value of it."""
    config = RunConfig.model_validate(settings)
    recorded = json.loads(config.model_dump_json())
    del recorded["model"]["lora"], recorded["train"]["micro_batch_size"]
    check_same(config, {"config": recorded})
    settings["train"]["micro_batch_size"] = 3
    with pytest.raises(ConfigError, match=r"another train\.micro_batch_size"):
        check_same(RunConfig.model_validate(settings), {"config": recorded})
