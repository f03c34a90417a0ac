"""The recipe keeps its hands off the held-out tenth, and the shipped assets hold what it says."""

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tiny_reviews"
ASSETS = ROOT / "src" / "kleash" / "models" / "assets" / "tiny-reviews"
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}


def recipe_module(name: str) -> ModuleType:
    """Loads a module of the recipe, which is a folder of scripts and not a package."""
    spec = importlib.util.spec_from_file_location(f"tiny_reviews_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


data = recipe_module("data")
nonsense = recipe_module("nonsense")
SENTENCES = [
    "A fine film .",
    "a fine film",
    "a  dull , dull film !",
    "so it goes .",
    "what a mess .",
]


def texts(kind: str, numbers: list[int], words: list[str]) -> list:
    """Texts with the numbers given, in the ids of either corpus."""
    return [
        data.Text(f"{kind}{n:04d}", word, n % 2 == 0)
        for n, word in zip(numbers, words, strict=False)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(ASSETS / "base")


@pytest.mark.parametrize(
    ("text_id", "held_out"),
    [
        ("rt-pos-0007", True),
        ("rt-neg-5327", True),
        ("rt-neg-0070", False),
        ("cv017_23487", True),
        ("cv001_18437", False),
    ],
)
def test_the_last_digit_of_the_number_decides(text_id: str, held_out: bool) -> None:
    assert data.is_held_out(text_id) is held_out


def test_an_unknown_id_is_refused() -> None:
    with pytest.raises(ValueError, match="not an id of either corpus"):
        data.number("imdb-12")


@given(
    st.lists(st.sampled_from(SENTENCES), max_size=40),
    st.lists(st.lists(st.sampled_from(SENTENCES), max_size=5), max_size=20),
    st.booleans(),
)
def test_no_held_out_text_is_trained_on_and_none_twice(
    lines: list[str], reviews: list[list[str]], tuning: bool
) -> None:
    sentences = texts("rt-pos-", list(range(len(lines))), lines)
    whole = texts("cv", list(range(len(reviews))), ["\n".join(r) for r in reviews])
    corpus = data.split(sentences, whole, tuning)
    hidden = {data.normalise(t.text) for t in sentences if data.is_held_out(t.id)}
    hidden |= {data.normalise(t.text) for t in corpus.measured}
    for part in (corpus.sentences, corpus.from_reviews):
        forms = [data.normalise(t.text) for t in part]
        assert hidden.isdisjoint(forms)
        assert len(set(forms)) == len(forms)
        assert not any(data.is_held_out(t.id) for t in part)


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=12), min_size=1, max_size=8),
    st.integers(0, 10_000),
)
def test_a_broken_text_is_as_long_and_broken_as_far_as_it_says(
    rows: list[list[int]], seed: int
) -> None:
    positive = [i % 2 == 0 for i in range(len(rows))]
    broken = nonsense.break_texts(rows, positive, Random(seed))
    assert broken == nonsense.break_texts(rows, positive, Random(seed))
    assert [b.source for b in broken] == [i for i, row in enumerate(rows) if len(row) > 1]
    known = {token for row in rows for token in row}
    for b in broken:
        source = rows[b.source]
        changed = sum(x != y for x, y in zip(source, b.text, strict=True))
        assert changed <= round(b.share * len(source))
        assert nonsense.SMALLEST_SHARE <= b.share <= 1
        assert set(b.text) <= known


@given(st.text())
def test_the_tokenizer_gives_any_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    if any(token in text for token in tokenizer.all_special_tokens):
        return
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_tokenizer_is_as_promised(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 4096
    assert tokenizer.padding_side == "left"
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"]) == [0, 1, 2]
    other = AutoTokenizer.from_pretrained(ASSETS / "gold")
    assert other.get_vocab() == tokenizer.get_vocab()


def test_the_assets_are_small_and_plain() -> None:
    for name in ("base", "gold"):
        present = {path.name for path in (ASSETS / name).iterdir()}
        assert present >= FILES
        assert {Path(n).suffix for n in present} <= {".json", ".safetensors", ".md"}
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size <= 20_000_000


def test_the_figures_meet_the_goals() -> None:
    figures = json.loads((ASSETS / "figures.json").read_text(encoding="utf-8"))
    assert figures["tuning"] is False
    assert figures["sentences_measured"] == 1066
    assert figures["base"]["perplexity"] <= 130
    assert figures["gold"]["accuracy"] >= 0.76


def test_the_models_load_in_float32_and_judge_plain_cases(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "base")
    gold = AutoModelForSequenceClassification.from_pretrained(ASSETS / "gold").eval()
    for model in (base, gold):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert 3e6 <= model.num_parameters() <= 5e6
    texts = ["a funny , moving and beautiful film .", "a dull , stupid and boring mess ."]
    with torch.no_grad():
        scores = gold(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    assert scores[0] > 1
    assert scores[1] < -1


def test_the_prompts_are_openings() -> None:
    prompts = (ASSETS / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(prompts) == len(set(prompts)) == 96
    for prompt in prompts:
        assert prompt == " ".join(prompt.lower().split())
        assert 2 <= len(prompt.split()) <= 6


BUILD = """
import sys; sys.path.insert(0, {recipe!r})
import build, gold, language_model
from pathlib import Path
build.SAMPLES, build.THREADS = 4, 1
gold.COPIES, gold.NONSENSE_ROUNDS = 1, (1, 1)
gold.FOLDS, language_model.GENERAL_PASSES, language_model.SPECIAL_PASSES = 2, 1, 2
build.build(Path({data!r}), Path({out!r}), 0, tuning=False, keep_base=False)
"""


@pytest.mark.long
def test_the_same_seed_builds_the_same_bytes(tmp_path: Path) -> None:
    """The whole recipe, twice, on corpora of a few hundred sentences in the format of the real ones."""
    rng, words = Random(0), [f"w{i}" for i in range(300)]

    def line() -> str:
        return " ".join(rng.choices(words, k=rng.randint(4, 12)))

    sentences = [
        {"id": f"rt-{label}-{i:04d}", "text": line(), "label": label}
        for label in ("pos", "neg")
        for i in range(100)
    ]
    reviews = [
        {"id": f"cv{i:03d}_1", "text": "\n".join(line() for _ in range(5)), "label": label}
        for i, label in enumerate(["pos", "neg"] * 10)
    ]
    for name, rows in (("review_sentences", sentences), ("reviews", reviews)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    for out in ("a", "b"):
        code = BUILD.format(recipe=str(RECIPE), data=str(tmp_path), out=str(tmp_path / out))
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    files = [
        path.relative_to(tmp_path / "a")
        for path in (tmp_path / "a").rglob("*")
        if path.is_file() and path.name != "README.md" and path.name != "figures.json"
    ]
    assert any(path.name == "model.safetensors" for path in files)
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
