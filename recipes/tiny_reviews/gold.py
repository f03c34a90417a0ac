"""Trains and measures the gold reward model.

A text is scored as the plain tokenizer call gives it, `<bos> text` without `<eos>`, at its last
token. The loss looks at every position, so that the beginning of a sentence has a score too.
"""

import numpy as np
import torch
from data import Text, number
from language_model import new_config
from teacher import fit_teacher
from torch import Tensor
from torch.nn import functional
from training import PAD_ID, add_dropout, batches, make_optimizers, pad, schedule, train
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
PASSES = 3  # over the single sentences, at the end of the first round
COPIES = 3  # of the single sentences in the one pass of the second round
SECOND_RATE = 0.6
SHARPEN = 1.2  # an average of two log-odds is less sure than both together should be
TRUST = 0.7  # in a human label, the rest in the teacher: the labels are noisy, and this calibrates
DENSE = 0.5  # of the mean loss over all positions, beside the loss at the last

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


def sentiment_loss(scores: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """The logistic loss at the last token, plus a share of its mean over all tokens."""
    real = (ids != PAD_ID).float()
    losses = functional.binary_cross_entropy_with_logits(
        scores, targets[:, None].expand_as(scores), reduction="none"
    )
    lengths = real.sum(1)
    last = losses.gather(1, lengths.long()[:, None] - 1)[:, 0]
    return (last + DENSE * (losses * real).sum(1) / lengths).mean()


def new_gold(base: LlamaForCausalLM, seed: int) -> LlamaForSequenceClassification:
    """A reward model on the trunk of `base`, its head still random."""
    torch.manual_seed(seed)
    config = new_config()
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(base.model.state_dict())
    torch.nn.init.normal_(model.score.weight, std=0.02)
    return model


def fit(
    model: LlamaForSequenceClassification,
    rows: list[list[int]],
    targets: Tensor,
    steps: list[list[int]],
    rate: float,
    name: str,
) -> None:
    """Trains on the batches `steps`, at `rate` times the full learning rates."""

    def loss_of(batch: list[int]) -> Tensor:
        ids = pad([rows[i] for i in batch])
        return sentiment_loss(scores_everywhere(model, ids), ids, targets[batch])

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
    err differently, and again from the human labels.

    Args:
        base: The language model whose trunk it starts from.
        tokenizer: The tokenizer of `base`.
        sentences: Single sentences with labels of their own.
        from_reviews: Sentences with the label of their review.
        seed: Draws the head, the order and the dropout.

    Returns:
        The trained model; a score above 0 means positive.
    """
    model = new_gold(base, seed)
    generator = torch.Generator().manual_seed(seed)
    count = len(sentences)
    rows = tokenizer([t.text for t in [*sentences, *from_reviews]], truncation=True)["input_ids"]
    lengths = [len(row) for row in rows]
    odds = soft_labels(sentences, from_reviews)
    own = torch.tensor([float(t.positive) for t in sentences])
    own = TRUST * own + (1 - TRUST) * odds[:count].sigmoid()
    sign = torch.tensor([2.0 * t.positive - 1 for t in from_reviews])
    noisy = odds[count:] + REVIEW_LOG_ODDS * sign

    targets = torch.cat([own, noisy.sigmoid()])
    # Half of a pass over everything is enough to start with: the second round makes a whole one.
    steps = list(batches(lengths, BATCH_TOKENS, generator))[::2]
    for _ in range(PASSES):
        steps += batches(lengths[:count], BATCH_TOKENS, generator)
    fit(model, rows, targets, steps, 1.0, "gold, first round")

    agreed = (score(model, tokenizer, [t.text for t in from_reviews]) + noisy) / 2
    targets = torch.cat([own, (SHARPEN * agreed).sigmoid()])
    # The sentences with labels of their own come several times in the one pass.
    copies = list(range(count)) * COPIES + list(range(count, len(rows)))
    steps = [
        [copies[i] for i in batch]
        for batch in batches([lengths[i] for i in copies], BATCH_TOKENS, generator)
    ]
    fit(model, rows, targets, steps, SECOND_RATE, "gold, second round")
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
