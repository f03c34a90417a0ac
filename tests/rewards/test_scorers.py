"""Functions and classifiers as scorers."""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from kleash.errors import ConfigError, InputError, RewardError
from kleash.models.reward_model import encode, load_reward_model
from kleash.rewards.scorers import function_scorer, load_scorer

TEXTS = ["a", "the film is good", "b" * 50, "no", "a longer text, with é and 漢", "the end"] * 3

Classifier = Callable[..., str]


def logits_one_by_one(directory: str, texts: list[str]) -> torch.Tensor:
    """The slow twin: plain transformers, one text at a time, nothing padded."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_score_does_not_depend_on_its_batch(
    classifier: Classifier, kind: str, batch_size: int
) -> None:
    directory = classifier(1, kind=kind)
    expected = logits_one_by_one(directory, TEXTS)[:, 0]
    assert expected.unique().numel() == 6, "the twin must tell the texts apart"
    scores = load_scorer(directory, batch_size=batch_size).score([""] * len(TEXTS), TEXTS)
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)


def test_two_labels_give_the_log_odds_of_the_second(classifier: Classifier) -> None:
    directory = classifier(2)
    odds = logits_one_by_one(directory, TEXTS).softmax(1)
    score = load_scorer(directory).score([""] * len(TEXTS), TEXTS)
    assert score == pytest.approx((odds[:, 1] / odds[:, 0]).log().tolist(), abs=1e-4)
    first = load_scorer(directory, label="label-0").score([""] * len(TEXTS), TEXTS)
    assert first == pytest.approx([-x for x in score], abs=1e-5)


def test_more_labels_give_the_log_odds_of_one(classifier: Classifier) -> None:
    directory = classifier(3)
    p = logits_one_by_one(directory, TEXTS).softmax(1)[:, 2]
    by_name, by_index = (
        load_scorer(directory, label=label).score([""] * len(TEXTS), TEXTS)
        for label in ("label-2", 2)
    )
    assert by_name == by_index
    assert by_name == pytest.approx((p / (1 - p)).log().tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("num_labels", "label"), [(3, None), (3, "label-9"), (3, 3), (3, True), (2, "x"), (1, 0)]
)
def test_a_label_that_does_not_fit_is_refused(
    classifier: Classifier, num_labels: int, label: str | int | None
) -> None:
    with pytest.raises(ConfigError, match=r"label"):
        load_scorer(classifier(num_labels), label=label)


def test_prompt_and_response_are_scored_as_one_text(classifier: Classifier) -> None:
    scorer = load_scorer(classifier())
    assert scorer.score(["the film", ""], [" is good", "the film is good"]) == pytest.approx(
        scorer.score(["the film is", "the film is good"], [" good", ""]), abs=1e-6
    )
    assert scorer.score([], []) == []
    assert math.isfinite(scorer.score([""], [""])[0])


def test_a_long_text_loses_its_beginning_and_says_so_once(
    classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = load_scorer(classifier(context=16))
    with caplog.at_level(logging.WARNING):
        long, other = scorer.score(["x" * 40, "y" * 99], [" the very end of it"] * 2)
        scorer.score(["x" * 40], ["again"])
    assert long == pytest.approx(other, abs=1e-6)
    assert long == pytest.approx(scorer.score([""], [" the very end of it"[-15:]])[0], abs=1e-6)
    assert [record.getMessage()[:10] for record in caplog.records] == ["2 of 2 tex"]


def test_truncation_keeps_special_tokens_and_the_end(classifier: Classifier) -> None:
    reward = load_reward_model(classifier(context=8))
    ids, lengths = encode(reward, ["abcdefghij", "abc"])
    assert (lengths, [len(row) for row in ids]) == ([11, 4], [8, 4])
    assert reward.tokenizer.decode(ids[0]) == "<bos>defghij"
    assert encode(reward, ["abcdefghij"], max_length=3).ids == [ids[0][:1] + ids[0][-2:]]


def test_a_beginning_written_by_a_template_is_not_doubled(classifier: Classifier) -> None:
    reward = load_reward_model(classifier())
    assert encode(reward, ["<bos>abc"]).ids == encode(reward, ["abc"]).ids


def test_a_language_model_without_a_head_is_no_reward_model(
    classifier: Classifier, tmp_path: Path
) -> None:
    directory = classifier()
    shape = LlamaConfig(vocab_size=259, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(shape).save_pretrained(directory)
    with pytest.raises(InputError, match="no trained classification head") as error:
        load_scorer(directory)
    assert "score.weight" in error.value.got


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/nowhere-at-all"])
def test_a_missing_directory_says_so(name: str) -> None:
    with pytest.raises(InputError, match="no model directory") as error:
        load_scorer(name)
    assert error.value.exit_code == 2
    assert "tiny-reviews/gold" in error.value.do


def test_a_misspelt_embedded_name_is_offered_the_right_one() -> None:
    with pytest.raises(InputError, match="cannot load") as error:
        load_scorer("tiny-review/golden")
    assert error.value.do == "did you mean 'tiny-reviews/gold'?"


def test_broken_weights_say_so(classifier: Classifier) -> None:
    directory = Path(classifier())
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot load"):
        load_scorer(str(directory))


def test_pickled_weights_are_not_read(classifier: Classifier) -> None:
    directory = Path(classifier())
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load"):
        load_scorer(str(directory))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_of_the_current_directory(here: Path) -> None:
    (here / "my_rewards.py").write_text(
        "def words(prompts, responses):\n    return [len(r.split()) for r in responses]\n"
    )
    scorer = load_scorer("my_rewards:words")
    assert scorer.name == "my_rewards:words"
    assert scorer.score(["p", "q"], ["a b", "c"]) == [2.0, 1.0]
    assert os.getcwd() not in sys.path


@pytest.mark.parametrize(
    ("code", "spec", "says"),
    [
        ("", "no_such_module:f", "no_such_module"),
        ("def words(p, r): ...", "bad:word", "did you mean 'words'?"),
        ("words = 3", "bad:words", "int"),
        ("1/0", "bad:words", "ZeroDivisionError"),
        ("def (", "bad:words", "SyntaxError"),
        ("raise SystemExit(0)", "bad:words", "SystemExit"),
    ],
)
def test_a_function_that_cannot_be_had_is_a_config_error(
    here: Path, code: str, spec: str, says: str
) -> None:
    (here / "bad.py").write_text(code + "\n")
    with pytest.raises(ConfigError) as error:
        load_scorer(spec)
    assert says in str(error.value)
    assert error.value.exit_code == 2


def test_a_label_for_a_function_is_refused(here: Path) -> None:
    (here / "fine.py").write_text("def f(p, r): return [0.0] * len(r)\n")
    with pytest.raises(ConfigError, match="label"):
        load_scorer("fine:f", label=1)


@pytest.mark.parametrize("exception", [ValueError("wrong \x1b[31m"), SystemExit(3), KeyError("k")])
def test_a_function_that_raises_is_a_reward_error(exception: BaseException) -> None:
    def broken(prompts: list[str], responses: list[str]) -> list[float]:
        raise exception

    with pytest.raises(RewardError) as error:
        function_scorer("mine:broken", broken).score(["p"], ["r"])
    assert error.value.__cause__ is exception
    assert type(exception).__name__ in error.value.what
    assert "test_scorers.py:" in error.value.got
    assert "in broken" in error.value.got
    assert str(error.value).isprintable()


def test_what_a_function_prints_stays_off_stdout(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "chatty.py").write_text(
        "print('importing')\n"
        "def listed(prompts, responses):\n    print('listing')\n    return [0.0] * len(responses)\n"
        "def drawn(prompts, responses):\n    for r in responses:\n        print('drawing')\n        yield 1.0\n"
    )
    assert load_scorer("chatty:listed").score(["p"], ["r"]) == [0.0]
    assert load_scorer("chatty:drawn").score(["p"], ["r"]) == [1.0]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split() == ["importing", "listing", "drawing"]


def test_a_generator_that_raises_is_a_reward_error() -> None:
    def broken(prompts: list[str], responses: list[str]) -> Iterator[float]:
        yield 1 / 0

    with pytest.raises(RewardError, match="raised ZeroDivisionError"):
        function_scorer("mine:broken", broken).score(["p"], ["r"])


def test_a_function_cannot_change_what_it_scores() -> None:
    def greedy(prompts: list[str], responses: list[str]) -> list[float]:
        scores = [float(len(r)) for r in responses]
        responses.clear()
        return scores

    responses = ["a", "bb"]
    assert function_scorer("greedy", greedy).score(["", ""], responses) == [1.0, 2.0]
    assert responses == ["a", "bb"]
