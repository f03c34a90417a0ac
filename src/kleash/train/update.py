"""A proposed update: made on the live weights, measured, and kept or undone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kleash.records import UpdateFacts
from kleash.train.algorithms import Algorithm, Targets
from kleash.train.config import RunConfig
from kleash.train.experience import Experience, measure_step
from kleash.train.learner import Learner, Snapshot
from kleash.train.loss import Loss, mean_parts, minibatch_loss
from kleash.train.natural import natural_step
from kleash.train.ptx import Pretraining


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """An update that has been made but not accepted: the way back, and what was measured of it."""

    snapshot: Snapshot
    facts: UpdateFacts
    metrics: dict[str, float | None]


def propose_update(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    config: RunConfig,
    generator: torch.Generator,
    pretraining: Pretraining | None = None,
) -> Proposal:
    """An update from one rollout. An interruption on the way undoes what was done."""
    snapshot = learner.snapshot()
    given = learner, algorithm, experience, targets, config
    try:
        if config.algorithm.update == "natural":
            losses, norms = natural_step(*given, generator)
        else:
            losses, norms = _epochs(*given, generator, pretraining)
        facts = _measure(learner, experience, losses, norms, config)
    except BaseException:
        learner.restore(snapshot)
        raise
    return Proposal(snapshot=snapshot, facts=facts, metrics=mean_parts(losses))


def _epochs(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    config: RunConfig,
    generator: torch.Generator,
    pretraining: Pretraining | None,
) -> tuple[list[Loss], list[float]]:
    """Gradient steps over minibatches: their losses, and the norms of their gradients.

    The first number that is not finite ends it: nothing good follows, and the guard will refuse the update.
    """
    losses: list[Loss] = []
    norms: list[float] = []
    for rows in _minibatches(experience, config, generator):
        loss = minibatch_loss(learner, algorithm, experience, targets, rows, config)
        if pretraining is not None:
            loss = loss.beside("ptx_loss", pretraining.loss(learner.policy), config.ptx.coef)
        losses.append(loss)
        norms.append(_descend(learner, loss.total, config.optimizer.max_grad_norm))
        if not (math.isfinite(norms[-1]) and bool(loss.total.isfinite())):
            break
    return losses, norms


def _minibatches(
    experience: Experience, config: RunConfig, generator: torch.Generator
) -> list[Tensor]:
    """Row indices of every minibatch of every epoch."""
    count = len(experience.scores)
    return [
        rows
        for _ in range(config.algorithm.num_epochs)
        for rows in torch.randperm(count, generator=generator).tensor_split(
            min(config.algorithm.num_minibatches, count)
        )
    ]


def _descend(learner: Learner, loss: Tensor, max_grad_norm: float) -> float:
    """One optimiser step; returns the gradient's norm before clipping. No step is made on a norm that isn't finite."""
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(learner.trained, max_grad_norm))
    if math.isfinite(norm):
        learner.optimizer.step()
    return norm


def _measure(
    learner: Learner,
    experience: Experience,
    losses: list[Loss],
    norms: list[float],
    config: RunConfig,
) -> UpdateFacts:
    finite = (
        all(math.isfinite(norm) for norm in norms)
        and all(bool(loss.total.isfinite()) for loss in losses)
        and all(bool(p.isfinite().all()) for p in learner.trained)
    )
    return UpdateFacts(
        finite=finite,
        kl_new_old=measure_step(
            learner,
            experience,
            temperature=config.rollout.temperature,
            micro_batch_size=config.train.micro_batch_size,
        )
        if finite
        else None,
        grad_norm=sum(norms) / len(norms),
    )
