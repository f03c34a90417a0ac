"""A checkpoint holds all that a run follows from, and what is none is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kleash.errors import TamperError
from kleash.train.checkpoint import (
    load_checkpoint,
    load_weights,
    path_of,
    save_checkpoint,
)
from kleash.train.config import RunConfig
from kleash.train.loop import run_loop
from kleash.train.process import random_tensors
from kleash.train.progress import Progress
from kleash.train.run import prepare
from kleash.train.setup import Setup
from tests.train.small import small_settings


class Unread:
    """A ledger that nobody reads."""

    def append(self, kind: str, body: dict[str, Any]) -> None:
        """Takes it."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Of a run whose reference follows, with texts that are not to be forgotten, and rollouts that wait."""
    place = tmp_path_factory.mktemp("checkpoint")
    settings = small_settings(place)
    (place / "texts.txt").write_text("abc\nbcd\ncde\ndef\nefg\n")
    settings["model"] |= {"refresh_every": 1, "refresh_share": 0.5}
    settings["rollout"]["staleness"] = 1
    settings["algorithm"] |= {"name": "ppo", "correction": "token"}
    settings["ptx"] = {"num_texts": 2, "data": str(place / "texts.txt")}
    return RunConfig.model_validate(settings)


@pytest.fixture(scope="module")
def saved(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Progress, Path]:
    """After two steps."""
    run = tmp_path_factory.mktemp("run")
    progress = Progress(prepare(config))
    for record in run_loop(progress.setup, Unread(), progress):  # pyright: ignore[reportArgumentType]
        if record.step == 2:
            break
    progress.process = random_tensors()
    assert save_checkpoint(run, progress, {}).step == 2
    return progress, path_of(run, 2)


@pytest.fixture
def copy(saved: tuple[Progress, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[1], tmp_path / "step-000002"))


@pytest.fixture(scope="module")
def fresh(config: RunConfig) -> Setup:
    return prepare(config)


def weights(setup: Setup) -> list[torch.Tensor]:
    learner = setup.learner
    assert learner.value_head is not None
    models = (learner.policy.model, learner.reference.model, learner.value_head)
    return [x.detach().clone() for model in models for x in model.parameters()]


def test_what_is_loaded_is_what_was_saved(saved: tuple[Progress, Path], fresh: Setup) -> None:
    """The reference, streams, orders and waiting rollouts among it."""
    progress, directory = saved
    loaded, lengths = load_checkpoint(directory, fresh)
    assert lengths == {}
    for mine, other in zip(weights(loaded.setup), weights(progress.setup), strict=True):
        assert torch.equal(mine, other)
    assert loaded.setup.learner.reference.name == progress.setup.learner.reference.name
    assert "brought nearer by 0.5 after step" in loaded.setup.learner.reference.name
    mark = progress.mark
    assert (loaded.mark.step, loaded.mark.control, loaded.mark.guard) == (
        mark.step,
        mark.control,
        mark.guard,
    )
    assert loaded.mark.shuffles == mark.shuffles
    assert sorted(mark.shuffles) == ["prompts", "texts"]
    assert sorted(mark.streams) == ["pretraining", "training"]
    for name, state in mark.streams.items():
        assert torch.equal(loaded.mark.streams[name], state)
    assert [x.responses for x in loaded.waiting] == [x.responses for x in progress.waiting]
    assert len(loaded.waiting) == 1
    mine, other = loaded.next_rollout(), progress.waiting[0]
    for field in fields(mine):
        got, was = getattr(mine, field.name), getattr(other, field.name)
        assert torch.equal(got, was) if isinstance(was, torch.Tensor) else got == was


def test_weights_alone_go_back_and_nothing_else_does(
    saved: tuple[Progress, Path], fresh: Setup
) -> None:
    progress, directory = saved
    with torch.no_grad():
        for parameter in fresh.learner.trained:
            parameter.zero_()
    load_weights(directory, fresh.learner)
    for mine, other in zip(weights(fresh), weights(progress.setup), strict=True):
        assert torch.equal(mine, other)
    assert fresh.learner.settled


def test_what_an_update_drew_is_put_back(saved: tuple[Progress, Path]) -> None:
    progress, _ = saved
    held = progress.hold()
    texts = progress.setup.pretraining
    assert texts is not None
    drawn = [torch.rand(3, generator=g) for g in (progress.generator, texts.generator)]
    taken = next(progress.prompts), next(texts.batches)
    progress.rewind(held)
    again = [torch.rand(3, generator=g) for g in (progress.generator, texts.generator)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert (next(progress.prompts), next(texts.batches)) == taken
    progress.rewind(held)


def state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "state.json"
        data = json.loads(path.read_bytes())
        change(data)
        path.write_text(json.dumps(data))

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "state.safetensors"
        data = load_file(path)
        change(data)
        save_file(data, path)

    return edit


def reshape(data: dict[str, torch.Tensor]) -> None:
    name = next(name for name in data if name.startswith("value_head."))
    data[name] = torch.zeros(7, 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (state(lambda data: data.pop("control")), "'control'"),
        (state(lambda data: data.update(guard={})), "the stored guard state cannot be used"),
        (state(lambda data: data.update(control={})), "controller"),
        (state(lambda data: data.update(step_coef="much")), "could not convert string"),
        (state(lambda data: data.update(waiting=[{}])), "'prompts'"),
        (lambda path: (path / "state.json").write_bytes(b"["), "Expecting value"),
        (lambda path: (path / "state.safetensors").write_bytes(b"0"), "header"),
        (tensors(reshape), "has another shape"),
        (tensors(lambda data: data.pop("random.gauss")), "random.gauss"),
    ],
)
def test_what_is_no_checkpoint_of_the_run_is_refused(
    copy: Path, fresh: Setup, change: Callable[[Path], object], said: str
) -> None:
    change(copy)
    with pytest.raises(TamperError, match="step-000002 is no checkpoint of this run") as error:
        load_checkpoint(copy, fresh)
    assert said in error.value.got
