"""The body of a `measurement` entry: a policy that another trainer updates, as it was read at one step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from kleash.ledger.body import read_body
from kleash.records import KLReading, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasurementEntry:
    """One reading of a policy, with what the guard made of it. No β and no update: neither was ours to choose."""

    step: int
    """Updates that the policy had behind it; 0: the policy as loaded."""
    kl: KLReading
    """KL(π‖π_ref) per response, as the guard saw it."""
    verdict: Verdict
    """`accept`: the run may go on from it; or `halt`."""
    rollout_sha256: str
    """Commits to the sampled tokens without storing them."""
    metrics_sha256: str
    """SHA-256 of this step's line of metrics.jsonl, LF included."""

    def to_json(self) -> dict[str, Any]:
        """The entry's body."""
        return {
            "step": self.step,
            "kl": self.kl.to_json(),
            "verdict": self.verdict.to_json(),
            "rollout_sha256": self.rollout_sha256,
            "metrics_sha256": self.metrics_sha256,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "MeasurementEntry":
        """The measurement that `to_json` wrote.

        Raises:
            TamperError: it is not such a body: a field is missing, unknown or of another type.
        """
        return read_body(_ADAPTER, body, "a measurement")


_ADAPTER = TypeAdapter(MeasurementEntry)
