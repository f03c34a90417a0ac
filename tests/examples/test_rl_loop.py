"""The loop on two screens and the library: the same run, number by number."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kleash.config import build
from kleash.rollout.seeds import seeded
from kleash.train.config import RunConfig
from kleash.train.run import train

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_both_give_the_same_numbers(tmp_path: Path) -> None:
    """To float32's rounding: one holds whole distributions, the other a chunk of them at a time.

    Two steps: Adam's first updates are as long where a gradient is noise, and a third step draws a first other token.
    """
    plain, basic = example("rl_loop"), example("rl_basic")
    settings = {**basic.SETTINGS, "train": {**basic.SETTINGS["train"], "steps": 2}}
    config = build(RunConfig, settings, "rl_basic.py")
    records = list(train(config, tmp_path / "run", skip_self_test=True))
    assert seeded(0, "training").initial_seed() == plain.SEED

    for step, record in zip(plain.run(2), records, strict=True):
        assert step.reward == pytest.approx(record.metrics["reward_mean"], rel=1e-5)
        assert step.kl.value == pytest.approx(record.kl.value, rel=1e-5, abs=1e-6)
        assert step.kl_coef == pytest.approx(record.kl_coef, rel=1e-5)
        # Of returns that KL was charged in, which nothing else here shows.
        assert step.foreseen == pytest.approx(record.metrics["explained_variance"], rel=1e-4)
    assert records[-1].kl.value > 0.5
