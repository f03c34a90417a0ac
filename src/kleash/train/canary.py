"""The canary set: states that are the same at every step, so that a policy's drift on them carries no sampling noise.

Its prompts are chosen and answered by the reference before the first step, and the ledger's plan has their digest. What
the policy is measured to be there can be added up from step to step (`guard.budget`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kleash.drift import measure_drift
from kleash.functional.distance import apart
from kleash.functional.masking import masked_sum
from kleash.models.blend import Blend
from kleash.models.policy import Head, LanguageModel
from kleash.records import CanaryFacts, Distance, KLReading
from kleash.rollout.rollout import Rollout
from kleash.train.learner import Learner

ROWS = 256
"""States whose whole distributions are compared at a time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A policy at some states, as it was."""

    hidden: Tensor
    """[N, H]."""
    head: Head


class Canary:
    """States to measure a policy at.

    Args:
        learner: its policy as the run begins, and its reference.
        rollout: responses of the reference to the prompts.
        slices: the slice of each prompt; empty where they have none.
        temperature: of the run.
        rows: responses a forward pass.
    """

    def __init__(
        self,
        learner: Learner,
        rollout: Rollout,
        slices: list[str],
        *,
        temperature: float,
        rows: int,
    ) -> None:
        self.rollout, self.slices = rollout, slices
        self.temperature, self.rows = temperature, rows
        self.reference = learner.origin
        self.ref_hidden = self._hidden(learner.origin)
        self.start = self._standing(learner.policy)
        self.before = self.start
        """The policy as the last accepted update left it."""
        self._latest: tuple[CanaryFacts, Standing] | None = None

    def measure(self, policy: LanguageModel) -> CanaryFacts:
        """A proposed policy here: from the reference, from before the update, and from the beginning."""
        now = self._standing(policy, is_live=True)
        kl = self._kl(now)
        moved, away = self._distances(now)
        facts = CanaryFacts(
            kl=self._kl_reading(kl), by_slice=self._by_slice(kl), moved=moved, away=away
        )
        self._latest = facts, now
        return facts

    def settle(self, policy: LanguageModel, facts: CanaryFacts | None = None) -> None:
        """Takes the policy as it is for what later updates are measured from.

        Args:
            policy: as it is.
            facts: what was measured of it; None: it wasn't. Where nothing was measured since, its states are at hand.
        """
        if self._latest is not None and self._latest[0] is facts:
            self.before = Standing(self._latest[1].hidden, policy.head.frozen())
        else:
            self.before = self._standing(policy)
        self._latest = None

    @torch.no_grad()
    def _standing(self, policy: LanguageModel, *, is_live: bool = False) -> Standing:
        return Standing(self._hidden(policy), policy.head if is_live else policy.head.frozen())

    @torch.no_grad()
    def _hidden(self, model: LanguageModel | Blend) -> Tensor:
        """[N, H] at the responses' own tokens."""
        parts: list[Tensor] = []
        for index in torch.arange(len(self.rollout.mask)).split(self.rows):
            part = self.rollout.rows(index)
            hidden = model.hidden(part.prompt_ids, part.prompt_mask, part.response_ids, part.mask)
            parts.append(hidden[part.mask])
        return torch.cat(parts)

    @torch.no_grad()
    def _kl(self, now: Standing) -> Tensor:
        """[B, T], exact."""
        rollout, reference = self.rollout, self.reference
        tokens = rollout.response_ids[rollout.mask]
        read = now.head.read(now.hidden, reference.head, self.ref_hidden, tokens, self.temperature)
        if isinstance(reference, Blend):
            read = reference.whole(read, self.ref_hidden, tokens, self.temperature)
        kl = torch.zeros(rollout.mask.shape, device=rollout.mask.device)
        kl[rollout.mask] = read.kl.float()
        return kl

    def _kl_reading(self, kl: Tensor) -> KLReading:
        return measure_drift(
            kl, self.rollout.mask, self.rollout.prompt_index, reference=self.reference.name
        )

    def _by_slice(self, kl: Tensor) -> dict[str, float]:
        totals = masked_sum(kl.double(), self.rollout.mask)
        of = [self.slices[i] for i in self.rollout.prompt_index.tolist()] if self.slices else []
        names = sorted(set(of))
        return {
            name: float(totals[[i for i, x in enumerate(of) if x == name]].mean()) for name in names
        }

    @torch.no_grad()
    def _distances(self, now: Standing) -> tuple[Distance, Distance]:
        """From the policy before, and from the beginning: each block's distribution is made once for both."""
        sides = (self.before, self.start)
        most, total = [0.0, 0.0], [0.0, 0.0]
        for rows in torch.arange(len(now.hidden)).split(ROWS):
            own = self._logprobs(now, rows)
            for i, side in enumerate(sides):
                found = apart(own, self._logprobs(side, rows))
                largest = float(found.sup_log_ratio.max())
                most[i] = largest if largest != largest else max(most[i], largest)
                total[i] += float(found.total_variation.sum())
        moved, away = (
            Distance(sup_log_ratio=most[i], total_variation=total[i] / len(now.hidden))
            for i in range(2)
        )
        return moved, away

    def _logprobs(self, side: Standing, rows: Tensor) -> Tensor:
        """[rows, V] in double precision, as differences of what is nearly equal are asked for."""
        return torch.log_softmax(side.head(side.hidden[rows]).double() / self.temperature, -1)
