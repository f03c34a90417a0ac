"""A run that goes on under limits that a second key changed."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from kleash.errors import InputError, LimitError, TamperError
from kleash.guard import GuardConfig
from kleash.ledger import SigningKey, open_signing_key, read
from kleash.replay import override, verify_run
from kleash.train.config import RunConfig
from kleash.train.run import train
from tests.ledger.written import forge
from tests.train.small import remains, small_settings

SECOND = SigningKey.generate()


def run(settings: dict[str, Any], directory: Path, *, resume: bool = False) -> list[str]:
    """Trains; what became of each update."""
    steps = train(RunConfig.model_validate(settings), directory, skip_self_test=True, resume=resume)
    return [record.verdict.action for record in steps]


def broken_off(
    settings: dict[str, Any], directory: Path, steps: int, *, resume: bool = False
) -> Path:
    """A run that was stopped by its user after some steps."""
    config = RunConfig.model_validate(settings)
    made = train(config, directory, skip_self_test=True, resume=resume)
    for _ in range(steps):
        next(made)
    made.close()
    return directory


def change(directory: Path, until: int | None = None, **values: Any) -> None:
    override(
        directory / "ledger",
        [open_signing_key()],
        SECOND,
        lambda limits: GuardConfig.model_validate(limits.model_dump() | values),
        reason="measured again",
        until=until,
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_settings(tmp_path_factory.mktemp("override"))


@pytest.mark.slow
@pytest.mark.parametrize(("max_kl", "halted"), [(0.1, 4), (0.02, 7)])
def test_a_run_that_halted_goes_on_under_wider_limits(
    settings: dict[str, Any], tmp_path: Path, max_kl: float, halted: int
) -> None:
    """The steps up to the halt, in the middle or at the end, are made again under the limits of then."""
    settings, directory = {**settings, "guard": {"max_kl": max_kl}}, tmp_path / "run"
    with pytest.raises(LimitError, match="training halted"):
        run(settings, directory)
    before = [e.body for e in read(directory / "ledger") if e.type == "update"]
    assert len(before) == halted
    change(directory, max_kl=100.0)
    run(settings, directory, resume=True)
    found = verify_run(directory)
    assert (found.problems, found.status, found.steps) == ((), "finished", 7)
    after = [e.body for e in read(directory / "ledger") if e.type == "update"]
    assert after[:halted] == before
    assert {body["verdict"]["action"] for body in after[halted:]} <= {"accept"}
    with pytest.raises(InputError, match="there is no plan here"):
        change(directory, max_kl=200.0)


@pytest.mark.slow
def test_a_run_that_is_stopped_again_under_an_override_is_the_one_that_was_not(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """From a checkpoint that was made under it: the alarm that it set, and the limit that ran out."""
    settings = {**settings, "guard": {"max_kl": 50.0, "alarms": {"entropy": {"mean": 0.1}}}}
    broken_off(settings, tmp_path / "run", 4)
    change(tmp_path / "run", alarms={"kl": {"mean": 0.5}, "entropy": {"mean": 0.2}})
    change(tmp_path / "run", until=6, min_entropy=0.01)
    shutil.copytree(tmp_path / "run", tmp_path / "twin")
    run(settings, tmp_path / "run", resume=True)
    broken_off(settings, tmp_path / "twin", 2, resume=True)
    assert (tmp_path / "twin" / "checkpoints" / "step-000006").is_dir()
    run(settings, tmp_path / "twin", resume=True)
    for name in ("run", "twin"):
        assert verify_run(tmp_path / name).problems == ()
    entries = read(tmp_path / "run" / "ledger")
    counts = [
        {name: each["count"] for name, each in e.body["guard"]["detectors"].items()}
        for e in entries
        if e.type == "update"
    ]
    assert counts[3:5] == [{"entropy": 4}, {"entropy": 1, "kl": 1}]
    assert counts[6] == {"entropy": 3, "kl": 3}
    assert remains(tmp_path / "run") == remains(tmp_path / "twin")


def test_an_override_that_may_not_be_is_not_gone_on_with(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    directory = broken_off(settings, tmp_path / "run", 1)
    change(directory, max_kl=20.0)
    forge(
        directory / "ledger",
        lambda entries: entries[-1]["body"].update(reason="another"),
        open_signing_key(),
    )
    with pytest.raises(TamperError, match="overridden as it may not be"):
        run(settings, directory, resume=True)
