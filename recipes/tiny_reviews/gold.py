"""Trains and measures the gold reward model.

A text is scored as the plain tokenizer call gives it, `<bos> text` without `<eos>`, at its last
token. The loss looks at every position, so that the beginning of a sentence has a score too.
"""

from random import Random
from typing import NamedTuple

import numpy as np
import torch
from data import Text, number
from language_model import new_config
from nonsense import Broken, break_texts
from teacher import fit_teacher
from torch import Tensor
from torch.nn import functional
from training import BOS_ID, PAD_ID, add_dropout, batches, make_optimizers, pad, schedule, train
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

BATCH_TOKENS = 4096
MATRIX_LR = 0.005
OTHER_LR = 5e-4
WEIGHT_DECAY = 0.1
DROPOUT = 0.2
COPIES = 3  # of each single sentence in either round
SECOND_RATE = 0.6
SHARPEN = 1.2  # an average of two log-odds is less sure than both together should be
TRUST = 0.7  # in a human label, the rest in the teacher: the labels are noisy, and this calibrates
DENSE = 0.5  # of the mean loss over all positions, beside the loss at the last
NONSENSE_LOG_ODDS = -5.0  # of a text that is broken throughout
NONSENSE_ROUNDS = (1, 2)  # how often each sentence comes broken, in words and in tokens, by round

FOLDS = 5
REVIEW_WEIGHT = 0.2  # of a sentence of a whole review, next to one with a label of its own
REVIEW_LOG_ODDS = 0.6  # how far the label of a review speaks for each sentence in it


def soft_labels(sentences: list[Text], from_reviews: list[Text]) -> Tensor:
    """What the n-gram teacher makes of each training text when it has not seen its fold.

    Args:
        sentences: Single sentences with labels of their own.
        from_reviews: Sentences with the label of their review.

    Returns:
        Log-odds that each is positive, `sentences` first. Reviews are kept whole in the folds.
    """
    texts = [*sentences, *from_reviews]
    words = [t.text for t in texts]
    targets = np.array([float(t.positive) for t in texts])
    weights = np.array([1.0] * len(sentences) + [REVIEW_WEIGHT] * len(from_reviews))
    # The tens: the last digit decides what is held out, and is uneven here.
    folds = np.array([number(t.id) // 10 % FOLDS for t in texts])
    scores = np.zeros(len(texts))
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        teacher = fit_teacher([words[i] for i in seen], targets[seen], weights[seen])
        scores[unseen] = teacher([words[i] for i in unseen])
    return torch.tensor(scores, dtype=torch.float32)


def scores_everywhere(model: LlamaForSequenceClassification, ids: Tensor) -> Tensor:
    """The score at every position of right-padded rows."""
    return model.score(model.model(input_ids=ids, use_cache=False).last_hidden_state)[..., 0]


class Examples(NamedTuple):
    """Texts to learn from."""

    rows: list[list[int]]
    targets: Tensor  # probability that each is positive
    starts: Tensor  # the position from which on its score has to be that


def whole(rows: list[list[int]], targets: Tensor) -> Examples:
    """Examples whose every beginning is as positive as they are."""
    return Examples(rows, targets, torch.zeros(len(rows), dtype=torch.long))


def join(parts: list[Examples]) -> Examples:
    """All examples of all parts."""
    rows = [row for part in parts for row in part.rows]
    targets, starts = (torch.cat(x) for x in list(zip(*parts, strict=True))[1:])
    return Examples(rows, targets, starts)


def nonsense(
    tokenizer: PreTrainedTokenizerFast, sentences: list[Text], targets: Tensor, rng: Random
) -> Examples:
    """Every sentence broken twice: in its words, and in its tokens.

    The target is between the sentence's own log-odds and those of nonsense, by the broken share.
    """
    texts = [t.text for t in sentences]
    positive = [t.positive for t in sentences]
    words = break_texts([text.split() for text in texts], positive, rng)
    pieces = break_texts([row[1:] for row in tokenizer(texts)["input_ids"]], positive, rng)
    rows = tokenizer([" ".join(b.text) for b in words], truncation=True)["input_ids"]
    rows += [[BOS_ID, *b.text][: tokenizer.model_max_length] for b in pieces]
    every: list[Broken] = [*words, *pieces]
    share = torch.tensor([b.share for b in every])
    own = targets[[b.source for b in every]].logit()
    # A break may come late: the first half of a broken text is not judged.
    starts = torch.tensor([len(row) // 2 for row in rows])
    return Examples(rows, torch.lerp(own, torch.tensor(NONSENSE_LOG_ODDS), share).sigmoid(), starts)


def sentiment_loss(scores: Tensor, ids: Tensor, targets: Tensor, starts: Tensor) -> Tensor:
    """The logistic loss at the last token, plus a share of its mean over the judged tokens."""
    real = ids != PAD_ID
    losses = functional.binary_cross_entropy_with_logits(
        scores, targets[:, None].expand_as(scores), reduction="none"
    )
    last = losses.gather(1, real.sum(1, keepdim=True) - 1)[:, 0]
    judged = (real & (torch.arange(ids.size(1)) >= starts[:, None])).float()
    return (last + DENSE * (losses * judged).sum(1) / judged.sum(1)).mean()


def new_gold(base: LlamaForCausalLM, seed: int) -> LlamaForSequenceClassification:
    """A reward model on the trunk of `base`, its head still random."""
    torch.manual_seed(seed)
    config = new_config()
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    model.set_attn_implementation("eager")
    model.model.load_state_dict(base.model.state_dict())
    torch.nn.init.normal_(model.score.weight, std=0.02)
    return model


def fit(
    model: LlamaForSequenceClassification,
    examples: Examples,
    steps: list[list[int]],
    rate: float,
    name: str,
) -> None:
    """Trains on the batches `steps`, at `rate` times the full learning rates."""

    def loss_of(batch: list[int]) -> Tensor:
        ids = pad([examples.rows[i] for i in batch])
        scores = scores_everywhere(model, ids)
        return sentiment_loss(scores, ids, examples.targets[batch], examples.starts[batch])

    optimizers = make_optimizers(model, rate * MATRIX_LR, rate * OTHER_LR, WEIGHT_DECAY)
    undo = add_dropout(model.model, DROPOUT)
    train(model, steps, loss_of, optimizers, lambda s: schedule(s, len(steps), 30), name)
    undo()


def train_gold(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sentences: list[Text],
    from_reviews: list[Text],
    seed: int,
) -> LlamaForSequenceClassification:
    """Trains the gold model in two rounds.

    The first learns from the n-gram teacher and from the human labels. The second learns from
    what teacher and first round say together of the sentences of whole reviews, for the two
    err differently, and again from the human labels. In both, broken sentences score low.

    Args:
        base: The language model whose trunk it starts from.
        tokenizer: The tokenizer of `base`.
        sentences: Single sentences with labels of their own.
        from_reviews: Sentences with the label of their review.
        seed: Draws the head, the order, the dropout and the nonsense.

    Returns:
        The trained model; a score above 0 means positive.
    """
    model = new_gold(base, seed)
    generator = torch.Generator().manual_seed(seed)
    rng = Random(seed)

    def learn(parts: list[Examples], rate: float, name: str) -> None:
        examples = join(parts)
        lengths = [len(row) for row in examples.rows]
        fit(model, examples, list(batches(lengths, BATCH_TOKENS, generator)), rate, name)

    rows = tokenizer([t.text for t in [*sentences, *from_reviews]], truncation=True)["input_ids"]
    count = len(sentences)
    odds = soft_labels(sentences, from_reviews)
    labels = torch.tensor([float(t.positive) for t in sentences])
    own = whole(rows[:count], TRUST * labels + (1 - TRUST) * odds[:count].sigmoid())
    sign = torch.tensor([2.0 * t.positive - 1 for t in from_reviews])
    noisy = odds[count:] + REVIEW_LOG_ODDS * sign

    def broken(times: int) -> list[Examples]:
        return [nonsense(tokenizer, sentences, own.targets, rng) for _ in range(times)]

    first, second = NONSENSE_ROUNDS
    # Half of the reviews' sentences are enough to start with: the second round takes them all.
    half = whole(rows[count::2], noisy[::2].sigmoid())
    learn([half, *[own] * COPIES, *broken(first)], 1.0, "gold, first round")

    agreed = (score(model, tokenizer, [t.text for t in from_reviews]) + noisy) / 2
    reviews = whole(rows[count:], (SHARPEN * agreed).sigmoid())
    learn([reviews, *[own] * COPIES, *broken(second)], SECOND_RATE, "gold, second round")
    return model


@torch.no_grad()
def score(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
) -> Tensor:
    """Scores texts as a user would: the plain tokenizer call, padded on the left."""
    scores = torch.zeros(len(texts))
    # By length, or padding would be most of the work.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), 128):
        chosen = order[start : start + 128]
        inputs = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, return_tensors="pt"
        )
        scores[chosen] = model(**inputs).logits[:, 0]
    return scores


def measure_gold(scores: Tensor, positive: Tensor, bins: int = 15) -> dict[str, float]:
    """Accuracy, logistic loss and expected calibration error (equal-width bins)."""
    probabilities = scores.sigmoid()
    bin_of = (probabilities * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in range(bins):
        inside = bin_of == b
        if inside.any():
            gap = probabilities[inside].mean() - positive[inside].float().mean()
            error += gap.abs().item() * inside.float().mean().item()
    return {
        "accuracy": ((scores > 0) == positive).float().mean().item(),
        "log_loss": functional.binary_cross_entropy_with_logits(scores, positive.float()).item(),
        "calibration_error": error,
    }
