"""One rollout, scored and metered: all that the update and the record of a step are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kleash.drift import measure_drift
from kleash.models.policy import Head
from kleash.records import KLReading, Unit
from kleash.rewards.scorers import Scorer
from kleash.rollout.rollout import Rollout
from kleash.train.learner import Learner


@dataclass(frozen=True, kw_only=True, slots=True)
class Metered:
    """What one pass of policy and reference over a rollout gives; [B, T], 0 where masked."""

    logprobs: Tensor
    ref_logprobs: Tensor
    kl: Tensor
    """Exact KL(π(·|h_t) ‖ π_ref(·|h_t)), nats."""
    entropy: Tensor
    values: Tensor
    hidden: Tensor
    """[B, T, H] of the policy: with `head`, its whole distribution at every state."""
    ref_hidden: Tensor
    """[B, T, H] of the reference."""
    head: Head
    """The policy's head as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """A rollout with its scores and its metering."""

    rollout: Rollout
    scores: Tensor
    """[B], the reward's own scores, before any penalty."""
    penalised: Tensor
    """[B], scores less the penalty for responses that did not end."""
    monitor: dict[str, Tensor]
    metered: Metered

    def reading(self, unit: Unit, reference: str) -> KLReading:
        """KL(π‖π_ref) of the policy that sampled this rollout."""
        return measure_drift(
            self.metered.kl,
            self.rollout.mask,
            self.rollout.prompt_index,
            reference=reference,
            unit=unit,
        )


@torch.no_grad()
def meter(
    learner: Learner, rollout: Rollout, *, temperature: float, micro_batch_size: int
) -> Metered:
    """Exact KL, log-probabilities, entropy and values of every sampled token, a few responses at a time."""
    shape = rollout.mask.shape
    flat = {
        name: torch.zeros(shape, device=rollout.mask.device)
        for name in ("logprobs", "ref_logprobs", "kl", "entropy", "values")
    }
    hidden = torch.zeros((*shape, learner.policy.hidden_size), device=rollout.mask.device)
    ref_hidden = torch.zeros((*shape, learner.reference.hidden_size), device=hidden.device)
    head, ref_head = learner.policy.head.frozen(), learner.reference.head
    for index in torch.arange(shape[0]).split(micro_batch_size):
        part = rollout.rows(index)
        own, theirs = (
            side.hidden(part.prompt_ids, part.prompt_mask, part.response_ids)
            for side in (learner.policy, learner.reference)
        )
        hidden[index, : own.shape[1]], ref_hidden[index, : own.shape[1]] = own, theirs
        read = head.read(
            own[part.mask],
            ref_head,
            theirs[part.mask],
            part.response_ids[part.mask],
            temperature,
        )
        values = learner.value_head(own[part.mask])
        for name, tensor in zip(flat, (*read, values), strict=True):
            block = torch.zeros(part.mask.shape, device=hidden.device)
            block[part.mask] = tensor
            flat[name][index, : block.shape[1]] = block
    return Metered(hidden=hidden, ref_hidden=ref_hidden, head=head, **flat)


def score(
    rollout: Rollout, reward: Scorer, monitors: Sequence[Scorer], missing_eos_penalty: float
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Scores [B], the same less the penalty for responses that did not end, and what the monitors say."""
    device = rollout.mask.device

    def ask(scorer: Scorer) -> Tensor:
        scores = scorer.score(rollout.prompts, rollout.responses)
        return torch.tensor(scores, dtype=torch.float32, device=device)

    scores = ask(reward)
    penalised = scores - missing_eos_penalty * (~rollout.finished)
    return scores, penalised, {monitor.name: ask(monitor) for monitor in monitors}
