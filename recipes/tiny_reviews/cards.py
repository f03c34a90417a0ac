"""Writes the model cards, with the figures of this build in them."""

from pathlib import Path

from language_model import SHARPNESS

SOURCES = """\
## Data

- single review sentences: Bo Pang and Lillian Lee, "Seeing stars: Exploiting class relationships
  for sentiment categorization with respect to rating scales", ACL 2005 (Sentence Polarity Dataset
  v1.0, NLTK corpus `sentence_polarity`);
- whole reviews: Bo Pang and Lillian Lee, "A sentimental education: Sentiment analysis using
  subjectivity summarization based on minimum cuts", ACL 2004 (Polarity Dataset v2.0, NLTK corpus
  `movie_reviews`).

Both are distributed under CC BY 4.0; these weights are adapted from them. Not trained on: every
single sentence whose number in its id ends in 7, every whole review whose cv number does, and any
training sentence that equals a held-out one up to spacing and punctuation.

## How it was made

`recipes/tiny_reviews/build.py` in the kleash repository made it, from random weights, with seed
{seed}. The weights are stored in float16 and load in float32; the figures are
those of the stored weights on the {sentences_measured:,} held-out single sentences.
"""

BASE = """\
---
license: cc-by-4.0
language: en
pipeline_tag: text-generation
---

# tiny-reviews/base

A language model of {parameters[base]:,} parameters that writes single sentences of film reviews,
lower-case and tokenised by spaces, as `<bos> sentence <eos>`. It is a starting policy and a
reference for RLHF on a laptop: small enough that exact KL divergences cost nothing.

| held-out figure | |
|---|---|
| perplexity per token (`<eos>` predicted and counted, `<bos>` not) | {base[perplexity]:.1f} |
| bits per character (`<eos>` counted in the bits, not in the characters) \
| {base[bits_per_character]:.3f} |

Ten samples at temperature 1, unselected:

{samples}

{sources}
The last norm is multiplied by {sharpness}: what is sampled at temperature 1 is what the trained
model gave at {softness:g}. It invents fewer words so, and its perplexity is higher.

## Limits

It knows nothing but reviews of films before 2005, invents words and names, and says offensive
things where its data do. English, lower-case only; 128 tokens at most. For demonstration, tests
and study; not for use on people.
"""

GOLD = """\
---
license: cc-by-4.0
language: en
pipeline_tag: text-classification
---

# tiny-reviews/gold

A reward model of {parameters[gold]:,} parameters: how positive a sentence of a film review is,
learnt from human labels. The score is a log-odds, so above 0 means positive. In kleash's
overoptimisation runs it stands for the true preference that a proxy only approximates.

**Convention**: score what the plain tokenizer call gives, `<bos> text` with **no** `<eos>`; the
score is read at the last real token, padding on either side. It was trained at every position, so
a beginning of a sentence has a graded score too.

| held-out figure | |
|---|---|
| accuracy | {gold[accuracy]:.3f} |
| logistic loss | {gold[log_loss]:.3f} |
| expected calibration error (15 equal bins) | {gold[calibration_error]:.3f} |
| accuracy on the first half of the words | {gold_on_first_halves[accuracy]:.3f} |
| scores of human sentences, mean and standard deviation \
| {gold_scores_of_human_sentences[mean]:.2f}, {gold_scores_of_human_sentences[std]:.2f} |
| scores of samples of `tiny-reviews/base` \
| {gold_scores_of_base_samples[mean]:.2f}, {gold_scores_of_base_samples[std]:.2f} |

{sources}
The trunk starts from `tiny-reviews/base`. The human labels of single sentences are joined by soft
labels for the sentences of whole reviews, from an n-gram classifier trained on the same texts.
Sentences that were shuffled, patched together or sent into loops were learnt with a low score, so
that it knows nonsense for what it is; whole sentences score a little high in return.

## Limits

One sentence in five is judged wrongly, irony and comparisons more often. It is a small model and
easily fooled by text far from its data, which is what it is here to show. English, lower-case,
tokenised by spaces; 128 tokens at most. Not for use on people.
"""


def write_cards(directory: Path, figures: dict) -> None:
    """Writes README.md beside each model."""
    sources = SOURCES.format(**figures)
    sharpened = {"sharpness": SHARPNESS, "softness": 1 / SHARPNESS}
    samples = "\n".join(f"> {text}\n>" for text in figures["base_samples"]).removesuffix("\n>")
    for name, card in (("base", BASE), ("gold", GOLD)):
        text = card.format(**figures, **sharpened, sources=sources, samples=samples)
        (directory / name / "README.md").write_text(text, encoding="utf-8")
