"""Fitting a reward model: the loss, the plan, what is learned, and what is written."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from kleash.errors import ConfigError, InputError
from kleash.models.reward_model import new_reward_model
from kleash.rewards.scorers import load_scorer
from kleash.train.preferences import Pair
from kleash.train.reward_config import RewardFitConfig, RewardTrainConfig
from kleash.train.reward_fit import (
    FitStep,
    _optimizer,
    batches,
    fit,
    fit_reward_model,
    learning_rate,
    pair_loss,
)
from kleash.train.reward_report import FitReport, pair_figures

QUICK = RewardTrainConfig(epochs=3, batch_size=8, lr=5e-3, seed=1)


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A tiny causal language model over bytes, without a padding token, with random weights."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=48,
        tie_word_embeddings=True,
    )
    directory = tmp_path / "base"
    LlamaForCausalLM(config).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(
        directory
    )
    return str(directory)


def vowel_pairs(start: int, count: int) -> list[Pair]:
    """The text that ends with a is preferred to the one that ends with z."""
    return [
        Pair(prompt=f"{i} ", chosen_text=f"{i} " + "x" * (i % 7) + "a", rejected_text=f"{i} " + "x" * (i % 5) + "z")
        for i in range(start, start + count)
    ]  # fmt: skip


def test_normalised_scores_are_the_fitted_ones_with_unit_spread(base: str, tmp_path: Path) -> None:
    pairs, texts = vowel_pairs(0, 64), [("", p.chosen_text) for p in vowel_pairs(0, 64)]
    texts += [("", p.rejected_text) for p in pairs]
    scores, reports = {}, {}
    for normalize in (False, True):
        out = tmp_path / str(normalize)
        settings = QUICK.model_copy(update={"normalize": normalize})
        *_, report = fit(base, pairs, out, eval_pairs=vowel_pairs(500, 20), settings=settings)
        assert isinstance(report, FitReport)
        reports[normalize] = report
        scores[normalize] = torch.tensor(load_scorer(str(out)).score(*zip(*texts, strict=True)))
    assert float(scores[True].std()) == pytest.approx(1, abs=1e-5)
    assert reports[False].score_scale == 1
    scale = reports[True].score_scale
    torch.testing.assert_close(scores[True], scale * scores[False], rtol=1e-4, atol=1e-5)
    # What was measured was measured before, so that calibration keeps its meaning.
    assert reports[True].held_out == reports[False].held_out
    assert f"{scale:.4g} times" in (tmp_path / "True" / "README.md").read_text(encoding="utf-8")
    assert "times those" not in (tmp_path / "False" / "README.md").read_text(encoding="utf-8")


def test_scores_without_spread_are_not_normalised(base: str, tmp_path: Path) -> None:
    same = [Pair(prompt="a", chosen_text="a", rejected_text="a")]
    settings = QUICK.model_copy(update={"normalize": True})
    with pytest.raises(InputError, match="cannot be normalised"):
        list(fit(base, same, tmp_path / "out", settings=settings))


def test_it_learns_what_the_pairs_say_and_says_how_well(base: str, tmp_path: Path) -> None:
    out = tmp_path / "proxy"
    *steps, report = fit(
        base, vowel_pairs(0, 64), out, eval_pairs=vowel_pairs(500, 20), settings=QUICK
    )
    assert isinstance(report, FitReport)
    assert [s.step for s in steps if isinstance(s, FitStep)] == list(range(1, 25))
    assert isinstance(steps[0], FitStep)
    assert steps[0].loss == pytest.approx(math.log(2)), "it starts as a coin"
    assert report.steps == 24
    held_out = report.held_out
    assert held_out.accuracy == 1.0
    assert held_out.accuracy_low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)
    assert held_out.nll is not None
    assert held_out.nll < math.log(2)
    assert held_out.num_pairs == sum(b.num for b in held_out.reliability) == 20


def test_what_is_written_is_a_plain_directory_that_scores_the_same(
    base: str, tmp_path: Path
) -> None:
    out = tmp_path / "proxy"
    *_, report = fit(base, vowel_pairs(0, 32), out, eval_pairs=vowel_pairs(90, 4), settings=QUICK)
    assert isinstance(report, FitReport)
    written = {path.name for path in out.iterdir()}
    assert written >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert (model.config.num_labels, model.config.pad_token_id) == (1, 0)
    text = AutoTokenizer.from_pretrained(out)("7 xxa", return_tensors="pt")
    with torch.no_grad():
        expected = float(model(**text).logits)
    assert load_scorer(str(out)).score(["7 "], ["xxa"]) == pytest.approx([expected], abs=1e-5)

    metrics = json.loads((out / "metrics.json").read_text())
    whole = json.loads((out / "report.json").read_text())
    assert metrics["held_out_accuracy"] == whole["held_out"]["accuracy"] == report.held_out.accuracy
    assert len(whole["curve"]) == report.steps
    assert whole["settings"] == QUICK.model_dump()
    assert all(not isinstance(value, dict | list) for value in metrics.values())
    card = (out / "README.md").read_text()
    assert f"| held-out pairs | {report.held_out.num_pairs} |" in card


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_a_seed_gives_the_same_bits_twice_and_another_seed_others(
    base: str, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed)
        torch.rand(3)
        list(fit(base, vowel_pairs(0, 20), tmp_path / name, settings=RewardTrainConfig(seed=seed)))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")
    files = [(tmp_path / name / "metrics.json").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_the_trunk_is_a_copy_and_the_head_starts_at_zero(base: str) -> None:
    state = torch.get_rng_state()
    made = new_reward_model(base, seed=0).model.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    trunk = load_file(Path(base) / "model.safetensors")
    for key, value in trunk.items():
        assert torch.equal(made[key], value), key
    assert set(made) - set(trunk) == {"score.weight"}
    assert not made["score.weight"].any()


def test_without_held_out_pairs_nothing_is_measured(base: str, tmp_path: Path) -> None:
    *_, report = fit(base, vowel_pairs(0, 8), tmp_path / "out", settings=QUICK)
    assert isinstance(report, FitReport)
    held_out = report.held_out
    measured = (held_out.accuracy, held_out.nll, held_out.ece, held_out.margin_length_correlation)
    assert measured == (None, None, None, None)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["held_out_accuracy"] is None
    assert (
        "| expected calibration error | not measured |"
        in (tmp_path / "out" / "README.md").read_text()
    )


def test_figures_by_hand() -> None:
    # Margins 2, −1, 0; differences in length 4, 2, −3, around means of 1/3 and 1.
    scores = torch.tensor([3.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    figures = pair_figures(scores, torch.tensor([9, 5, 2, 5, 3, 5]), num_truncated=2)
    assert figures.accuracy == pytest.approx(0.5)
    assert figures.margin == pytest.approx(1 / 3)
    nll = [math.log1p(math.exp(-m)) for m in (2.0, -1.0, 0.0)]
    assert figures.nll == pytest.approx(sum(nll) / 3)
    # Confidences σ(2) right, σ(1) wrong, σ(0) a tie: |1 − .8808|, |0 − .7311|, |.5 − .5|.
    sigma = [1 / (1 + math.exp(-m)) for m in (2.0, 1.0)]
    assert figures.ece == pytest.approx((1 - sigma[0] + sigma[1]) / 3)
    assert figures.longer_is_chosen == pytest.approx(2 / 3)
    assert figures.margin_length_correlation == pytest.approx(15 / math.sqrt(42 * 26))
    assert figures.num_truncated == 2


def test_a_reward_for_length_shows_as_one() -> None:
    lengths = torch.tensor([9, 4, 6, 3, 8, 1])
    figures = pair_figures(0.5 * lengths, lengths)
    assert figures.score_length_correlation == pytest.approx(1.0)
    assert figures.margin_length_correlation == pytest.approx(1.0)
    assert figures.accuracy == figures.longer_is_chosen


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=9), st.floats(-5, 5))
def test_only_margins_matter_without_centring(margins: list[float], level: float) -> None:
    margin = torch.tensor(margins, dtype=torch.double)
    scores = torch.cat([level + margin, torch.full_like(margin, level)])
    expected = sum(math.log1p(math.exp(-m)) for m in margins) / len(margins)
    assert float(pair_loss(scores, 0.0)) == pytest.approx(expected, abs=1e-9)
    assert float(pair_loss(scores, 0.1)) >= float(pair_loss(scores, 0.0)) - 1e-12


@given(st.integers(1, 60), st.floats(0, 0.9))
def test_the_learning_rate_rises_then_falls_and_is_never_zero(steps: int, warmup: float) -> None:
    settings = RewardTrainConfig(lr=0.5, warmup_fraction=warmup)
    rates = [learning_rate(step, steps, settings) for step in range(1, steps + 1)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0.0 < min(rates) <= max(rates) <= 0.5


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_item_once(lengths: list[int], size: int, seed: int) -> None:
    plans = [batches(lengths, size, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert plans[0] == plans[1]
    assert sorted(i for batch in plans[0] for i in batch) == list(range(len(lengths)))
    assert len(plans[0]) == math.ceil(len(lengths) / size)
    assert all(len(batch) <= size for batch in plans[0])


def test_batches_save_most_of_the_padding() -> None:
    lengths = [i * 7919 % 97 + 1 for i in range(512)]
    plan = batches(lengths, 16, torch.Generator().manual_seed(0))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in plan)
    assert padded < 1.1 * sum(lengths)


def test_matrices_decay_and_norms_and_biases_do_not(base: str) -> None:
    """One step on a gradient of 0 is decay alone: W ← (1 − lr · decay) W."""
    model = new_reward_model(base, seed=0).model
    model.bias = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    settings = RewardTrainConfig(lr=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    _optimizer(model, settings).step()
    norms = {name for name in before if "norm" in name}
    assert len(norms) == 3
    for name, parameter in model.named_parameters():
        kept = 1.0 if name in norms | {"bias"} else 0.95
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


def test_nothing_is_overwritten_and_nothing_is_fitted_on_nothing(base: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("")
    with pytest.raises(InputError, match="already there"):
        fit(base, vowel_pairs(0, 2), tmp_path / "full")
    with pytest.raises(InputError, match="no pairs"):
        fit(base, [], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_fit_that_diverges_says_so(base: str, tmp_path: Path) -> None:
    settings = RewardTrainConfig(epochs=40, lr=1e30, warmup_fraction=0.0)
    with pytest.raises(ConfigError, match="diverged"):
        list(fit(base, vowel_pairs(0, 8), tmp_path / "out", settings=settings))
    assert not (tmp_path / "out").exists()


def test_a_configuration_is_fitted_as_its_parts_are(base: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen_text[len(p.prompt) :], "rejected": p.rejected_text[len(p.prompt) :]}
        for p in vowel_pairs(0, 40)
    ]  # fmt: skip
    rows.append({"prompt": "0 ", "chosen": "same", "rejected": "same"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RewardFitConfig.model_validate(
        {
            "model": {"base": base},
            "data": {"pairs": str(path), "eval_fraction": 0.2},
            "train": QUICK,
        }
    )
    *_, report = fit_reward_model(config, tmp_path / "out")
    assert isinstance(report, FitReport)
    assert (report.num_pairs, report.held_out.num_pairs, report.num_identical) == (32, 8, 1)


@pytest.mark.parametrize(
    "data",
    [
        {"pairs": "p", "evaluation": "q"},
        {"pairs": "p", "eval_pairs": "q", "eval_fraction": 0.2},
        {"pairs": "p", "eval_fraction": 1.0},
        {},
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RewardFitConfig.model_validate({"data": data})
