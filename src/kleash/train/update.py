"""A proposed update: made on the live weights, measured, and kept or undone."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.drift import measure_drift
from kleash.functional.chunks import TokenKL
from kleash.records import KLReading, UpdateFacts
from kleash.train.algorithms import Algorithm, Minibatch, Targets
from kleash.train.algorithms.functions import sequence_anchors, token_weights
from kleash.train.config import RunConfig
from kleash.train.experience import Experience
from kleash.train.learner import Learner, Snapshot


class Loss(NamedTuple):
    """A minibatch's loss with its way back, and its parts as numbers."""

    total: Tensor
    parts: dict[str, float]
    """`policy_loss`, `value_loss`, `clip_fraction`; `kl_loss` where the penalty is in the loss."""


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
) -> Proposal:
    """Minibatch epochs over one rollout. An interruption on the way undoes what was done.

    The first number that is not finite ends it: nothing good follows, and the guard will refuse the update.
    """
    snapshot = learner.snapshot()
    losses: list[Loss] = []
    norms: list[float] = []
    try:
        for rows in _minibatches(experience, config, generator):
            loss = minibatch_loss(learner, algorithm, experience, targets, rows, config)
            losses.append(loss)
            norms.append(_descend(learner, loss.total, config.optimizer.max_grad_norm))
            if not (math.isfinite(norms[-1]) and bool(loss.total.isfinite())):
                break
        facts = _measure(learner, experience, losses, norms, config)
    except BaseException:
        learner.restore(snapshot)
        raise
    return Proposal(snapshot=snapshot, facts=facts, metrics=mean_parts(losses))


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


def minibatch_loss(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    rows: Tensor,
    config: RunConfig,
) -> Loss:
    """The loss of some responses; only real tokens reach the head."""
    part, metered = experience.rollout.rows(rows), experience.metered
    hidden = learner.policy.hidden(part.prompt_ids, part.prompt_mask, part.response_ids)[part.mask]
    head, tokens = learner.policy.head, part.response_ids[part.mask]
    # What is not penalised here is not read: it costs a product, and 0 · inf is NaN.
    nobody = head.uniform(), hidden.new_zeros(len(hidden), 0)
    temperature = config.rollout.temperature
    batch = _recorded(experience, targets, rows, config)
    if config.algorithm.ratio == "sequence":
        with torch.no_grad():
            now = head.read(hidden, *nobody, tokens, temperature).logprobs
        batch = batch._replace(anchor_logprobs=sequence_anchors(now, batch.old_logprobs, part.mask))

    def token_loss(read: TokenKL, rows: slice) -> Tensor:
        terms = algorithm.token_terms(read, batch.part(rows), targets, config.algorithm)
        return terms.total / len(hidden)

    against = nobody
    if targets.needs_exact_gradient:
        against = learner.reference.head, _at(metered.ref_hidden, rows, part.mask)
    loss, read = head.read_loss(hidden, *against, tokens, temperature, token_loss)
    terms = algorithm.token_terms(read, batch, targets, config.algorithm)
    parts = {
        "policy_loss": float(terms.policy.mean()),
        "clip_fraction": float(terms.clipped.float().mean()),
    }
    if terms.penalty is not None:
        parts["kl_loss"] = float(terms.penalty.mean())
    if algorithm.value_loss is not None and learner.value_head is not None:
        value = algorithm.value_loss(learner.value_head(hidden), batch, config.algorithm)
        parts["value_loss"] = float(value.detach())
        loss = loss + config.algorithm.value_coef * value
    return Loss(loss, parts)


def _recorded(
    experience: Experience, targets: Targets, rows: Tensor, config: RunConfig
) -> Minibatch:
    """What was recorded of some responses, at their tokens."""
    metered = experience.metered
    mask = experience.rollout.mask[rows]
    old = metered.logprobs[rows][mask]
    return Minibatch(
        old_logprobs=old,
        anchor_logprobs=old,
        ref_logprobs=metered.ref_logprobs[rows][mask],
        old_values=None if metered.values is None else metered.values[rows][mask],
        advantages=targets.advantages[rows][mask],
        returns=None if targets.returns is None else targets.returns[rows][mask],
        kl_coefs=targets.kl_coefs[rows, None].expand(mask.shape)[mask].to(old.dtype),
        weights=token_weights(mask, config.rollout.max_new_tokens, config.algorithm),
    )


def _at(tensor: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """A tensor [B, T, …] at the tokens of some rows, whose mask [R, t] may be the narrower."""
    return tensor[rows, : mask.shape[1]][mask]


def mean_parts(losses: list[Loss]) -> dict[str, float | None]:
    """Means over an update's minibatches, as metrics; None where there is none."""
    names = ("policy_loss", "value_loss", "kl_loss", "clip_fraction")
    found = {name: [x.parts[name] for x in losses if name in x.parts] for name in names}
    return {name: sum(each) / len(each) if each else None for name, each in found.items()}


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
        kl_new_old=_kl_new_old(learner, experience, config) if finite else None,
        grad_norm=sum(norms) / len(norms),
    )


@torch.no_grad()
def _kl_new_old(learner: Learner, experience: Experience, config: RunConfig) -> KLReading:
    """Exact KL(new‖old) per token at the states that the old policy visited."""
    rollout, metered = experience.rollout, experience.metered
    kl = torch.zeros_like(metered.kl)
    head, temperature = learner.policy.head, config.rollout.temperature
    for index in torch.arange(len(kl)).split(config.train.micro_batch_size):
        part = rollout.rows(index)
        new = learner.policy.hidden(part.prompt_ids, part.prompt_mask, part.response_ids)
        old = metered.hidden[index, : new.shape[1]]
        block = torch.zeros(part.mask.shape, device=kl.device)
        block[part.mask] = head.read(
            new[part.mask],
            metered.head,
            old[part.mask],
            part.response_ids[part.mask],
            temperature,
        ).kl
        kl[index, : block.shape[1]] = block
    return measure_drift(
        kl,
        rollout.mask,
        rollout.prompt_index,
        reference="previous policy",
        unit="token",
        direction="new_old",
    )
