"""TRL's training under our meter: its losses are the published ones, and its drift is measured and recorded."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.errors import InputError, LimitError
from kleash.integrations.trl.config import DPORunConfig, SFTRunConfig
from kleash.integrations.trl.loop import Setup
from kleash.integrations.trl.quiet import silently
from kleash.integrations.trl.run import prepare, train_baseline
from kleash.integrations.trl.trainers import optimisation
from kleash.ledger import read
from kleash.models.config import ModelConfig
from kleash.models.embedded import resolve
from kleash.models.hub import load_language_model
from kleash.models.identity import weights_digest
from kleash.records import StepRecord
from kleash.replay import verify_run
from kleash.report import load_run, render_run
from kleash.train.data import load_prompts
from kleash.train.evaluate import fresh_drift
from kleash.train.learner import build_learner
from kleash.train.loop import held_prompts

PAIRS = [
    {"prompt": "the film is", "chosen": " very good .", "rejected": " a bad and dull film ."},
    {"prompt": "this movie has", "chosen": " a heart .", "rejected": " no heart and no end ."},
    {"prompt": "the plot", "chosen": " works well .", "rejected": " is dull ."},
    {"prompt": "it is", "chosen": " a good film .", "rejected": " bad ."},
]
KL = "kl_policy_ref_per_response"
ROUNDING = 1e-5
"""Nats: what float32 may make of a KL of 0."""


def settings(**train: Any) -> dict[str, Any]:
    return {
        "rollout": {"num_prompts": 4, "group_size": 2, "max_new_tokens": 5},
        "optimizer": {"learning_rate": 1e-3},
        "train": {
            **{"steps": 3, "batch_size": 4, "meter_every": 1, "num_samples": 2},
            **{"device": "cpu", "threads": 1, **train},
        },
    }


def dpo(directory: Path, **train: Any) -> DPORunConfig:
    pairs = directory / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return DPORunConfig.model_validate(settings(**train) | {"data": {"pairs": str(pairs)}})


def sft(directory: Path, **train: Any) -> SFTRunConfig:
    texts = directory / "texts.jsonl"
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SFTRunConfig.model_validate(settings(**train) | {"data": {"texts": str(texts)}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepRecord]]:
    """A whole run of DPO, and its records."""
    directory = tmp_path_factory.mktemp("dpo")
    return directory / "run", list(train_baseline(dpo(directory), directory / "run"))


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A setup whose policy has left its reference."""
    setup = prepare(dpo(tmp_path_factory.mktemp("moved")))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in setup.learner.trained:
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    return setup


def logprobs_of(model: Any, tokenizer: Any, prompt: str, response: str) -> torch.Tensor:
    """log π of each token of a response and of the end-of-sequence token, by a plain forward pass."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([[*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return logprobs[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)[start - 1 :]


def test_dpo_starts_from_log_2_and_from_no_drift(run: tuple[Path, list[StepRecord]]) -> None:
    zero, one, *_ = run[1]
    assert zero.step == 0
    assert abs(zero.kl.value) <= ROUNDING
    assert one.metrics["trl/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert one.metrics["trl/rewards/margins"] == pytest.approx(0.0, abs=1e-6)


def test_dpos_loss_and_implicit_rewards_are_the_formula(moved: Setup) -> None:
    """−log σ(β·margin), with β·log π/π_ref as a response's reward, computed here from plain forward passes."""
    policy, reference = moved.learner.policy, moved.learner.reference
    ratios = {
        key: torch.stack(
            [
                logprobs_of(policy.model, policy.tokenizer, pair["prompt"], pair[key]).sum()
                - logprobs_of(reference.model, policy.tokenizer, pair["prompt"], pair[key]).sum()
                for pair in PAIRS
            ]
        )
        for key in ("chosen", "rejected")
    }
    beta = 0.1
    margins = beta * (ratios["chosen"] - ratios["rejected"])
    trainer = moved.trainer
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(PAIRS))])
    trainer.model.train()
    with silently(), torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    trainer.model.eval()
    assert margins.abs().max() > 1e-3
    assert float(loss) == pytest.approx(float(-margins.sigmoid().log().mean()), abs=1e-5)
    for key in ("chosen", "rejected"):
        assert logged[f"rewards/{key}"] / beta == pytest.approx(float(ratios[key].mean()), abs=1e-4)
    assert logged["rewards/margins"] == pytest.approx(float(margins.mean()), abs=1e-5)


def test_the_split_of_a_pair_changes_no_loss(moved: Setup) -> None:
    """What both responses begin with cancels out: so a prompt that nobody stated may be guessed."""
    trainer = moved.trainer
    rows = [dict(trainer.train_dataset[i]) for i in range(len(PAIRS))]
    losses: list[float] = []
    for kept in (None, 1):
        for row in rows if kept else ():
            rest = row["prompt_ids"][kept:]
            row |= {
                "prompt_ids": row["prompt_ids"][:kept],
                **{key: rest + row[key] for key in ("chosen_ids", "rejected_ids")},
            }
        with torch.no_grad(), silently():
            losses.append(float(trainer.compute_loss(trainer.model, trainer.data_collator(rows))))
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_the_first_loss_of_sft_is_the_completions_cross_entropy(tmp_path: Path) -> None:
    setup = prepare(sft(tmp_path, steps=1))
    model = load_language_model("tiny-reviews/base")
    each = [
        logprobs_of(model.model, model.tokenizer, pair["prompt"], pair["chosen"]) for pair in PAIRS
    ]
    with closing(optimisation(setup.trainer, setup.learner.policy)) as steps:
        first = next(steps)
    assert first.step == 1
    assert first.logs["loss"] == pytest.approx(-float(torch.cat(each).mean()), abs=1e-5)
    assert first.logs["learning_rate"] == setup.config.optimizer.rate_at(1, 1)


def test_the_kl_rises_from_measurement_to_measurement(run: tuple[Path, list[StepRecord]]) -> None:
    values = [record.kl.value for record in run[1]]
    assert [record.step for record in run[1]] == [0, 1, 2, 3]
    assert values == sorted(values)
    assert values[-1] > 100 * ROUNDING
    assert {record.kl_coef for record in run[1]} == {None}
    assert all(record.verdict.action == "accept" for record in run[1])


def test_the_ending_states_the_kl_of_what_is_saved_as_a_run_of_ppo_would(
    run: tuple[Path, list[StepRecord]], tmp_path: Path
) -> None:
    """On the prompts and random numbers that `kleash train` ends with at this seed: two runs compare like with like."""
    directory, _ = run
    config = dpo(tmp_path)
    models = ModelConfig(policy=str(directory / "final"), reference="tiny-reviews/base")
    learner = build_learner(models, config.optimizer, "cpu", with_values=False)
    prompts, generator = held_prompts(load_prompts(config.data.prompts), config.rollout, 0)
    kl = fresh_drift(learner, prompts, config.rollout, generator)
    assert read(directory / "ledger")[-1].body["kl"]["value"] == pytest.approx(kl.value, rel=1e-5)


def test_a_run_is_a_directory_like_any_other(run: tuple[Path, list[StepRecord]]) -> None:
    directory, _ = run
    found = verify_run(directory)
    assert (found.problems, found.status, found.steps) == ((), "finished", 3)
    assert "trl, dpo" in (directory / "final" / "README.md").read_text()
    base = Path(resolve("tiny-reviews/base"))
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (directory / "final" / name).read_bytes() == (base / name).read_bytes()
    lines = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert {line["reward"] for line in lines} == {None}
    page = render_run(load_run(directory), found.to_json())
    assert "DPO" in page
    assert "3 of 3 steps" in page


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "drift.jsonl", "config.json"])
def test_an_altered_byte_is_found(name: str, run: tuple[Path, list[StepRecord]]) -> None:
    path = run[0] / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        assert not verify_run(run[0]).ok
    finally:
        path.write_bytes(whole)


def test_every_metric_is_on_its_page(run: tuple[Path, list[StepRecord]]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([^`]+)`", page))
    assert {name for record in run[1] for name in record.metrics} <= names


@pytest.mark.slow
def test_a_seed_gives_the_same_bytes_however_often_it_is_metered(
    run: tuple[Path, list[StepRecord]], tmp_path: Path
) -> None:
    list(train_baseline(dpo(tmp_path), tmp_path / "again"))
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (
        run[0] / "metrics.jsonl"
    ).read_bytes()
    seldom = list(train_baseline(dpo(tmp_path, meter_every=9), tmp_path / "seldom"))
    assert [record.step for record in seldom] == [0, 3]
    assert seldom[-1].kl == run[1][-1].kl
    weights = "final/model.safetensors"
    assert (tmp_path / "seldom" / weights).read_bytes() == (run[0] / weights).read_bytes()


def stopped(config: DPORunConfig, directory: Path) -> Iterator[StepRecord]:
    """A run's records, up to a breach of its limit."""
    with pytest.raises(LimitError):
        yield from train_baseline(config, directory)


def test_over_the_limit_the_run_halts_and_the_policy_before_it_is_saved(tmp_path: Path) -> None:
    config = dpo(tmp_path, steps=9)
    limited = config.model_copy(
        update={"guard": config.guard.model_copy(update={"max_kl": ROUNDING})}
    )
    records = list(stopped(limited, tmp_path / "run"))
    assert [(r.step, r.verdict.action) for r in records] == [(0, "accept"), (1, "halt")]
    found = verify_run(tmp_path / "run")
    assert (found.problems, found.status, found.steps) == ((), "failed", 1)
    saved = load_language_model(str(tmp_path / "run" / "final"))
    assert weights_digest(saved.model) == weights_digest(
        load_language_model("tiny-reviews/base").model
    )


def test_a_policy_that_is_no_number_halts_the_run(tmp_path: Path) -> None:
    config = dpo(tmp_path, steps=4)
    wild = config.optimizer.model_copy(update={"learning_rate": 1e30})
    records = list(stopped(config.model_copy(update={"optimizer": wild}), tmp_path / "run"))
    assert records[-1].verdict.action == "halt"
    assert verify_run(tmp_path / "run").ok


def test_closing_the_records_ends_the_run_with_its_record(tmp_path: Path) -> None:
    with closing(train_baseline(sft(tmp_path, steps=50), tmp_path / "run")) as records:
        assert [next(records).step for _ in range(2)] == [0, 1]
    found = verify_run(tmp_path / "run")
    assert (found.problems, found.status, found.steps) == ((), "interrupted", 1)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_rows_that_leave_nothing_to_learn_are_refused(tmp_path: Path) -> None:
    config = dpo(tmp_path)
    short = config.data.model_copy(update={"max_length": 2})
    with pytest.raises(InputError, match="anything to learn"):
        prepare(config.model_copy(update={"data": short}))
