"""Reads the two review corpora and splits them.

Sources: Pang & Lee (2005), 10,662 single review sentences, and Pang & Lee (2004), 2,000 whole
reviews; both CC BY 4.0, both lower-case and tokenised by spaces, both with human labels.
"""

import gzip
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

HELD_OUT_DIGIT = 7
TUNING_DIGIT = 3
SHORTEST = 3  # words; what is shorter in a whole review is a heading or a remnant

_NUMBER = re.compile(r"(?:rt-(?:pos|neg)-|cv)(\d+)")
_NOT_WORD = re.compile(r"[^a-z0-9]+")


class Text(NamedTuple):
    """One labelled text: a sentence, or a whole review."""

    id: str
    text: str
    positive: bool


class Corpus(NamedTuple):
    """What the recipe trains on and what it measures on; no text is in both."""

    sentences: list[Text]
    from_reviews: list[Text]
    measured: list[Text]


def normalise(text: str) -> str:
    """Reduces a text to its words, so that spacing and punctuation cannot hide a duplicate."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def number(text_id: str) -> int:
    """The number inside an id: 17 for `rt-pos-0017`, 29 for `cv029_19943`."""
    match = _NUMBER.match(text_id)
    if match is None:
        raise ValueError(f"not an id of either corpus: {text_id!r}")
    return int(match.group(1))


def is_held_out(text_id: str, digit: int = HELD_OUT_DIGIT) -> bool:
    """Whether a text belongs to the held-out tenth: its number ends in `digit`."""
    return number(text_id) % 10 == digit


def deduplicate(texts: Iterable[Text], taken: Collection[str] = ()) -> list[Text]:
    """Keeps the first text of each normalised form, and none whose form is in `taken`."""
    seen = set(taken)
    kept = []
    for text in texts:
        form = normalise(text.text)
        if form and form not in seen:
            seen.add(form)
            kept.append(text)
    return kept


def split_review(text: str) -> list[str]:
    """The sentences of a whole review; the corpus puts one on a line."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def split(sentences: list[Text], reviews: list[Text], tuning: bool = False) -> Corpus:
    """Splits both corpora by the last digit of their numbers.

    Args:
        sentences: The single sentences.
        reviews: The whole reviews.
        tuning: Measure on the tuning tenth and leave the held-out tenth untouched, instead of
            training on the tuning tenth and measuring on the held-out one.

    Returns:
        Training texts free of duplicates, of the held-out tenth and of its duplicates (single
        sentences, and sentences of whole reviews with the label of their review), and the
        sentences to measure on.
    """
    hidden = {HELD_OUT_DIGIT, TUNING_DIGIT} if tuning else {HELD_OUT_DIGIT}
    measured_digit = TUNING_DIGIT if tuning else HELD_OUT_DIGIT
    taken = {normalise(t.text) for t in sentences if number(t.id) % 10 in hidden}
    train = [t for t in sentences if number(t.id) % 10 not in hidden]
    parts = [
        Text(review.id, line, review.positive)
        for review in reviews
        if not is_held_out(review.id)
        for line in split_review(review.text)
        if len(line.split()) >= SHORTEST
    ]
    return Corpus(
        sentences=deduplicate(train, taken),
        from_reviews=deduplicate(parts, taken),
        measured=[t for t in sentences if is_held_out(t.id, measured_digit)],
    )


def load(directory: Path | None) -> tuple[list[Text], list[Text]]:
    """Reads (sentences, reviews) from a directory of gzipped JSON lines, or through NLTK."""
    if directory is None:
        return _load_nltk()
    names = ("review_sentences.jsonl.gz", "reviews.jsonl.gz")
    sentences, reviews = (_read_jsonl(directory / name) for name in names)
    return sentences, reviews


def _read_jsonl(path: Path) -> list[Text]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Text(row["id"], row["text"].strip(), row["label"] == "pos") for row in rows]


def _load_nltk() -> tuple[list[Text], list[Text]]:
    import nltk
    from nltk.corpus import movie_reviews, sentence_polarity

    for name in ("sentence_polarity", "movie_reviews"):
        nltk.download(name, quiet=True)
    sentences = []
    for label in ("pos", "neg"):
        lines = sentence_polarity.raw(f"rt-polarity.{label}").split("\n")
        texts = [line.strip() for line in lines if line.strip()]
        sentences += [Text(f"rt-{label}-{i:04d}", t, label == "pos") for i, t in enumerate(texts)]
    reviews = [
        Text(Path(name).stem, movie_reviews.raw(name).strip(), name.startswith("pos/"))
        for name in movie_reviews.fileids()
    ]
    return sentences, reviews
