"""The loop on two screens and the library: the same run, number by number."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kleash.config import build
from kleash.train.config import RunConfig
from kleash.train.loop import seeded
from kleash.train.run import train

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_give_the_same_numbers(tmp_path: Path) -> None:
    """To float32's rounding, until that changes a first token: Adam's first steps are long where a gradient is noise.

    One holds whole distributions, the other a chunk of them at a time.
    """
    plain, basic = example("rl_loop"), example("rl_basic")
    settings = {**basic.SETTINGS, "train": {**basic.SETTINGS["train"], "steps": 3}}
    config = build(RunConfig, settings, "rl_basic.py")
    records = list(train(config, tmp_path / "run", skip_self_test=True))
    assert seeded(0, "training").initial_seed() == plain.SEED

    for step, record, within in zip(plain.run(3), records, (1e-5, 1e-5, 0.03), strict=True):
        assert step.reward == pytest.approx(record.metrics["reward_mean"], rel=within)
        assert step.kl.value == pytest.approx(record.kl.value, rel=within, abs=1e-6)
        assert step.kl_coef == pytest.approx(record.kl_coef, rel=within)
    assert records[-1].kl.value > 0.5
