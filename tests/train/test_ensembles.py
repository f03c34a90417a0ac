"""Runs whose reward is an ensemble, and whose reward is clipped: the figures, the record, and going on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from kleash.errors import ConfigError
from kleash.replay import verify_run
from kleash.rewards.config import RewardConfig
from kleash.train.config import RunConfig
from kleash.train.joint import load_scorers
from kleash.train.run import train
from kleash.train.world import World
from tests.train.small import LETTERS, count_a, in_memory, remains, small_settings


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with in_memory() as directory:
        small_settings(directory)
        for seed in (1, 2):
            save_reward_model(directory, seed)
        yield directory


def save_reward_model(place: Path, seed: int) -> None:
    """One trunk, as of fits from one model, and a head of its own."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 2 + len(LETTERS),
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.5,
        "num_labels": 1,
        "pad_token_id": 0,
    }
    model = LlamaForSequenceClassification(LlamaConfig(**shape))
    model.score.weight.data = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(place / f"proxy-{seed}")
    AutoTokenizer.from_pretrained(place / "model").save_pretrained(place / f"proxy-{seed}")


def members(place: Path) -> list[str]:
    return [str(place / "proxy-1"), str(place / "proxy-2")]


def settings_of(place: Path, reward: dict[str, Any], **train: Any) -> dict[str, Any]:
    settings = small_settings(place, steps=3, **train)
    return {**settings, "reward": reward}


def run(settings: dict[str, Any], directory: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    """Trains, and reads the metrics of all steps."""
    config = RunConfig.model_validate(settings)
    list(train(config, directory, skip_self_test=True, resume=resume))
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_the_figures_of_an_ensemble(place: Path, tmp_path: Path, combine: str) -> None:
    """Of two members min(a, b) = mean − |a − b|/2, and |a − b|/2 is their standard deviation."""
    first, second = names = members(place)
    reward = {"model": names, "combine": combine, "monitor": names}
    lines = run(settings_of(place, reward), tmp_path / "run")
    assert len(lines) == 3
    for line in lines:
        parts = [line[f"reward_part/{name}"] for name in names]
        assert parts == [line[f"monitor/{name}"] for name in (first, second)]
        apart, middle = line["reward_disagreement"], sum(parts) / 2
        assert apart > 0.1
        assert line["reward_clipped_share"] is None
        if combine == "mean":
            assert line["reward_mean"] == pytest.approx(middle, abs=1e-5)
        elif combine == "worst":
            assert line["reward_mean"] == pytest.approx(middle - apart, abs=1e-5)
        else:  # Jensen: the mean of a square is over the square of the mean
            assert line["reward_mean"] < middle - 0.5 * apart**2 + 1e-5
    assert verify_run(tmp_path / "run").ok
    card = (tmp_path / "run" / "final" / "README.md").read_text(encoding="utf-8")
    assert RunConfig.model_validate(settings_of(place, reward)).reward.name in card


def test_averaged_heads_are_the_mean_of_the_scores_but_for_rounding(
    place: Path, tmp_path: Path
) -> None:
    """The members differ in their linear head alone: the first rollout is the same, and so is what it is scored."""
    means, averaged = (
        run(settings_of(place, {"model": members(place), "combine": c}), tmp_path / c)
        for c in ("mean", "weights")
    )
    for one, other in zip(means, averaged, strict=True):
        assert one["reward_mean"] == pytest.approx(other["reward_mean"], abs=1e-4)
        assert one["reward_std"] == pytest.approx(other["reward_std"], abs=1e-4)
        assert other["reward_disagreement"] is None
        assert not [name for name in other if name.startswith("reward_part/")]
    assert verify_run(tmp_path / "weights").ok


@pytest.mark.parametrize("combine", ["uncertainty", "weights"])
def test_a_run_of_an_ensemble_is_gone_on_with(place: Path, tmp_path: Path, combine: str) -> None:
    reward = {"model": members(place), "combine": combine, "clip": [-1.0, 1.5]}
    settings = settings_of(place, reward, checkpoint_every=1)
    run(settings, tmp_path / "whole")
    config = RunConfig.model_validate(settings)
    steps = train(config, tmp_path / "live", skip_self_test=True)
    next(steps)
    shutil.copytree(tmp_path / "live", tmp_path / "run")  # as a kill leaves it
    steps.close()
    for key, other in (
        ("combine", "worst"),
        ("clip", [-1.0, 2.0]),
        ("model", members(place)[::-1]),
    ):
        another = {**settings, "reward": {**reward, key: other}}
        with pytest.raises(ConfigError) as error:
            run(another, tmp_path / "run", resume=True)
        assert error.value.got == f"another reward.{key}"
    run(settings, tmp_path / "run", resume=True)
    assert remains(tmp_path / "run") == remains(tmp_path / "whole")


@pytest.mark.parametrize("combine", ["uncertainty", "weights"])
def test_every_process_has_a_reward_of_the_same_make(place: Path, combine: str) -> None:
    """Or one would be told of scores more often than another: what is told is each part's, in their order."""
    config = RewardConfig.model_validate({"model": members(place), "combine": combine})
    (first, _), (second, _) = (
        load_scorers(config, "cpu", World(rank=rank, size=2)) for rank in (0, 1)
    )
    assert first.name == second.name == config.name
    names = [each.name for each in first.parts]
    assert names == [each.name for each in second.parts]
    assert names == (members(place) if combine == "uncertainty" else [])


LOW, HIGH = -0.35, 0.8
COUNT = "tests.train.small:count_a"


def clipped_count(prompts: list[str], responses: list[str]) -> list[float]:
    return [min(max(x, LOW), HIGH) for x in count_a(prompts, responses)]


def weights_of(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def test_what_is_learnt_is_what_a_clipped_reward_teaches_and_the_meter_shows_the_raw_one(
    place: Path, tmp_path: Path
) -> None:
    """Bit for bit, penalties included, which are taken off behind the clip: a reward that clips itself is the twin."""
    plain = {"model": COUNT, "length_penalty": 0.5, "length_free": 2}
    itself = f"{__name__}:clipped_count"
    raw = run(
        settings_of(place, {**plain, "clip": [LOW, HIGH], "monitor": [COUNT]}), tmp_path / "a"
    )
    twin = run(settings_of(place, {**plain, "model": itself}), tmp_path / "b")
    free = run(settings_of(place, plain), tmp_path / "c")
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b") != weights_of(tmp_path / "c")
    for one, other in zip(raw, twin, strict=True):
        assert one["reward_std_within"] == other["reward_std_within"]
        assert one["kl_coef"] == other["kl_coef"]
        assert one["reward_mean"] == pytest.approx(one[f"monitor/{COUNT}"])
        assert one["reward_mean"] != other["reward_mean"]
        share = one["reward_clipped_share"] * 8  # of as many responses
        assert share == int(share)
        assert 0 < share < 8
        assert other["reward_clipped_share"] is None
    assert raw[0]["reward_mean"] == free[0]["reward_mean"]
    assert raw[0]["reward_std"] == free[0]["reward_std"]


def test_beyond_a_bound_there_is_nothing_left_to_learn(place: Path, tmp_path: Path) -> None:
    (line, *_) = run(settings_of(place, {"model": COUNT, "clip": [50.0, 60.0]}), tmp_path / "run")
    assert line["reward_clipped_share"] == 1.0
    assert line["reward_std_within"] == 0.0
    assert line["reward_std"] > 0.0


def test_an_ensemble_of_functions(place: Path, tmp_path: Path) -> None:
    names = [COUNT, f"{__name__}:clipped_count"]
    for line in run(settings_of(place, {"model": names, "combine": "worst"}), tmp_path / "run"):
        apart = abs(line[f"reward_part/{names[0]}"] - line[f"reward_part/{names[1]}"])
        assert line["reward_disagreement"] >= apart / 2 - 1e-6  # |mean| is under the mean of ||
        assert line["reward_mean"] <= min(line[f"reward_part/{name}"] for name in names) + 1e-6
