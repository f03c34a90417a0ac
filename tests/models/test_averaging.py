"""Reward models whose weights are averaged: of equal ones no bit changes, and only like ones are taken."""

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig
from transformers import LlamaForSequenceClassification as Llama

from kleash.errors import ConfigError
from kleash.models.averaging import load_average
from kleash.models.reward_model import RewardModel, encode, load_reward_model, predict
from tests.models.test_reward_model import SHAPE, TEXTS, byte_tokenizer

Save = Callable[..., str]


def scores(reward: RewardModel) -> Tensor:
    return predict(reward, encode(reward, TEXTS).ids)[:, 0]


def state(reward: RewardModel) -> dict[str, Tensor]:
    return dict(reward.model.state_dict())


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a model that was drawn with a seed; `head` draws its head alone again."""

    def write(
        name: str, seed: int = 3, *, head: int | None = None, kind: str = "llama", **shape: Any
    ) -> str:
        torch.manual_seed(seed)
        if kind == "bert":
            model: Any = BertForSequenceClassification(BertConfig(**{**SHAPE, **shape}))
        else:
            model = Llama(LlamaConfig(**{**SHAPE, **shape}))
        if head is not None:
            torch.manual_seed(head)
            model.score.weight.data.normal_()
        model.save_pretrained(tmp_path / name)
        byte_tokenizer("right").save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_model_averaged_with_itself_is_itself_bit_for_bit(
    save: Save, kind: str, count: int
) -> None:
    one, average = (
        load_reward_model(save("a", kind=kind)),
        load_average([save("a", kind=kind)] * count),
    )
    assert state(one).keys() == state(average).keys()
    for key, each in state(one).items():
        assert torch.equal(each, state(average)[key]), key
    assert torch.equal(scores(one), scores(average))


def test_of_two_heads_on_one_trunk_the_scores_are_averaged(save: Save) -> None:
    names = [save("a", head=1), save("b", head=2)]
    first, second = (scores(load_reward_model(name)) for name in names)
    assert float((first - second).abs().max()) > 0.1
    torch.testing.assert_close(
        scores(load_average(names)), (first + second) / 2, atol=1e-5, rtol=1e-5
    )


def test_every_weight_is_the_mean_of_all_in_whatever_order(save: Save) -> None:
    names = [save(str(seed), seed) for seed in (1, 2, 3)]
    members = [state(load_reward_model(name)) for name in names]
    averages = [state(load_average(order)) for order in permutations(names)]
    for key in members[0]:
        expected = torch.stack([each[key].double() for each in members]).mean(0).float()
        assert expected.abs().max() > 0
        for average in averages:
            assert average[key].dtype == torch.float32
            torch.testing.assert_close(average[key], expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"kind": "bert"}, "another architecture: 'Llama"),
        ({"num_hidden_layers": 1}, "config num_hidden_layers: 2 and 1"),
        ({"hidden_size": 32}, "config hidden_size: 16 and 32"),
        ({"id2label": {0: "good"}, "label2id": {"good": 0}}, "config id2label"),
        ({"num_labels": 2}, "config id2label"),
        ({"max_position_embeddings": 32}, "config max_position_embeddings: 64 and 32"),
    ],
)
def test_models_that_are_not_alike_are_refused_and_it_says_which_and_in_what(
    save: Save, other: dict[str, Any], said: str
) -> None:
    names = [save("a"), save("b"), save("c", **other)]
    with pytest.raises(ConfigError) as error:
        load_average(names)
    assert f"{names[0]!r} and {names[2]!r}" in error.value.what
    assert said in error.value.got
    assert "reward.combine" in error.value.do


def test_so_are_other_tokens_and_another_template(save: Save) -> None:
    names = [save("a"), save("b")]
    tokenizer = byte_tokenizer("right")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(names[1])
    with pytest.raises(ConfigError, match="averaged") as error:
        load_average(names)
    assert "tokenizer chat template: None and '{{ messages }}'" in error.value.got
    tokenizer = byte_tokenizer("right")
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.save_pretrained(names[1])
    Path(names[1], "chat_template.jinja").unlink()
    with pytest.raises(ConfigError) as error:
        load_average(names)
    assert "another tokenizer pre_tokenizer" in error.value.got


def test_what_plays_no_part_in_a_score_may_differ(save: Save) -> None:
    names = [save("a", 1), save("b", 2, attention_dropout=0.3)]
    config = Path(names[0], "config.json")
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "transformers_version": "4.50.0", "dtype": "bfloat16"}))
    first, second = (state(load_reward_model(name)) for name in names)
    found = state(load_average(names))
    torch.testing.assert_close(
        found["score.weight"], (first["score.weight"] + second["score.weight"]) / 2
    )
