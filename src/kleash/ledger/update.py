"""The body of an `update` entry: what one step measured, and what was decided from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from kleash.ledger.body import read_body
from kleash.records import KLReading, Signals, UpdateFacts, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateEntry:
    """One step of training with all the inputs of its decisions, so that these can be replayed."""

    step: int
    """1-based."""
    kl: KLReading
    """KL(π‖π_ref) per response, as the guard saw it."""
    kl_control: KLReading | None = None
    """What the controller saw where its target is per token; None: it saw `kl`."""
    kl_origin: KLReading | None = None
    """KL from the reference as the run began, where it was refreshed since; None: that is `kl`."""
    kl_sampler: KLReading | None = None
    """KL(μ‖π) per token of what sampled, where that is limited."""
    concordance: float | None = None
    """How far the first monitor prefers what the reward prefers, where an alarm watches that."""
    signals: Signals
    """What the controller knew beside the reading."""
    kl_coef: float
    """The β that this step's update used: that of `control`."""
    facts: UpdateFacts
    verdict: Verdict
    guard: dict[str, Any] | None = None
    """The guard's state after this step, as its `to_json` gives it; None in records of before it had one."""
    control: dict[str, Any]
    """The controller's state as it chose this step's `kl_coef`, as its `to_json` gives it."""
    rollout_sha256: str
    """Commits to the sampled tokens without storing them."""
    metrics_sha256: str
    """SHA-256 of this step's line of metrics.jsonl, LF included."""

    def to_json(self) -> dict[str, Any]:
        """The entry's body."""
        return {
            "step": self.step,
            "kl": self.kl.to_json(),
            **({} if self.kl_control is None else {"kl_control": self.kl_control.to_json()}),
            **({} if self.kl_origin is None else {"kl_origin": self.kl_origin.to_json()}),
            **({} if self.kl_sampler is None else {"kl_sampler": self.kl_sampler.to_json()}),
            **({} if self.concordance is None else {"concordance": self.concordance}),
            "signals": self.signals.to_json(),
            "kl_coef": self.kl_coef,
            "facts": self.facts.to_json(),
            "verdict": self.verdict.to_json(),
            **({} if self.guard is None else {"guard": self.guard}),
            "control": self.control,
            "rollout_sha256": self.rollout_sha256,
            "metrics_sha256": self.metrics_sha256,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "UpdateEntry":
        """The update that `to_json` wrote.

        Raises:
            TamperError: it is not such a body: a field is missing, unknown or of another type.
        """
        return read_body(_ADAPTER, body, "an update")


_ADAPTER = TypeAdapter(UpdateEntry)
