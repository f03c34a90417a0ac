"""A proposed update: made on the live weights, measured, and kept or undone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kleash.drift import measure_drift, token_drift
from kleash.functional.divergences import reverse_kl
from kleash.functional.logprobs import log_softmax
from kleash.records import KLReading, UpdateFacts
from kleash.train.algorithms import Algorithm, Loss, Minibatch, Targets, mean_losses
from kleash.train.config import RunConfig
from kleash.train.experience import Experience
from kleash.train.learner import Learner, Snapshot


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
            loss = algorithm.loss(
                _forward(learner, experience, targets, rows, config.rollout.temperature),
                targets.kl_loss_coef,
                config.ppo,
            )
            losses.append(loss)
            norms.append(_descend(learner, loss.total, config.optimizer.max_grad_norm))
            if not (math.isfinite(norms[-1]) and bool(loss.total.isfinite())):
                break
        facts = _measure(learner, experience, losses, norms, config)
    except BaseException:
        learner.restore(snapshot)
        raise
    return Proposal(snapshot=snapshot, facts=facts, metrics=mean_losses(losses))


def _minibatches(
    experience: Experience, config: RunConfig, generator: torch.Generator
) -> list[Tensor]:
    """Row indices of every minibatch of every epoch."""
    count = len(experience.scores)
    return [
        rows
        for _ in range(config.ppo.num_epochs)
        for rows in torch.randperm(count, generator=generator).tensor_split(
            min(config.ppo.num_minibatches, count)
        )
    ]


def _forward(
    learner: Learner, experience: Experience, targets: Targets, rows: Tensor, temperature: float
) -> Minibatch:
    """One minibatch through policy, value head and meter, with gradients; only real tokens reach the head."""
    part, metered = experience.rollout.rows(rows), experience.metered
    hidden = learner.policy.hidden(part.prompt_ids, part.prompt_mask, part.response_ids)[part.mask]

    def old(tensor: Tensor) -> Tensor:
        return tensor[rows, : part.mask.shape[1]][part.mask]

    drift = token_drift(
        learner.policy.head(hidden),
        learner.reference.head(old(metered.ref_hidden)),
        part.response_ids[part.mask],
        temperature,
    )
    return Minibatch(
        logprobs=drift.logprobs,
        values=learner.value_head(hidden),
        kl=drift.kl,
        old_logprobs=old(metered.logprobs),
        old_values=old(metered.values),
        advantages=old(targets.advantages),
        returns=old(targets.returns),
    )


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
        block[part.mask] = reverse_kl(
            log_softmax(head(new[part.mask]), temperature),
            log_softmax(metered.head(old[part.mask]), temperature),
        )
        kl[index, : block.shape[1]] = block
    return measure_drift(
        kl,
        rollout.mask,
        rollout.prompt_index,
        reference="previous policy",
        unit="token",
        direction="new_old",
    )
