"""One rollout, scored and metered: all that the update and the record of a step are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kleash.drift import Tails, break_down, measure_drift, measure_mismatch, measure_tails
from kleash.functional.chunks import TokenKL
from kleash.models.blend import Blend
from kleash.models.policy import Head, LanguageModel
from kleash.records import KLReading, StepTails
from kleash.rollout.rollout import Rollout
from kleash.train.learner import Learner
from kleash.train.world import ALONE, World


@dataclass(frozen=True, kw_only=True, slots=True)
class Metered:
    """What one pass of policy and reference over a rollout gives; [B, T], 0 where masked."""

    logprobs: Tensor
    ref_logprobs: Tensor
    kl: Tensor
    """Exact KL(π(·|h_t) ‖ π_ref(·|h_t)), nats."""
    origin_kl: Tensor
    """Exact KL from the reference as the run began; `kl` itself until the reference is refreshed."""
    entropy: Tensor
    values: Tensor | None
    """Of the value head; None where there is none."""
    hidden: Tensor
    """[B, T, H] of the policy: with `head`, its whole distribution at every state. They are large: of several
    processes each has those of its own rows alone, which `own` says."""
    ref_hidden: Tensor
    """[B, T, H] of the reference; of the same rows."""
    head: Head
    """The policy's head as it was."""
    first: int = 0
    """The row that the hidden states begin with."""
    live: "Live | None" = None
    """The policy's pass with the way back to the weights; None where it wasn't kept."""
    shares: tuple[range, ...] = ()
    """The rows of each process, where weights are divided, and all have to make as many passes as one; else empty."""

    @property
    def own(self) -> range:
        """The rows whose hidden states are here: all of them, where one process makes the run."""
        return range(self.first, self.first + len(self.hidden))

    @property
    def log_ratio(self) -> Tensor:
        """u_t = log π/π_ref of the tokens drawn, [B, T]."""
        return self.logprobs - self.ref_logprobs


class Live(NamedTuple):
    """What a pass over all own rows read, with the way back. It can be gone once, while the weights are the same."""

    read: TokenKL
    """[N], of all tokens in the order of rows; of several references against the heads alone."""
    hidden: Tensor
    """[N, H]."""

    def at(self, rows: Tensor, mask: Tensor) -> "Live":
        """The same, row by row as they are asked for; of all of them.

        Args:
            rows: [B].
            mask: [B, T], which tokens there are.
        """
        number = (mask.flatten().cumsum(0) - 1).view_as(mask)[rows][mask[rows]]
        return Live(TokenKL(*(x[number] for x in self.read)), self.hidden[number])


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """A rollout with its scores and its metering."""

    rollout: Rollout
    scores: Tensor
    """[B], the reward's own scores, before clip and penalties."""
    penalised: Tensor
    """[B], what is learnt from: scores, clipped where `reward.clip` is set, less the penalties, for responses that did
    not end and for length."""
    clipped: Tensor | None = None
    """[B], whether a score was beyond `reward.clip`; None where there is none."""
    monitor: dict[str, Tensor]
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """[B] each, what the scores are made of, by name; none where the reward is one."""
    disagreement: Tensor | None = None
    """[B], standard deviation over the members of an ensemble; None where the reward is none."""
    metered: Metered

    @property
    def log_ratio(self) -> Tensor:
        """u_t = log π/π_ref of the tokens drawn, [B, T]."""
        return self.metered.log_ratio

    def readings(self, learner: Learner) -> "Readings":
        """Every drift of the policy that sampled this rollout."""
        return read_drift(learner, self.rollout, self.metered)

    def breakdown(self, policy: LanguageModel) -> dict[str, list[dict[str, Any]]]:
        """Where the KL comes from, with prompts and tokens as text."""
        return locate_drift(policy, self.rollout, self.metered)


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """What the meter says of one rollout."""

    response: KLReading
    """KL(π‖π_ref) per response."""
    token: KLReading
    """The same per token."""
    origin: KLReading
    """KL from the reference as the run began, per response."""
    sampler: KLReading
    """KL(μ‖π) per token of the engine that sampled from the policy that learns."""
    tails: Tails


def read_drift(learner: Learner, rollout: Rollout, metered: Metered) -> Readings:
    """Every drift of the policy that sampled a rollout."""
    mask, clusters = rollout.mask, rollout.prompt_index
    reference, origin = learner.reference.name, learner.origin.name
    return Readings(
        response=measure_drift(metered.kl, mask, clusters, reference=reference),
        token=measure_drift(metered.kl, mask, clusters, reference=reference, unit="token"),
        origin=measure_drift(
            metered.origin_kl, mask, clusters, reference=origin, direction="policy_origin"
        ),
        sampler=measure_mismatch(
            rollout.sampled_logprobs,
            metered.logprobs,
            mask,
            clusters,
            policy=learner.policy.name,
        ),
        tails=measure_tails(metered.kl, metered.log_ratio, mask),
    )


def locate_drift(
    policy: LanguageModel, rollout: Rollout, metered: Metered
) -> dict[str, list[dict[str, Any]]]:
    """Where the KL of a rollout comes from, with prompts and tokens as text."""
    found = break_down(
        metered.kl,
        metered.log_ratio,
        rollout.response_ids,
        rollout.mask,
        rollout.prompt_index,
        name=lambda token: policy.tokenizer.decode([token]),
    )
    text = dict(zip(rollout.prompt_index.tolist(), rollout.prompts, strict=True))
    for prompt in found["by_prompt"]:
        prompt["prompt"] = text[prompt["prompt"]]
    return found


@torch.no_grad()
def meter(
    learner: Learner,
    rollout: Rollout,
    *,
    temperature: float,
    micro_batch_size: int,
    keep_graph: bool = False,
    world: World = ALONE,
) -> Metered:
    """Exact KL, log-probabilities, entropy and values of every sampled token, a few responses at a time.

    Args:
        learner: policy, reference and value head.
        rollout: whose tokens.
        temperature: of the run.
        micro_batch_size: responses at a time.
        keep_graph: whether the policy's pass is kept for the first gradient step, where all responses are one piece.
        world: each process of which meters its own rows; all get the whole.
    """
    share, device = world.rows(rollout), rollout.mask.device
    shares = () if learner.division is None else world.rows_of_each(rollout)
    shape = (len(share), rollout.mask.shape[1])
    names = ["logprobs", "ref_logprobs", "kl", "entropy", "origin_kl"]
    names += ["values"] if learner.value_head is not None else []
    flat = {name: torch.zeros(shape, device=device) for name in names}
    hidden, ref_hidden = (
        torch.zeros((*shape, side.hidden_size), dtype=side.dtype, device=device)
        for side in (learner.policy, learner.reference)
    )
    head, live = learner.policy.head.frozen(), None
    keep_graph = keep_graph and shape[0] <= micro_batch_size and not shares
    for index in _batches(shape[0], shares, micro_batch_size):
        part = rollout.rows(index + share.start)
        keep, length = part.mask, part.mask.shape[1]
        theirs, tokens = _hidden(learner.reference, part), part.response_ids[keep]
        against = learner.reference.head, theirs[keep], tokens, temperature
        with torch.set_grad_enabled(keep_graph):
            states = _hidden(learner.policy, part)
            if keep_graph:
                own = states[keep]
                live = Live(learner.policy.head.read(own, *against, hold=True), own)
        states = states.detach()
        hidden[index, :length], ref_hidden[index, :length] = states, theirs
        read = head.read(states[keep], *against) if live is None else live.read.detached()
        read = _whole(read, learner.reference, theirs[keep], tokens, temperature)
        origin_kl = read.kl
        if learner.origin is not learner.reference:
            first = _hidden(learner.origin, part)[keep]
            origin_kl = _read(head, states[keep], learner.origin, first, tokens, temperature).kl
        found = [*read, origin_kl]
        if learner.value_head is not None:
            found.append(learner.value_head(states[keep]))
        _fill(flat, dict(zip(names, found, strict=True)), index, keep)
    flat = {name: world.gather_responses(tensor, rollout) for name, tensor in flat.items()}
    values = flat.pop("values", None)
    states = {"hidden": hidden, "ref_hidden": ref_hidden}
    return Metered(
        **states, head=head, live=live, first=share.start, shares=shares, values=values, **flat
    )


def _fill(flat: dict[str, Tensor], found: dict[str, Tensor], rows: Tensor, keep: Tensor) -> None:
    for name, values in found.items():
        block = torch.zeros(keep.shape, device=keep.device)
        block[keep] = values.float()
        flat[name][rows, : block.shape[1]] = block


def _batches(count: int, shares: Sequence[range], size: int) -> list[Tensor]:
    """So many own rows, a few at a time; of several processes that keep in step each has as many batches as any.

    One that has fewer meets its first row again, which says the same once more.
    """
    own = [*torch.arange(count).split(size)]
    most = max((-(-len(share) // size) for share in shares), default=0)
    return own + [torch.tensor([0])] * (most - len(own))


def _read(
    head: Head,
    own: Tensor,
    reference: LanguageModel | Blend,
    theirs: Tensor,
    tokens: Tensor,
    temperature: float,
) -> TokenKL:
    """What a policy's head and hidden states say against a reference, or against several."""
    read = head.read(own, reference.head, theirs, tokens, temperature)
    return _whole(read, reference, theirs, tokens, temperature)


def _whole(
    read: TokenKL,
    reference: LanguageModel | Blend,
    theirs: Tensor,
    tokens: Tensor,
    temperature: float,
) -> TokenKL:
    """What was read against a reference's head, against the reference itself."""
    if isinstance(reference, Blend):
        return reference.whole(read, theirs, tokens, temperature)
    return read


def _hidden(model: LanguageModel | Blend, part: Rollout) -> Tensor:
    return model.hidden(part.prompt_ids, part.prompt_mask, part.response_ids, part.mask)


class Moved(NamedTuple):
    """What an update did, at the states that the old policy visited."""

    reading: KLReading
    """KL per token between new and old."""
    tails: StepTails
    entropy: float
    """Mean of the first of the two, nats per token."""
    from_reference: KLReading | None
    """KL(π‖π_ref) per response of the new policy there; None where it wasn't asked for."""


def measure_step(
    learner: Learner,
    experience: Experience,
    *,
    temperature: float,
    micro_batch_size: int,
    direction: Literal["new_old", "old_new"] = "new_old",
) -> KLReading:
    """Exact KL of one update per token, at the states that the old policy visited."""
    return measure_update(
        learner,
        experience,
        temperature=temperature,
        micro_batch_size=micro_batch_size,
        direction=direction,
    ).reading


@torch.no_grad()
def measure_update(
    learner: Learner,
    experience: Experience,
    *,
    temperature: float,
    micro_batch_size: int,
    direction: Literal["new_old", "old_new"] = "new_old",
    from_reference: bool = False,
    world: World = ALONE,
) -> Moved:
    """All that is asked of an update before it is accepted, exact, in one pass of the new policy.

    Args:
        learner: whose policy was updated.
        experience: the rollout of the policy before.
        temperature: of the run.
        micro_batch_size: responses at a time.
        direction: which KL of the two policies.
        from_reference: whether the new policy's drift is measured there too; its states are the old policy's.
        world: each process of which measures its own rows.
    """
    rollout, metered, reference = experience.rollout, experience.metered, learner.reference
    names = ["kl", "ratio", "entropy", *(["drift"] if from_reference else [])]
    blank, head = metered.kl[metered.own.start : metered.own.stop], learner.policy.head
    flat = {name: torch.zeros_like(blank) for name in names}
    for index in _batches(len(metered.own), metered.shares, micro_batch_size):
        part = rollout.rows(index + metered.first)
        keep, tokens = part.mask, part.response_ids[part.mask]
        new = _hidden(learner.policy, part)
        old = metered.hidden[index, : new.shape[1]]
        sides = [(head, new[keep]), (metered.head, old[keep])]
        (first, hidden), second = sides if direction == "new_old" else sides[::-1]
        read = first.read(hidden, *second, tokens, temperature)
        found = {"kl": read.kl, "ratio": read.logprobs - read.ref_logprobs, "entropy": read.entropy}
        if from_reference:
            theirs = metered.ref_hidden[index, : new.shape[1]][keep]
            found["drift"] = _read(head, new[keep], reference, theirs, tokens, temperature).kl
        _fill(flat, found, index, keep)
    flat = {name: world.gather_responses(tensor, rollout) for name, tensor in flat.items()}
    mask, clusters = rollout.mask, rollout.prompt_index
    kl, ratio, entropy = (flat[name] for name in ("kl", "ratio", "entropy"))
    tails = measure_tails(kl, ratio, mask)
    return Moved(
        reading=measure_drift(
            kl, mask, clusters, reference="previous policy", unit="token", direction=direction
        ),
        tails=StepTails(
            kl_p99=tails.token_p99,
            kl_max=tails.token_max,
            log_ratio_max=float(ratio[mask].abs().max()),
        ),
        entropy=float(entropy[mask].double().mean()),
        from_reference=measure_drift(flat["drift"], mask, clusters, reference=reference.name)
        if from_reference
        else None,
    )
