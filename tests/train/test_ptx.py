"""The pretraining loss: what it is, and that it is in the update."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from kleash.errors import InputError
from kleash.models.hub import load_language_model
from kleash.train.config import RunConfig
from kleash.train.ptx import Pretraining
from kleash.train.ptx_config import PtxConfig
from kleash.train.run import train

TEXTS = [
    "the film is good .",
    "a bad , bad movie",
    "the plot of the film is thin and the end is worse",
]


def _pretraining(texts: list[str], **settings: int) -> Pretraining:
    policy = load_language_model("tiny-reviews/base")
    config = PtxConfig.model_validate({"num_texts": len(texts), **settings})
    return Pretraining(texts, config, policy, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("most", [128, 5])
def test_it_is_the_cross_entropy_of_every_text_and_its_end(most: int) -> None:
    """Loss and gradient, against the model's own logits, one text at a time."""
    policy = load_language_model("tiny-reviews/base")
    loss = _pretraining(TEXTS, max_tokens=most).loss(policy)
    weight = policy.model.get_output_embeddings().weight
    (gradient,) = torch.autograd.grad(loss, weight)
    total, count = torch.zeros(()), 0
    for text in TEXTS:
        ids = [*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id][:most]
        logits = policy.model(torch.tensor([ids])).logits[0, :-1]
        total = total + cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
        count += len(ids) - 1
    (truth,) = torch.autograd.grad(total / count, weight)

    assert float(loss.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-5)
    torch.testing.assert_close(gradient, truth, rtol=1e-3, atol=1e-6)


def test_every_text_has_its_turn() -> None:
    policy = load_language_model("tiny-reviews/base")
    each = _pretraining(TEXTS, num_texts=1)
    found = sorted(round(float(each.loss(policy).detach()), 4) for _ in range(6))

    assert found[0::2] == found[1::2]
    assert len(set(found)) == 3


def test_texts_of_one_token_are_none() -> None:
    with pytest.raises(InputError, match=r"ptx\.num_texts = 2"):
        _pretraining(["a bad , bad movie", "a bad , bad movie"])


def _losses(run: Path, coef: float | None) -> list[float | None]:
    settings: dict[str, Any] = {
        "rollout": {"num_prompts": 4, "group_size": 2, "max_new_tokens": 8},
        "optimizer": {"learning_rate": 3e-4},
        "train": {"steps": 3, "num_samples": 2, "device": "cpu", "threads": 1, "trackers": []},
    }
    texts = run.with_suffix(".txt")
    texts.write_text("\n".join(TEXTS))
    if coef is not None:
        settings["ptx"] = {"data": str(texts), "num_texts": 3, "coef": coef}
    records = list(train(RunConfig.model_validate(settings), run, skip_self_test=True))
    return [record.metrics["ptx_loss"] for record in records]


@pytest.mark.slow
def test_what_weighs_more_is_kept_better(tmp_path: Path) -> None:
    assert _losses(tmp_path / "none", None) == [None] * 3
    little, much = (_losses(tmp_path / f"{coef:g}", coef) for coef in (1e-6, 10.0))

    assert isinstance(much[-1], float)
    assert isinstance(little[-1], float)
    assert much[-1] < little[-1] - 0.1


def test_a_natural_step_has_none() -> None:
    settings = {"algorithm": {"name": "trpo"}, "ptx": {"data": "x"}, "rollout": {"group_size": 4}}
    with pytest.raises(ValueError, match=r"no ptx\.data with trpo"):
        RunConfig.model_validate(settings)
