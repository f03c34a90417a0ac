"""Trains and measures the gold reward model.

A text is scored as the plain tokenizer call gives it, `<bos> text` without `<eos>`, at its last
token. The loss looks at every position, so that the beginning of a sentence has a score too.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from data import Text, number
from language_model import new_config
from teacher import fit_teacher
from training import PAD_ID, add_dropout, batches, make_optimizers, pad, schedule, train

BATCH_TOKENS = 4096
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


def sentiment_loss(scores: Tensor, ids: Tensor, targets: Tensor, dense: float) -> Tensor:
    """The logistic loss at the last token, plus `dense` times its mean over all tokens."""
    real = (ids != PAD_ID).float()
    losses = functional.binary_cross_entropy_with_logits(
        scores, targets[:, None].expand_as(scores), reduction="none"
    )
    lengths = real.sum(1)
    last = losses.gather(1, lengths.long()[:, None] - 1)[:, 0]
    return (last + dense * (losses * real).sum(1) / lengths).mean()


def train_gold(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sentences: list[Text],
    from_reviews: list[Text],
    seed: int,
    general_passes: int = 1,
    special_passes: int = 4,
    dropout: float = 0.2,
    matrix_lr: float = 0.005,
    other_lr: float = 5e-4,
    dense: float = 0.5,
    trust: float = 0.7,
    weight_decay: float = 0.1,
    labels: Tensor | None = None,
) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = new_config()
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(base.model.state_dict())
    torch.nn.init.normal_(model.score.weight, std=0.02)
    odds = soft_labels(sentences, from_reviews) if labels is None else labels
    sign = torch.tensor([2.0 * t.positive - 1 for t in from_reviews])
    own = torch.tensor([float(t.positive) for t in sentences])
    count = len(sentences)
    targets = torch.cat([
        trust * own + (1 - trust) * odds[:count].sigmoid(),
        (odds[count:] + REVIEW_LOG_ODDS * sign).sigmoid(),
    ])
    rows = tokenizer([t.text for t in [*sentences, *from_reviews]], truncation=True)["input_ids"]
    lengths = [len(r) for r in rows]
    steps = []
    for _ in range(general_passes):
        steps += batches(lengths, BATCH_TOKENS, generator)
    for _ in range(special_passes):
        steps += batches(lengths[:count], BATCH_TOKENS, generator)

    def loss_of(batch: list[int]) -> Tensor:
        ids = pad([rows[i] for i in batch])
        return sentiment_loss(scores_everywhere(model, ids), ids, targets[batch], dense)

    optimizers = make_optimizers(model, matrix_lr, other_lr, weight_decay)
    undo = add_dropout(model.model, dropout)
    train(model, steps, loss_of, optimizers, lambda s: schedule(s, len(steps), 30), "gold")
    undo()
    return model


@torch.no_grad()
def score(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
) -> Tensor:
    """Scores texts as a user would: the plain tokenizer call, padded on the left."""
    scores = []
    for start in range(0, len(texts), 128):
        inputs = tokenizer(
            texts[start : start + 128], padding=True, truncation=True, return_tensors="pt"
        )
        scores.append(model(**inputs).logits[:, 0])
    return torch.cat(scores)


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
