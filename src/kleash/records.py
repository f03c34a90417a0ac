"""Frozen records that cross rooms. No torch here: an auditor's laptop reads them too.

A KL never travels as a bare float. It is a `KLReading`, which says in which direction, per what, by which
estimator, from how much data and how surely. *Unmeasured is `None`, never 0.*
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Direction = Literal[
    "policy_ref", "ref_policy", "new_old", "old_new", "policy_origin", "sampler_policy"
]
"""Which two distributions, the one sampled from first: `policy_ref` is KL(π‖π_ref), `policy_origin` from the reference
as the run began, `new_old` and `old_new` of one update at the states that old visited, `sampler_policy` of the engine
that sampled from the policy that learns."""

Unit = Literal["response", "token"]
"""What the KL is per: nats per response (summed over its tokens) or nats per token."""

Action = Literal["accept", "shrink", "reject", "rollback", "halt"]
"""What becomes of an update: it is applied; a part of it is; it is undone; so are all since a checkpoint; or the run
ends."""

KEEPING: tuple[Action, ...] = ("accept", "shrink")
"""Actions that change the policy by the update they are about."""

LARGEST_SHARE = 0.1
"""Of all that a reading adds up, in one response: with more, its interval rests on that response."""

ROUNDING = 1e-3
"""Nats that float arithmetic may take an exact KL below zero, summed over a long response."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KLReading:
    """One measured KL divergence with its confidence interval.

    Examples:
        >>> reading = KLReading(value=4.1, low=3.8, high=4.4, n=64, clusters=16, unit="response",
        ...                     direction="policy_ref", estimator="exact", reference="tiny-reviews/base")
        >>> reading.name
        'kl_policy_ref_per_response'
        >>> str(reading)
        '4.10 [3.80, 4.40] nats/response'
    """

    value: float
    """Nats. Never clamped, never a stand-in for a value that was not measured."""
    low: float | None
    """Lower end of the interval; None when there are too few prompts to say."""
    high: float | None
    level: float = 0.95
    """Confidence level of [low, high]."""
    n: int
    """Number of responses behind the value."""
    clusters: int
    """Number of prompts: responses to one prompt are not independent."""
    direction: Direction
    unit: Unit
    estimator: str
    """`exact` (full vocabulary at every sampled prefix), `k1`, `k2`, `k3`."""
    reference: str
    """What the second distribution is: a model's name or digest, or `previous policy`."""
    largest_share: float | None = None
    """Of the sum behind the value, what one response holds at most; None where that was not recorded."""

    @property
    def is_trusted(self) -> bool:
        """Whether the interval can be believed: no single response holds more than a tenth, or thrice its due.

        A heavy tail shows as one response that outweighs the rest; the tail's next one, not yet drawn, is then missing
        from value and interval alike. Below rounding there is nothing to distrust.
        """
        if not self.is_finite:
            return False
        if self.largest_share is None or self.value <= ROUNDING:
            return True
        return self.largest_share <= max(LARGEST_SHARE, 3 / self.n)

    @property
    def name(self) -> str:
        """The metric's name: direction and reduction, as in `kl_policy_ref_per_response`."""
        return f"kl_{self.direction}_per_{self.unit}"

    @property
    def is_finite(self) -> bool:
        """Whether the value is a number one may act on."""
        return math.isfinite(self.value)

    @property
    def is_possible(self) -> bool:
        """Whether a KL can have this value: finite, and below zero by no more than rounding.

        A KL is never negative; `k1`, an average of log-ratios over samples, is the one estimate that may be.
        """
        return self.is_finite and (self.estimator == "k1" or self.value >= -ROUNDING)

    def __str__(self) -> str:
        interval = (
            "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        )
        return f"{self.value:.2f}{interval} nats/{self.unit}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict; non-finite floats as the strings "nan", "inf", "-inf", which JSON can carry."""
        fields = {key: _encode(value) for key, value in asdict(self).items()}
        if self.largest_share is None:  # as in records that were written before it was measured
            del fields["largest_share"]
        return fields

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "KLReading":
        """The reading that `to_json` wrote."""
        floats = ("value", "low", "high", "level", "largest_share")
        fields: dict[str, Any] = {
            key: _decode(value) if key in floats else value for key, value in data.items()
        }
        return cls(**fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signals:
    """What a controller of β may know beside the reading: of the same rollout, before its update. None: not measured.

    Rewards and log-ratios are taken about each prompt's own mean where a prompt has several responses: what is common
    to a prompt's responses moves no policy.
    """

    num_responses: int
    """Responses in the rollout."""
    reward_std: float | None = None
    """σ_r, the standard deviation of the rewards that the update follows."""
    log_ratio_std: float | None = None
    """σ_u of u = log π/π_ref of whole responses, nats."""
    correlation: float | None = None
    """Of reward and log-ratio, −1 to 1."""
    response_length: float | None = None
    """Mean number of tokens."""
    momentum: float = 0.0
    """Share of an update's direction that the optimiser carries into the next, 0 to 1."""
    age: int = 0
    """Updates made since the policy that was read: 0 where the reading is of the policy about to be updated."""
    applied: bool = True
    """Whether the update made with the last β was kept."""
    refreshed: float = 0.0
    """How much of the way the reference came to the policy since the last reading: 1 where it was reset to it."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger stores it; non-finite floats as strings."""
        return {key: _encode(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Signals":
        """The signals that `to_json` wrote."""
        floats = (
            "reward_std",
            "log_ratio_std",
            "correlation",
            "response_length",
            "momentum",
            "refreshed",
        )
        fields: dict[str, Any] = {
            key: _decode(value) if key in floats else value for key, value in data.items()
        }
        return cls(**fields)


def refreshed_share(every: int | None, share: float, steps: int) -> float:
    """How much of the way the reference comes to the policy after so many steps; 0 where it stays.

    Args:
        every: `model.refresh_every`.
        share: `model.refresh_share`.
        steps: made.

    Examples:
        >>> refreshed_share(10, 0.5, steps=20), refreshed_share(10, 0.5, steps=21)
        (0.5, 0.0)
    """
    return share if every is not None and steps > 0 and steps % every == 0 else 0.0


def carried_momentum(
    beta1: float, num_epochs: int, num_minibatches: int, num_responses: int
) -> float:
    """Share of one update's direction that Adam carries into the next: β₁ to the power of an update's gradient steps.

    Examples:
        >>> carried_momentum(0.5, num_epochs=2, num_minibatches=4, num_responses=3)  # no minibatch is empty
        0.015625
    """
    return beta1 ** (num_epochs * min(num_minibatches, num_responses))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTails:
    """The most that an update moved anything, at the states of its rollout: a mean doesn't show it. Nats."""

    kl_p99: float
    """KL(new‖old) that one token in a hundred exceeds."""
    kl_max: float
    """Largest KL(new‖old) at a token."""
    log_ratio_max: float
    """Largest |log new/old| of a token drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far two policies are apart on fixed states, in the two currencies in which steps add up."""

    sup_log_ratio: float
    """max |log π/π′| over states and all tokens, nats."""
    total_variation: float
    """Mean over the states, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryFacts:
    """A proposed policy at the states of the canary set, which are the same at every step."""

    kl: KLReading
    """KL(π‖π_ref) per response, at responses that the reference wrote."""
    by_slice: Mapping[str, float] = field(default_factory=dict[str, float])
    """The same of the prompts of each slice."""
    moved: Distance
    """From the policy before this update."""
    away: Distance
    """From the policy as the run began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateFacts:
    """What was measured of a proposed update, before it is accepted: the guard's evidence beside the reading."""

    finite: bool
    """Whether the loss, the gradient, every trained weight and the optimiser's state are finite numbers."""
    kl_new_old: KLReading | None
    """Exact KL(new‖old) per token on the rollout's prefixes; None when it could not be measured."""
    grad_norm: float | None
    tails: StepTails | None = None
    """None where the update is not finite, or in records that were made before it was measured."""
    entropy: float | None = None
    """Mean entropy of the proposed policy on the rollout's prefixes, nats per token."""
    kl_proposed: KLReading | None = None
    """KL(π‖π_ref) per response of the proposed policy on the rollout's prefixes; None where nothing limits it."""
    canary: CanaryFacts | None = None
    """None where there is no canary set."""
    fraction: float | None = None
    """Share of the update that all this was measured at, where it was shortened; None: all of it."""
    over: tuple[str, ...] = ()
    """What the whole of it was over, a sentence each, where it was shortened."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger stores it; what was not measured of what came later is left out."""
        first = {
            "finite": self.finite,
            "kl_new_old": None if self.kl_new_old is None else self.kl_new_old.to_json(),
            "grad_norm": _encode(self.grad_norm),
        }
        later = {
            "tails": None if self.tails is None else _encoded(asdict(self.tails)),
            "entropy": _encode(self.entropy),
            "kl_proposed": None if self.kl_proposed is None else self.kl_proposed.to_json(),
            "canary": None if self.canary is None else _canary_json(self.canary),
            "fraction": self.fraction,
            "over": list(self.over) or None,
        }
        return first | {name: value for name, value in later.items() if value is not None}


def _canary_json(canary: CanaryFacts) -> dict[str, Any]:
    return {
        "kl": canary.kl.to_json(),
        "by_slice": _encoded(canary.by_slice),
        "moved": _encoded(asdict(canary.moved)),
        "away": _encoded(asdict(canary.away)),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The guard's decision about one proposed update, or about a policy that another trainer updated."""

    action: Action
    reasons: tuple[str, ...] = ()
    """One sentence each; empty when nothing spoke against the update."""
    alarms: tuple[str, ...] = ()
    """What rang, a sentence each; empty when nothing did."""

    @property
    def keeps(self) -> bool:
        """Whether the policy is changed by the update."""
        return self.action in KEEPING

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger stores it."""
        said = {"action": self.action, "reasons": list(self.reasons)}
        return said | ({"alarms": list(self.alarms)} if self.alarms else {})


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What one step of training yields: observers (console, trackers, reports, tests) read these and nothing else."""

    step: int
    """1-based; where another trainer makes the updates, how many it had made, from 0."""
    kl: KLReading
    """KL(π‖π_ref) per response, of the policy that sampled this step's rollout."""
    kl_coef: float | None
    """The β that this step's update used, chosen from `kl`'s rollout; None where no β was chosen."""
    note: str = ""
    """What the controller has to say of this step; empty when nothing."""
    verdict: Verdict
    metrics: Mapping[str, float | int | None] = field(default_factory=dict[str, float | int | None])
    """One line of metrics.jsonl. Deterministic: no times in it."""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Wall time by phase; kept out of the metrics so that these repeat bit for bit."""
    samples: tuple[Mapping[str, Any], ...] = ()
    """Lines for samples.jsonl, when this step is one that draws them."""
    breakdown: Mapping[str, Any] | None = None
    """A line for drift.jsonl, at the same steps: the KL by position, prompt and token."""


def _encode(value: Any) -> Any:
    """A float that JSON cannot carry, as a string; anything else as it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _encode(value) for name, value in values.items()}


def _decode(value: Any) -> float | None:
    """The float behind what `_encode` wrote."""
    return None if value is None else float(value)
