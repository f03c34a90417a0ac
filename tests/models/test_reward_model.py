"""A reward model's scores: one text, one score, however it is batched, padded, cut, saved or scaled."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from kleash.errors import InputError
from kleash.models.reward_model import (
    RewardModel,
    encode,
    forward,
    load_reward_model,
    new_reward_model,
    predict,
    rescale,
    save_reward_model,
)
from kleash.train.preferences import Pair
from kleash.train.reward_config import RewardTrainConfig
from kleash.train.reward_fit import fit
from kleash.train.reward_report import FitReport

Kind = Literal["llama", "bert"]

TEXTS = ["a", "the film is good", "b" * 40, "no", "longer, with é and 漢", "the end"] * 3
CONTEXT = 64
SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "num_labels": 1,
}


def byte_tokenizer(padding_side: str) -> PreTrainedTokenizerFast:
    """Every byte is a token; `<bos>` comes first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side=padding_side,
    )


def classifier(directory: Path, *, kind: Kind = "llama", padding_side: str = "right") -> str:
    """Writes a classifier with one output and random weights; the same ones every time."""
    torch.manual_seed(3)
    if kind == "llama":
        model = LlamaForSequenceClassification(LlamaConfig(**SHAPE))
    else:
        model = BertForSequenceClassification(BertConfig(**SHAPE))
        model.classifier.bias.data.fill_(0.7)  # a head with a bias scales whole, or not at all
    model.save_pretrained(directory)
    byte_tokenizer(padding_side).save_pretrained(directory)
    return str(directory)


def language_model(directory: Path) -> str:
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(directory)
    byte_tokenizer("right").save_pretrained(directory)
    return str(directory)


def scores(reward: RewardModel, texts: list[str], *, batch_size: int = 32) -> torch.Tensor:
    return predict(reward, encode(reward, texts).ids, batch_size=batch_size)[:, 0]


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_score_depends_on_neither_batch_nor_padding_side(
    tmp_path: Path, kind: Kind, padding_side: str, batch_size: int
) -> None:
    reward = load_reward_model(classifier(tmp_path, kind=kind, padding_side=padding_side))
    with torch.no_grad():
        alone = torch.cat([forward(reward, encode(reward, [text]).ids)[:, 0] for text in TEXTS])
    assert alone.unique().numel() == 6, "the scores must tell the texts apart"
    torch.testing.assert_close(
        scores(reward, TEXTS, batch_size=batch_size), alone, atol=1e-5, rtol=0
    )


def test_no_texts_have_no_scores_and_an_empty_text_has_one(tmp_path: Path) -> None:
    reward = load_reward_model(classifier(tmp_path))
    assert scores(reward, []).shape == (0,)
    assert scores(reward, [""]).isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_the_end_and_the_special_tokens(tmp_path: Path, side: str) -> None:
    """Whatever side the tokenizer itself would cut at; and it is left as it was."""
    reward = load_reward_model(classifier(tmp_path))
    reward.tokenizer.truncation_side = side
    ids, lengths = encode(reward, ["x" * 70 + "the end", "the end"], max_length=8)
    assert lengths == [78, 8]
    assert ids[0] == ids[1]
    assert reward.tokenizer.truncation_side == side
    whole, end = scores(reward, ["x" * 70 + "y" * 63, "y" * 63])
    assert whole == end


def test_a_language_model_has_no_trained_head(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained classification head") as error:
        load_reward_model(language_model(tmp_path))
    assert "score.weight" in error.value.got
    assert error.value.exit_code == 2


def test_a_new_head_scores_nothing_until_it_is_fitted(tmp_path: Path) -> None:
    base, state = language_model(tmp_path), torch.get_rng_state()
    reward = new_reward_model(base, seed=0)
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    assert scores(reward, TEXTS).tolist() == [0.0] * len(TEXTS)
    assert reward.num_labels == 1


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("factor", [0.25, 2.0, 1 / 3, -1.0])
def test_rescaling_multiplies_every_score(tmp_path: Path, kind: Kind, factor: float) -> None:
    """By a power of two, or −1, to the last bit; else to the rounding of the head's own weights."""
    reward = load_reward_model(classifier(tmp_path, kind=kind))
    before = scores(reward, TEXTS)
    rescale(reward, factor)
    after = scores(reward, TEXTS)
    if factor == 1 / 3:
        torch.testing.assert_close(after, before * factor, atol=0, rtol=1e-5)
    else:
        assert torch.equal(after, before * factor)


def test_what_is_saved_scores_the_same_when_loaded(tmp_path: Path) -> None:
    reward = load_reward_model(classifier(tmp_path / "a"))
    rescale(reward, 0.3)
    save_reward_model(reward, tmp_path / "b")
    again = load_reward_model(str(tmp_path / "b"))
    assert torch.equal(scores(again, TEXTS), scores(reward, TEXTS))
    assert again.max_length == reward.max_length == CONTEXT


def test_a_lower_limit_is_saved_with_the_model(tmp_path: Path) -> None:
    reward = replace(load_reward_model(classifier(tmp_path / "a")), max_length=16)
    declared = reward.tokenizer.model_max_length
    save_reward_model(reward, tmp_path / "b")
    again = load_reward_model(str(tmp_path / "b"))
    assert again.max_length == 16
    assert reward.tokenizer.model_max_length == declared
    assert torch.equal(scores(again, TEXTS), scores(reward, TEXTS))
    assert encode(again, ["b" * 40]).num_truncated == 1


def test_a_fitted_model_reads_as_much_later_as_it_was_fitted_on(tmp_path: Path) -> None:
    """The scores of long texts are those of the ends that the fit kept of them."""
    pairs = [
        Pair(prompt=f"{i}", chosen_text=f"{i}" + "x" * 30 + "a", rejected_text=f"{i}" + "x" * 30 + "z")
        for i in range(16)
    ]  # fmt: skip
    settings = RewardTrainConfig(epochs=2, batch_size=8, lr=5e-3, max_length=12)
    *_, report = fit(language_model(tmp_path / "base"), pairs, tmp_path / "out", settings=settings)
    assert isinstance(report, FitReport)
    assert report.num_truncated == 32
    reward = load_reward_model(str(tmp_path / "out"))
    assert reward.max_length == 12
    long, kept = scores(reward, ["good " * 8 + "and the end", "and the end"])
    assert long == kept
    assert kept != scores(reward, ["d the end"])[0], "the model must read what is kept"
