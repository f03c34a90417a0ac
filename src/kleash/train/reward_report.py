"""How good a reward model is on pairs it was not fitted on, and the files that say so."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kleash import __version__
from kleash.functional.calibration import (
    ReliabilityBin,
    expected_calibration_error,
    pearson,
    reliability_curve,
    wilson_interval,
)
from kleash.models.reward_model import RewardModel, encode, predict
from kleash.train.preferences import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFigures:
    """Figures on a set of pairs. Unmeasured is None: without pairs, all of them are."""

    num_pairs: int
    num_truncated: int
    """Texts whose beginning the model does not see."""
    accuracy: float | None
    """Share of pairs whose chosen text scores higher; a tie counts a half."""
    accuracy_low: float | None
    """Lower end of Wilson's 95 % interval, pairs taken as independent."""
    accuracy_high: float | None
    nll: float | None
    """Mean −log σ(margin), nats per pair; log 2 for a coin."""
    margin: float | None
    """Mean r_chosen − r_rejected."""
    ece: float | None
    """Expected calibration error of the confidence σ(|margin|)."""
    longer_is_chosen: float | None
    """Accuracy of a rule that prefers the longer text: what length alone explains."""
    score_length_correlation: float | None
    """Pearson's r of a text's score and its length in tokens (before truncation)."""
    margin_length_correlation: float | None
    """Pearson's r of a pair's margin and its difference in length: the prompt drops out."""
    score_mean: float | None
    score_std: float | None
    reliability: tuple[ReliabilityBin, ...]
    """Ten bins of confidence from 0.5 to 1: promised against kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """The last record of a fit."""

    directory: str
    """Where the reward model was written."""
    base: str
    steps: int
    num_pairs: int
    """Pairs fitted on."""
    num_identical: int
    """Rows left out because their two texts are the same."""
    num_truncated: int
    """Texts fitted on whose beginning the model does not see."""
    train_loss: float
    """Mean loss over the last pass."""
    train_accuracy: float
    """Over the last pass, each pair before its own update."""
    score_scale: float
    """The saved model scores this many times what was fitted; σ(margin / scale) is the probability."""
    held_out: PairFigures
    """Of the scores as fitted."""


def measure_pairs(
    reward: RewardModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 64,
    max_length: int | None = None,
) -> PairFigures:
    """Accuracy, calibration and length bias of a scalar reward model on pairs.

    Args:
        reward: with one output.
        pairs: not those it was fitted on, if the figures are to mean anything.
        batch_size: texts per forward pass.
        max_length: tokens kept of each text.
    """
    texts = [p.chosen_text for p in pairs] + [p.rejected_text for p in pairs]
    encoded = encode(reward, texts, max_length=max_length)
    scores = predict(reward, encoded.ids, batch_size=batch_size)[:, 0]
    return pair_figures(scores, torch.tensor(encoded.lengths), encoded.num_truncated)


def pair_figures(scores: Tensor, lengths: Tensor, num_truncated: int = 0) -> PairFigures:
    """The figures from scores and lengths alone.

    Args:
        scores: [2N], those of the N chosen texts first.
        lengths: [2N] in tokens, in the same order.
        num_truncated: carried into the record.

    Examples:
        >>> figures = pair_figures(torch.tensor([2.0, 0.0, 1.0, 1.0]), torch.tensor([9, 3, 5, 3]))
        >>> figures.accuracy, figures.nll, figures.longer_is_chosen
        (0.5, 0.813262, 0.75)
    """
    scores, lengths = scores.double(), lengths.double()
    num_pairs = len(scores) // 2
    margins, longer = (x[:num_pairs] - x[num_pairs:] for x in (scores, lengths))
    won = _wins(margins)
    curve = reliability_curve(margins.abs().sigmoid(), won, low=0.5)
    accuracy = wilson_interval(float(won.sum()), num_pairs)
    return PairFigures(
        num_pairs=num_pairs,
        num_truncated=num_truncated,
        accuracy=accuracy and accuracy.value,
        accuracy_low=accuracy and accuracy.low,
        accuracy_high=accuracy and accuracy.high,
        nll=_mean(-logsigmoid(margins)),
        margin=_mean(margins),
        ece=expected_calibration_error(curve),
        longer_is_chosen=_mean(_wins(longer)),
        score_length_correlation=pearson(scores, lengths),
        margin_length_correlation=pearson(margins, longer),
        score_mean=_mean(scores),
        score_std=float(scores.std()) if num_pairs else None,
        reliability=tuple(curve),
    )


def write_report(
    report: FitReport, settings: dict[str, Any], curve: Sequence[dict[str, Any]], directory: Path
) -> None:
    """Writes metrics.json (flat), report.json (all of it) and the model card README.md."""
    held_out = asdict(report.held_out) | {
        "reliability": [each._asdict() for each in report.held_out.reliability]
    }
    left_out = ("directory", "base", "held_out")
    flat = {key: value for key, value in asdict(report).items() if key not in left_out}
    flat |= {f"held_out_{key}": value for key, value in held_out.items() if key != "reliability"}
    whole = {key: value for key, value in asdict(report).items() if key != "directory"}
    whole |= {"held_out": held_out, "settings": settings, "curve": list(curve)}
    whole["kleash"] = __version__
    _write_json(directory / "metrics.json", flat)
    _write_json(directory / "report.json", whole)
    (directory / "README.md").write_text(model_card(report), encoding="utf-8")


def model_card(report: FitReport) -> str:
    """The reward model's README: what it is, its figures, and what they do not say."""
    held_out = report.held_out
    interval = f"{_shown(held_out.accuracy_low)} to {_shown(held_out.accuracy_high)}"
    rows = {
        "held-out pairs": str(held_out.num_pairs),
        "accuracy (95 % interval)": f"{_shown(held_out.accuracy)} ({interval})",
        "−log σ(margin), nats per pair; a coin has 0.693": _shown(held_out.nll),
        "expected calibration error": _shown(held_out.ece),
        "accuracy of preferring the longer text": _shown(held_out.longer_is_chosen),
        "correlation of score and length": _shown(held_out.score_length_correlation),
        "correlation of margin and length difference": _shown(held_out.margin_length_correlation),
        "mean score": _shown(held_out.score_mean),
        "standard deviation of scores": _shown(held_out.score_std),
    }
    base = "".join(c for c in report.base if c.isprintable() and c != "`")
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    scaled = (
        ""
        if report.score_scale == 1
        else f"""
The saved scores are {report.score_scale:.4g} times those that were fitted and measured, so that the
texts fitted on score with standard deviation 1. Divide a margin by that number before σ makes a
probability of it.
"""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, kleash]
---

# A reward model

A scalar head on `{base}`, fitted with kleash {__version__} to {report.num_pairs} preference pairs
({report.num_identical} more were left out: their two texts were the same) by the Bradley–Terry loss
−log σ(r_chosen − r_rejected), {report.steps} updates. It scores a text, prompt and response
together; higher is preferred. Only differences between scores mean anything.
{scaled}
| on pairs of prompts it was not fitted on | |
|---|---|
{table}

"not measured" stands where there was nothing to measure. The interval takes pairs as independent.

The score is a stand-in for the preferences it was fitted to, and holds for texts like those. A
policy that is optimised against it will find texts on which it is wrong: keep the policy close to
its reference, and judge the result by something else than this score.
"""


def _wins(differences: Tensor) -> Tensor:
    """1 where positive, 0 where negative, 0.5 for a tie."""
    return (differences.sign() + 1) / 2


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if values.numel() else None


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _write_json(path: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
