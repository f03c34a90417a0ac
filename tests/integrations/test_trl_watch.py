"""SFT and DPO on the leash: measured, recorded, stopped where they go too far, and otherwise left as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback

from kleash.errors import ConfigError, InputError
from kleash.integrations.trl import KLLeash, Watch
from kleash.integrations.trl.quiet import silently
from kleash.ledger import MeasurementEntry, read
from kleash.models.embedded import resolve
from kleash.replay import verify_run
from kleash.report import load_run, render_run
from tests.integrations.leashed import common, weights

# TRL 1.16 asks transformers 5.23 for a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KINDS = ("SFT", "DPO")
ROWS = {
    "prompt": ["the film is", "this movie has", "the plot", "it is"],
    "chosen": [" very good .", " a heart .", " works well .", " a good film ."],
    "rejected": [" a bad and dull film .", " no heart and no end .", " is dull .", " bad ."],
}
WATCH = Watch(prompts=["the film is", "a"], every=2, group_size=4, max_new_tokens=6)


def build(kind: str, **also: Any) -> Any:
    path = str(resolve("tiny-reviews/base"))
    trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    columns = {"prompt": ROWS["prompt"], "completion": ROWS["chosen"]} if kind == "SFT" else ROWS
    said = common(model_init_kwargs={"dtype": torch.float32}, **also)
    with silently():
        trainer = trainer_class(
            model=path,
            args=config_class(**{**said, "per_device_train_batch_size": 4, "max_steps": 3}),
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(path),
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def measurements(run: Path) -> list[MeasurementEntry]:
    entries = [entry for entry in read(run / "ledger") if entry.type == "measurement"]
    return [MeasurementEntry.from_json(entry.body) for entry in entries]


@pytest.mark.parametrize("kind", ["DPO", pytest.param("SFT", marks=pytest.mark.slow)])
def test_a_watched_training_is_measured_recorded_and_unchanged(kind: str, tmp_path: Path) -> None:
    run, free = tmp_path / "run", build(kind)
    free.train()
    trainer = build(kind)
    leash = KLLeash(trainer, limits={"max_kl": 50.0}, ledger=run, watch=WATCH)
    trainer.train()
    for one, other in zip(weights(free), weights(trainer), strict=True):
        assert torch.equal(one, other)
    found = measurements(run)
    assert [each.step for each in found] == [0, 2, 3]
    assert abs(found[0].kl.value) < 1e-5
    assert found[-1].kl.value > 1e-3
    assert found[-1].kl.n == 8
    assert leash.halted is None
    logged = [x["kleash/kl"] for x in trainer.state.log_history if "kleash/kl" in x]
    assert logged == [found[1].kl.value, found[2].kl.value]
    verification = verify_run(run)
    assert verification.problems == ()
    assert verification.status == "finished"
    assert kind in render_run(load_run(run), verification.to_json())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_over_max_kl_it_stops(kind: str, tmp_path: Path) -> None:
    run, trainer = tmp_path / "run", build(kind)
    leash = KLLeash(trainer, limits={"max_kl": 1e-4}, ledger=run, watch=WATCH)
    trainer.train()
    assert trainer.state.global_step == 2
    assert leash.halted is not None
    assert [each.verdict.action for each in measurements(run)] == ["accept", "halt"]
    verification = verify_run(run)
    assert (verification.problems, verification.status) == ((), "failed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("leashed", "says"),
    [
        ({"target": 2.0, "watch": WATCH}, "can't be held to a target"),
        ({"controller": "tilt", "watch": WATCH}, "can't be held to a target"),
        ({}, "watch=Watch"),
        ({"watch": Watch(prompts=[])}, "asks nothing"),
        ({"watch": WATCH, "limits": {"max_kl_new_old": 0.1}}, "max_kl_new_old"),
    ],
)
def test_what_it_has_no_means_for_is_refused(
    kind: str, leashed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        KLLeash(build(kind), ledger=tmp_path / "run", **leashed)
    assert not (tmp_path / "run").exists()


def test_a_prompt_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    long = Watch(prompts=["the film " * 400])
    with pytest.raises(InputError, match="longer than the context"):
        KLLeash(build("SFT"), ledger=tmp_path / "run", watch=long)
