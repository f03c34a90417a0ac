"""A proposed update: made on the live weights, measured, shortened where that mends it, and kept or undone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.guard import Breach
from kleash.records import UpdateFacts
from kleash.train.algorithms import Algorithm, Targets
from kleash.train.canary import Canary
from kleash.train.config import RunConfig
from kleash.train.experience import Experience, measure_update
from kleash.train.learner import Learner, Snapshot
from kleash.train.loss import Loss, accumulated, loss_pieces, mean_parts, summed
from kleash.train.natural import natural_step
from kleash.train.ptx import Pretraining
from kleash.train.world import ALONE as BY_ITSELF
from kleash.train.world import World

Check = Callable[[UpdateFacts], Breach]
"""What speaks against an update as it was measured."""

CLOSE = 1.1
"""How near to the longest step that meets the limits a shortened one has to be, as a ratio."""
LEAST = 2.0**-10
"""Share of an update below which it is not worth keeping."""
MEASUREMENTS = 16
"""Of one update at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """An update that has been made but not accepted: the way back, and what was measured of it."""

    snapshot: Snapshot
    facts: UpdateFacts
    metrics: dict[str, float | None]


class Beside(NamedTuple):
    """What an update takes beside its rollout."""

    pretraining: Pretraining | None = None
    """Texts that the policy is not to forget."""
    canary: Canary | None = None
    """States that it is measured at too."""
    check: Check | None = None
    """By what it is shortened, where `guard.on_breach` says so."""
    world: World = BY_ITSELF
    """The processes that make it together."""


ALONE = Beside()


class _Given(NamedTuple):
    """What an update is made of and measured by."""

    learner: Learner
    experience: Experience
    config: RunConfig
    beside: Beside


def propose_update(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    config: RunConfig,
    generator: torch.Generator,
    beside: Beside = ALONE,
) -> Proposal:
    """An update from one rollout. An interruption on the way undoes what was done.

    Args:
        learner: whose weights are moved.
        algorithm: by which update.
        experience: the rollout.
        targets: what it aims at.
        config: of the run.
        generator: of the minibatches.
        beside: what else goes into it.
    """
    given = _Given(learner, experience, config, beside)
    snapshot = learner.snapshot()
    try:
        if config.algorithm.update == "natural":
            losses, norms = natural_step(learner, algorithm, experience, targets, config, generator)
        else:
            losses, norms = _epochs(given, algorithm, targets, generator)
            # Their memory is for measuring, and for the keys and values of the next rollout.
            learner.forget_gradients()
        facts = _measure(given, losses, norms)
        if beside.check is not None and config.guard.on_breach == "shrink":
            facts = _shortened(given, snapshot, facts, beside.check)
    except BaseException:
        learner.restore(snapshot)
        raise
    return Proposal(snapshot=snapshot, facts=facts, metrics=mean_parts(losses))


def _epochs(
    given: _Given, algorithm: Algorithm, targets: Targets, generator: torch.Generator
) -> tuple[list[Loss], list[float]]:
    """Gradient steps over minibatches: their losses, and the norms of their gradients.

    The first number that is not finite ends it: nothing good follows, and the guard will refuse the update. So does
    `guard.stop_kl`, before the step that would go further.
    """
    learner, experience, config, beside = given
    losses: list[Loss] = []
    norms: list[float] = []
    for turn, rows in enumerate(_minibatches(experience, config, generator)):
        if (
            turn == 1
        ):  # the pass that metered has been gone back through, and the weights are others
            experience = replace(experience, metered=replace(experience.metered, live=None))
        learner.forget_gradients()
        size = config.train.micro_batch_size
        pieces = loss_pieces(learner, algorithm, experience, targets, rows, config, size=size)
        loss = summed(accumulated(pieces, at_once=learner.division is not None), beside.world)
        if losses and config.guard.stop_kl is not None and not loss.moved <= config.guard.stop_kl:
            break
        if beside.pretraining is not None:
            # Every process makes all of it, for the same texts: so that its gradient counts once, a share of each.
            coef = config.ptx.coef / beside.world.size
            loss = loss.beside("ptx_loss", beside.pretraining.loss(learner.policy), coef)
        losses.append(loss)
        norm = _descend(learner, loss.total, config.optimizer.max_grad_norm, beside.world)
        norms.append(norm)
        if not (math.isfinite(norm) and bool(loss.total.isfinite())):
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


def _descend(learner: Learner, loss: Tensor, max_grad_norm: float, world: World) -> float:
    """One optimiser step, after the way back from the loss; returns the gradient's norm before clipping.

    No step is made on a norm that isn't finite.
    """
    if loss.requires_grad:  # not so where none of its rows is this process's
        loss.backward()
    if learner.division is None:
        world.sum_gradients(learner.trained)
        norm = float(torch.nn.utils.clip_grad_norm_(learner.trained, max_grad_norm))
    else:  # the way back has summed what is divided
        learner.division.take_gradients(learner.trained)
        world.sum_gradients(learner.division.held_whole(learner.trained))
        norm = learner.division.clip(learner.trained, max_grad_norm)
    if math.isfinite(norm):
        learner.optimizer.step()
    return norm


def _measure(given: _Given, losses: list[Loss], norms: list[float]) -> UpdateFacts:
    """What there is to know of an update before it is judged; nothing but that, where it is not finite."""
    finite = (
        all(math.isfinite(norm) for norm in norms)
        and all(bool(loss.total.isfinite()) for loss in losses)
        and given.learner.is_finite()
    )
    facts = UpdateFacts(finite=finite, kl_new_old=None, grad_norm=sum(norms) / len(norms))
    return _located(given, facts) if finite else facts


def _located(given: _Given, facts: UpdateFacts) -> UpdateFacts:
    """The facts with all that is measured of the weights as they are."""
    learner, experience, config, beside = given
    moved = measure_update(
        learner,
        experience,
        temperature=config.rollout.temperature,
        micro_batch_size=config.train.micro_batch_size,
        from_reference=config.guard.max_kl is not None,
        world=beside.world,
    )
    return replace(
        facts,
        kl_new_old=moved.reading,
        tails=moved.tails,
        entropy=moved.entropy,
        kl_proposed=moved.from_reference,
        canary=None if beside.canary is None else beside.canary.measure(learner.policy),
    )


def _shortened(given: _Given, snapshot: Snapshot, facts: UpdateFacts, check: Check) -> UpdateFacts:
    """The facts of the longest part of an update that meets the limits, to which the weights are set; or of all of it.

    A line search: KL grows with the square of a step, so that one over its limit is first cut by a root, then by
    halves between what is too far and what isn't. The optimiser keeps its moments: they are of the gradient, not of
    the step.
    """
    breach = check(facts)
    if breach.unfit or not breach.too_far:
        return facts
    over = tuple(breach.too_far)
    learner, whole = given.learner, [p.detach().clone() for p in given.learner.trained]
    too_far, near, best = 1.0, 0.0, None
    fraction = _first_guess(given.config, facts)
    for _ in range(MEASUREMENTS):
        learner.interpolate(snapshot.parameters, whole, fraction)
        found = replace(_located(given, facts), fraction=fraction, over=over)
        breach = check(found)
        if breach.unfit or breach.too_far:
            too_far = fraction
        else:
            near, best = fraction, found
        if too_far < LEAST or (best is not None and too_far <= CLOSE * near):
            break
        fraction = (too_far + near) / 2 if best is not None else too_far / 4
    if best is None or best.fraction is None:
        learner.interpolate(snapshot.parameters, whole, 1.0)
        return facts
    learner.interpolate(snapshot.parameters, whole, best.fraction)
    return best


def _first_guess(config: RunConfig, facts: UpdateFacts) -> float:
    """A part of the update that should be about as far as it may go."""
    limit, found = config.guard.max_kl_new_old, facts.kl_new_old
    if limit is None or found is None or not found.value > limit:
        return 0.5
    return max(0.97 * math.sqrt(limit / found.value), LEAST)
