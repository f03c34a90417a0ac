"""What a comparison found, as plain frozen records. No torch: an auditor's laptop reads them too."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kleash.audit.limits import Judged
from kleash.records import KLReading, Unit

FORMAT = "kleash-comparison/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A measured number that is no KL, with its confidence interval, clustered by prompt."""

    value: float
    low: float | None
    """None where there are too few prompts to say."""
    high: float | None
    level: float = 0.95
    n: int
    """Responses behind it."""
    clusters: int
    """Prompts."""
    unit: Unit
    """What it is per: nats, or of a length tokens."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """A quantity by its quantiles; the ends are what was seen, of which there is no interval."""

    lowest: float
    quantiles: Mapping[str, Estimate]
    """By their names: `p01`, `p50`, `p99`."""
    highest: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        named = {name: estimate.to_json() for name, estimate in self.quantiles.items()}
        return {"min": self.lowest, **named, "max": self.highest}


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How far two models are apart on some prompts."""

    reverse: KLReading
    """KL(π‖π_ref) per response, on responses of the policy."""
    forward: KLReading
    """KL(π_ref‖π) per response, on responses of the reference."""
    reverse_token: KLReading
    forward_token: KLReading
    js: Estimate
    """Jensen-Shannon divergence of the distributions of whole responses: at most log 2."""
    js_token: Estimate
    """The same of next-token distributions, at the states of both."""
    entropy_policy: Estimate
    """Per token, on its own responses."""
    entropy_ref: Estimate
    length_policy: Estimate
    """Tokens a response."""
    length_ref: Estimate

    def to_json(self) -> dict[str, Any]:
        """A plain dict, in the form that `kleash compare --json` has."""
        return {
            "kl_policy_ref_per_response": self.reverse.to_json(),
            "kl_ref_policy_per_response": self.forward.to_json(),
            "js_per_response": self.js.to_json(),
            "per_token": {
                "kl_policy_ref": self.reverse_token.to_json(),
                "kl_ref_policy": self.forward_token.to_json(),
                "js": self.js_token.to_json(),
                "entropy_policy": self.entropy_policy.to_json(),
                "entropy_ref": self.entropy_ref.to_json(),
            },
            "response_length": {
                "policy": self.length_policy.to_json(),
                "reference": self.length_ref.to_json(),
            },
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two models."""

    name: str
    kind: str
    """`model`, `adapter`, `run` or `gguf`."""
    weights: str
    """SHA-256 over all tensors that it computes with."""
    base: str | None = None
    """What an adapter is a difference from."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What `compare` found."""

    policy: Side
    reference: Side
    settings: Mapping[str, Any]
    prompts: Mapping[str, Any]
    """Source, digest and count."""
    drift: Drift
    slices: Mapping[str, Drift]
    tails: Mapping[str, Mapping[str, Tail]]
    """By the model that drew: `policy`, `reference`."""
    where: Mapping[str, Any]
    """The prompts, positions and tokens that moved most, and answers side by side."""
    retention: Mapping[str, Any] | None
    """None: no held-out texts were given."""
    judged: tuple[Judged, ...]
    """Every limit, with what was measured."""
    stopped: str
    """Why no further round of samples was begun."""
    rounds: int
    tokens: int
    """Sampled, of both models."""
    versions: Mapping[str, str]
    search: Mapping[str, Any] | None = None
    """What a search for hidden drift found; None: there was none."""

    @property
    def passed(self) -> bool | None:
        """Whether every limit holds; None: there is none."""
        return all(each.passed for each in self.judged) if self.judged else None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why not."""
        return tuple(each.reason for each in self.judged if not each.passed)

    def to_json(self) -> dict[str, Any]:
        """One JSON document: what `--json` prints, and comparison.json holds."""
        return {
            "format": FORMAT,
            "policy": self.policy.to_json(),
            "reference": self.reference.to_json(),
            **self.drift.to_json(),
            "tails": {
                side: {name: tail.to_json() for name, tail in found.items()}
                for side, found in self.tails.items()
            },
            "slices": {name: drift.to_json() for name, drift in self.slices.items()},
            "where": dict(self.where),
            "retention": self.retention,
            "search": self.search,
            "limits": [each.to_json() for each in self.judged],
            "verdict": {"passed": self.passed, "reasons": list(self.reasons)},
            "prompts": dict(self.prompts),
            "settings": dict(self.settings),
            "stopped": self.stopped,
            "rounds": self.rounds,
            "tokens": self.tokens,
            "versions": dict(self.versions),
        }
