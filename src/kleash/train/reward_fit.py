"""Fitting a reward model to preference pairs.

Bradley & Terry (1952): P(chosen ≻ rejected) = σ(r_chosen − r_rejected), so the loss of a pair is

    −log σ(r_c − r_r) + c·(r_c + r_r)²

The second term (Eisenstein et al. 2023, eq. 2) fixes what pairs leave open, the level of the
scores. The same seed gives the same weights, bit for bit, on one machine with the same number of
threads.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from kleash.errors import ConfigError, InputError
from kleash.models.reward_model import (
    RewardModel,
    encode,
    forward,
    load_tokenizer,
    new_reward_model,
    predict,
    rescale,
    save_reward_model,
)
from kleash.train.preferences import Pair, PairSplit, load_pairs, split_pairs
from kleash.train.reward_config import RewardDataConfig, RewardFitConfig, RewardTrainConfig
from kleash.train.reward_report import FitReport, measure_pairs, write_report

_BUCKET = 16
"""Batches sorted by length together: enough to save padding, few enough to stay random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitStep:
    """One update of the reward model."""

    step: int
    """1-based."""
    steps: int
    """How many there will be."""
    loss: float
    accuracy: float
    """Share of the batch ranked rightly before the update; a tie counts a half."""
    margin: float
    """Mean r_chosen − r_rejected."""
    grad_norm: float
    """Before it is clipped."""
    learning_rate: float


class _Data(NamedTuple):
    chosen: list[list[int]]
    rejected: list[list[int]]
    lengths: list[int]
    num_truncated: int


def fit_reward_model(
    config: RewardFitConfig, out_dir: str | Path, *, device: str = "cpu"
) -> Generator[FitStep | FitReport]:
    """As `fit`, on the pairs that a configuration names.

    Raises:
        InputError: a file, a row or the base model cannot be used.
    """
    split, num_identical = _read_pairs(config.data, config.model.base)
    return fit(
        config.model.base,
        split.train,
        out_dir,
        eval_pairs=split.held_out,
        settings=config.train,
        num_identical=num_identical,
        device=device,
    )


def fit(
    base: str,
    pairs: Sequence[Pair],
    out_dir: str | Path,
    *,
    eval_pairs: Sequence[Pair] = (),
    settings: RewardTrainConfig | None = None,
    num_identical: int = 0,
    device: str = "cpu",
) -> Generator[FitStep | FitReport]:
    """Fits a reward model: yields a record per update and, once all is written, a report.

        *steps, report = fit("tiny-reviews/base", pairs, "runs/proxy")

    Args:
        base: causal language model to start from: an embedded name, a local directory or a hub id.
        pairs: to fit on.
        out_dir: new or empty directory: model, tokenizer, README.md, metrics.json, report.json.
        eval_pairs: to measure on.
        settings: the fit; None for the defaults.
        num_identical: rows already left out, for the report.
        device: where to fit.

    Raises:
        InputError: the base cannot be used, there are no pairs, or `out_dir` holds something.
    """
    out_dir, settings = Path(out_dir), settings or RewardTrainConfig()
    if not pairs:
        raise InputError("there are no pairs to fit on", expected="at least one", got="none")
    if out_dir.is_file() or (out_dir.is_dir() and any(out_dir.iterdir())):
        raise InputError(
            f"{str(out_dir)!r} is already there",
            expected="a new or empty directory",
            got="a file" if out_dir.is_file() else "a directory with something in it",
            do="name another directory, or remove this one",
        )
    reward = new_reward_model(base, seed=settings.seed, device=device)
    if settings.max_length is not None:
        # Of the model itself, so that it is saved: later it scores what was fitted and measured.
        reward = replace(reward, max_length=min(settings.max_length, reward.max_length))
    split = PairSplit(list(pairs), list(eval_pairs))
    return _fit(reward, split, out_dir, settings, num_identical)


def learning_rate(step: int, steps: int, settings: RewardTrainConfig) -> float:
    """Linear warm-up to `settings.lr`, then a cosine that reaches 0 just after the last update.

    Args:
        step: 1-based.
        steps: how many there are.
        settings: its `lr` and `warmup_fraction`.

    Examples:
        >>> settings = RewardTrainConfig(lr=1.0, warmup_fraction=0.2)
        >>> [learning_rate(step, 10, settings) for step in (1, 2, 6, 10)]
        [0.5, 1.0, 0.586824, 0.030154]
    """
    warmup = math.ceil(settings.warmup_fraction * steps)
    if step <= warmup:
        return settings.lr * step / warmup
    return settings.lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1))) / 2


def pair_loss(scores: Tensor, center_coefficient: float) -> Tensor:
    """The mean Bradley–Terry loss, with centring.

    Args:
        scores: [2B], those of the B chosen texts first.
        center_coefficient: c.

    Examples:
        >>> float(pair_loss(torch.tensor([1.0, -1.0]), 0.5))
        0.126928
        >>> float(pair_loss(torch.tensor([3.0, 1.0]), 0.5))
        8.126928
    """
    chosen, rejected = scores.chunk(2)
    return (
        center_coefficient * (chosen + rejected).square() - logsigmoid(chosen - rejected)
    ).mean()


def batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """All items once, in random batches of like length.

    The order is shuffled, cut into buckets of 16 batches, each bucket sorted by length and cut into
    batches, and the batches of the bucket shuffled again.

    Args:
        lengths: of each item, in tokens.
        batch_size: items per batch; the last of all may hold fewer.
        generator: draws the order.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    result: list[list[int]] = []
    for start in range(0, len(order), batch_size * _BUCKET):
        bucket = sorted(order[start : start + batch_size * _BUCKET], key=lambda i: lengths[i])
        parts = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        result += [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
    return result


def _fit(
    reward: RewardModel,
    data: PairSplit,
    out_dir: Path,
    settings: RewardTrainConfig,
    num_identical: int,
) -> Generator[FitStep | FitReport]:
    """The fit itself; nothing is written before it has ended."""
    tokens = _tokens(reward, data.train)
    generator = torch.Generator().manual_seed(settings.seed)
    plan = [
        batch
        for _ in range(settings.epochs)
        for batch in batches(tokens.lengths, settings.batch_size, generator)
    ]
    optimizer = _optimizer(reward.model, settings)
    curve: list[FitStep] = []
    for step, batch in enumerate(plan, start=1):
        rate = learning_rate(step, len(plan), settings)
        ids = [tokens.chosen[i] for i in batch] + [tokens.rejected[i] for i in batch]
        record = _update(reward, optimizer, ids, settings, (step, len(plan), rate))
        curve.append(record)
        yield record
    last = curve[-(len(plan) // settings.epochs) :]
    sizes = [len(batch) for batch in plan[-len(last) :]]
    held_out = measure_pairs(reward, data.held_out)
    scale = _unit_scale(reward, tokens) if settings.normalize else 1.0
    rescale(reward, scale)
    report = FitReport(
        directory=str(out_dir),
        base=reward.name,
        steps=len(plan),
        num_pairs=len(data.train),
        num_identical=num_identical,
        num_truncated=tokens.num_truncated,
        train_loss=_weighted([record.loss for record in last], sizes),
        train_accuracy=_weighted([record.accuracy for record in last], sizes),
        score_scale=scale,
        held_out=held_out,
    )
    save_reward_model(reward, out_dir)
    write_report(report, settings.model_dump(), [asdict(record) for record in curve], out_dir)
    yield report


def _update(
    reward: RewardModel,
    optimizer: torch.optim.Optimizer,
    ids: list[list[int]],
    settings: RewardTrainConfig,
    place: tuple[int, int, float],
) -> FitStep:
    """One step of the optimizer on one batch: chosen and rejected texts in one forward pass.

    Raises:
        ConfigError: the loss or its gradient is no longer a finite number.
    """
    step, steps, rate = place
    for group in optimizer.param_groups:
        group["lr"] = rate
    scores = forward(reward, ids)[:, 0]
    loss = pair_loss(scores, settings.center_coefficient)
    optimizer.zero_grad()
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(reward.model.parameters(), settings.max_grad_norm))
    if not (math.isfinite(norm) and math.isfinite(loss.item())):
        raise ConfigError(
            f"the fit diverged at update {step} of {steps}",
            expected="a finite loss and gradient",
            got=f"loss {loss.item()}, gradient norm {norm}",
            do="lower train.lr",
        )
    optimizer.step()
    chosen, rejected = scores.detach().chunk(2)
    margins = chosen - rejected
    return FitStep(
        step=step,
        steps=steps,
        loss=loss.item(),
        accuracy=float(((margins.sign() + 1) / 2).mean()),
        margin=float(margins.mean()),
        grad_norm=norm,
        learning_rate=rate,
    )


def _unit_scale(reward: RewardModel, tokens: _Data) -> float:
    """The factor that gives the scores of the texts fitted on a standard deviation of 1.

    Ziegler et al. 2019, §2.1, normalise so: β is then in the same coin whatever the fit. The mean is
    left alone, as only differences of scores count.

    Raises:
        InputError: all texts score the same.
    """
    spread = float(predict(reward, tokens.chosen + tokens.rejected)[:, 0].double().std())
    if not spread > 0:
        raise InputError(
            "the scores cannot be normalised",
            expected="texts that score differently",
            got=f"a standard deviation of {spread}",
            do="give more pairs or updates, or leave train.normalize off",
        )
    return 1 / spread


def _tokens(reward: RewardModel, pairs: Sequence[Pair]) -> _Data:
    """Both texts of every pair as token ids; a pair is as long as the longer of them."""
    chosen = encode(reward, [pair.chosen_text for pair in pairs])
    rejected = encode(reward, [pair.rejected_text for pair in pairs])
    lengths = [max(len(c), len(r)) for c, r in zip(chosen.ids, rejected.ids, strict=True)]
    return _Data(chosen.ids, rejected.ids, lengths, chosen.num_truncated + rejected.num_truncated)


def _optimizer(model: nn.Module, settings: RewardTrainConfig) -> torch.optim.Optimizer:
    """AdamW; norms and biases do not decay."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def _weighted(values: list[float], weights: list[int]) -> float:
    """The mean of batch means over the items of the batches."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _read_pairs(data: RewardDataConfig, base: str) -> tuple[PairSplit, int]:
    """The pairs to fit and to measure on, and how many rows stated no preference."""
    tokenizer = load_tokenizer(base)
    loaded = load_pairs(data.pairs, tokenizer=tokenizer, split=data.split)
    if data.eval_pairs is None:
        return split_pairs(loaded.pairs, data.eval_fraction), loaded.num_identical
    measured = load_pairs(data.eval_pairs, tokenizer=tokenizer, split=data.eval_split)
    return PairSplit(loaded.pairs, measured.pairs), loaded.num_identical
