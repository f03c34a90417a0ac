"""The loss of some responses: one pass of the policy over their tokens, and an algorithm's terms at each."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.chunks import TokenKL
from kleash.functional.importance import importance_weights
from kleash.functional.kl import k3
from kleash.train.algorithms import Algorithm, AlgorithmConfig, Minibatch, Targets
from kleash.train.algorithms.functions import sequence_anchors, token_weights
from kleash.train.config import RunConfig
from kleash.train.experience import Experience, Live
from kleash.train.learner import Learner
from kleash.train.world import World


class Loss(NamedTuple):
    """A minibatch's loss with its way back, and its parts as numbers."""

    total: Tensor
    parts: dict[str, float]
    """`policy_loss`, `value_loss`, `clip_fraction`; `kl_loss` where the penalty is in the loss; `ptx_loss`."""
    moved: float
    """KL(old‖new) per token so far, by k3 of the minibatch's tokens, nats."""

    def beside(self, name: str, other: Tensor, coef: float) -> "Loss":
        """With another loss in it, weighed by a coefficient and reported without it."""
        parts = {**self.parts, name: float(other.detach())}
        return Loss(self.total + coef * other, parts, self.moved)


def minibatch_loss(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    rows: Tensor,
    config: RunConfig,
) -> Loss:
    """The loss of some responses; only real tokens reach the head."""
    (loss,) = loss_pieces(learner, algorithm, experience, targets, rows, config, size=len(rows))
    return loss


def loss_pieces(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    rows: Tensor,
    config: RunConfig,
    *,
    size: int,
) -> Iterator[Loss]:
    """The loss of some responses in pieces whose sum it is, and so are their parts: of at most `size` responses each.

    Only one has to be in memory at a time. What was recorded is weighed over all rows first, as a token's weight may
    depend on the others'; answers to one prompt come into one piece, where it is computed once. Of several processes
    each makes the pieces of its own rows, if it has any among these; and passes of no weight beside, where weights are
    divided and another has more.
    """
    own, mask = experience.metered.own, experience.rollout.mask
    if len(rows) > size or len(own) < len(mask):
        rows = rows[experience.rollout.prompt_index[rows].argsort(stable=True).to(rows.device)]
    batch = _recorded(experience, targets, rows, config)
    before = rows[rows < own.start]
    count, start = len(batch.old_logprobs), int(mask[before].sum()) if len(before) else 0
    most = max(
        (-(-len(_among(rows, share)) // size) for share in experience.metered.shares), default=0
    )
    for some in _among(rows, own).split(size):
        tokens = slice(start, start + int(mask[some].sum()))
        if not len(some):
            break
        start = tokens.stop
        given = learner, algorithm, experience, targets, some, config
        yield _piece(*given, batch=batch.part(tokens), count=count)
        most -= 1
    for _ in range(most):
        some = torch.tensor([own.start], device=rows.device)
        given = learner, algorithm, experience, targets, some, config
        blank = _recorded(experience, targets, some, config)
        piece = _piece(*given, batch=blank, count=count)
        yield Loss(0.0 * piece.total, {}, 0.0)


def _among(rows: Tensor, share: range) -> Tensor:
    """Those of some rows that are in a share."""
    return rows[(rows >= share.start) & (rows < share.stop)]


def _piece(  # noqa: PLR0913 - what `minibatch_loss` takes, and its share of it
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    rows: Tensor,
    config: RunConfig,
    *,
    batch: Minibatch,
    count: int,
) -> Loss:
    """What some responses contribute to a loss that is a mean over `count` tokens."""
    part, metered = experience.rollout.rows(rows), experience.metered
    live = _live(experience, targets, rows)
    if live is not None:
        hidden = live.hidden
    else:
        given = part.prompt_ids, part.prompt_mask, part.response_ids, part.mask
        hidden = learner.policy.hidden(*given)[part.mask]
    head, tokens = learner.policy.head, part.response_ids[part.mask]
    # What is not penalised here is not read: it costs a product, and 0 · inf is NaN.
    nobody = head.uniform(), hidden.new_zeros(len(hidden), 0)
    temperature, share = config.rollout.temperature, len(hidden) / count
    if config.algorithm.ratio == "sequence":
        with torch.no_grad():
            now = live.read if live else head.read(hidden, *nobody, tokens, temperature)
            anchors = sequence_anchors(now.logprobs, batch.old_logprobs, part.mask)
        batch = batch._replace(anchor_logprobs=anchors)

    def token_loss(read: TokenKL, rows: slice) -> Tensor:
        terms = algorithm.token_terms(read, batch.part(rows), targets, config.algorithm)
        return terms.total / count

    if live is not None:
        loss = token_loss(live.read, slice(None)).sum(dtype=torch.float64).to(live.read.kl.dtype)
        read = live.read.detached()
    else:
        against = nobody
        if targets.needs_exact_gradient:
            theirs = _at(metered.ref_hidden, rows - metered.first, part.mask)
            against = learner.reference.head, theirs
        loss, read = head.read_loss(hidden, *against, tokens, temperature, token_loss)
    terms = algorithm.token_terms(read, batch, targets, config.algorithm)
    moved = share * float(k3(batch.old_logprobs, read.logprobs).mean())
    parts = {
        "policy_loss": share * float(terms.policy.mean()),
        "clip_fraction": share * float(terms.clipped.float().mean()),
    }
    if terms.penalty is not None:
        parts["kl_loss"] = share * float(terms.penalty.mean())
    if algorithm.value_loss is not None and learner.value_head is not None:
        values = learner.value_head(hidden)
        value = share * algorithm.value_loss(values, batch, config.algorithm)
        return Loss(loss, parts, moved).beside("value_loss", value, config.algorithm.value_coef)
    return Loss(loss, parts, moved)


def _live(experience: Experience, targets: Targets, rows: Tensor) -> Live | None:
    """The pass that metered, where these are all its rows and it has the gradient that is asked for."""
    metered = experience.metered
    if metered.live is None or len(rows) != len(metered.own):
        return None
    # An infinite KL has no gradient, but there is one of the rest, by itself.
    if not targets.needs_exact_gradient and not bool(metered.live.read.kl.isfinite().all()):
        return None
    mask = experience.rollout.mask[metered.own.start : metered.own.stop]
    return metered.live.at(rows - metered.first, mask)


def accumulated(pieces: Iterable[Loss], *, at_once: bool = False) -> Loss:
    """A loss from its pieces, of which all but the last have gone back to the weights' gradients already.

    Its `total` is the last piece's, from which the way back is still to be gone; there is none from no pieces.

    Args:
        pieces: one after another.
        at_once: whether the last goes back too: a pass over divided weights is to be gone back through before the next.
    """
    parts, moved, last = dict[str, float](), 0.0, None
    for piece in pieces:
        if last is not None and not at_once:
            last.backward()
        last = piece.total
        if at_once:
            last.backward()
            last = last.detach()
        moved += piece.moved
        for name, value in piece.parts.items():
            parts[name] = parts.get(name, 0.0) + value
    return Loss(torch.zeros(()) if last is None else last, parts, moved)


def summed(loss: Loss, world: World) -> Loss:
    """The loss that the processes have a part of each: its numbers are the whole's, its way back is this one's."""
    if world.size == 1:
        return loss
    total = float(loss.total.detach())
    said = world.exchange({"parts": loss.parts, "moved": loss.moved, "total": total})
    parts = dict[str, float]()
    for each in said:
        for name, value in each["parts"].items():
            parts[name] = parts.get(name, 0.0) + value
    others = sum(each["total"] for rank, each in enumerate(said) if rank != world.rank)
    return Loss(loss.total + others, parts, sum(each["moved"] for each in said))


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
        kl_coefs=targets.loss_coefs[rows, None].expand(mask.shape)[mask].to(old.dtype),
        weights=token_weights(mask, config.rollout.max_new_tokens, config.algorithm)
        * _correction(experience, rows, mask, config.algorithm),
    )


def _correction(
    experience: Experience, rows: Tensor, mask: Tensor, config: AlgorithmConfig
) -> Tensor | float:
    """How much likelier a token is under the policy than under what sampled it, [N]; the whole loss counts so."""
    if config.correction == "none":
        return 1.0
    log_ratio = experience.metered.logprobs - experience.rollout.sampled_logprobs
    weights = importance_weights(
        log_ratio[rows],
        mask,
        level=config.correction,
        cap=config.correction_cap,
        drop=config.correction_drop,
    )
    return weights[mask]


def _at(tensor: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """A tensor [B, T, …] at the tokens of some rows, whose mask [R, t] may be the narrower."""
    return tensor[rows, : mask.shape[1]][mask]


def mean_parts(losses: list[Loss]) -> dict[str, float | None]:
    """Means over an update's minibatches, as metrics; None where there is none."""
    names = ("policy_loss", "value_loss", "kl_loss", "ptx_loss", "clip_fraction")
    found = {name: [x.parts[name] for x in losses if name in x.parts] for name in names}
    return {name: sum(each) / len(each) if each else None for name, each in found.items()}
