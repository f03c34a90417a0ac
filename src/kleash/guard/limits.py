"""The limits, one line each: what is held against which setting, and why it is over. Nothing here acts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from kleash.errors import ConfigError
from kleash.guard.config import GuardConfig
from kleash.records import KLReading, UpdateFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What was measured of one step, before its update is applied."""

    kl: KLReading
    """KL(π‖π_ref) per response, of the policy that sampled the rollout."""
    facts: UpdateFacts
    """Of the proposed update."""
    origin: KLReading | None = None
    """KL per response from the reference as the run began, where that was refreshed since."""
    sampler: KLReading | None = None
    """KL(μ‖π) per token."""


Found = KLReading | float | None
"""What a limit is about; None: it was not measured."""


class Limit(NamedTuple):
    """One limit: a setting, and what it is held against."""

    name: str
    """The setting of `[guard]`; a number where it is set."""
    what: str
    """What is measured: of a KL its name, which says direction and unit."""
    find: Callable[[Evidence], Found]
    is_floor: bool = False
    unit: str = " nats"


def _tail(name: str) -> Callable[[Evidence], Found]:
    def find(evidence: Evidence) -> Found:
        tails = evidence.facts.tails
        return None if tails is None else getattr(tails, name)

    return find


def _canary_kl(evidence: Evidence) -> Found:
    canary = evidence.facts.canary
    return None if canary is None else canary.kl


def _worst_slice(evidence: Evidence) -> Found:
    canary = evidence.facts.canary
    if canary is None or not canary.by_slice:
        return None
    values = list(canary.by_slice.values())
    # NaN is above every number here: `max` would lose it.
    return next((value for value in values if value != value), max(values))


HALTING = (
    Limit("max_kl", "kl_policy_ref_per_response", lambda e: e.kl),
    Limit("max_kl", "kl_policy_origin_per_response", lambda e: e.origin),
)
"""On the policy as it stands: no refusal of the next update mends it."""
REFUSING = (
    Limit("max_mismatch", "kl_sampler_policy_per_token", lambda e: e.sampler),
    Limit("max_raw_grad_norm", "the gradient's norm", lambda e: e.facts.grad_norm, unit=""),
)
"""On the update, and a part of it would be no better."""
PROPOSED = Limit("max_kl", "kl_policy_ref_per_response", lambda e: e.facts.kl_proposed)
SHRINKING = (
    Limit("max_kl_new_old", "kl_new_old_per_token", lambda e: e.facts.kl_new_old),
    Limit("max_kl_new_old_p99", "kl_new_old of a token in a hundred", _tail("kl_p99")),
    Limit("max_kl_new_old_token", "kl_new_old of a token", _tail("kl_max")),
    Limit("max_log_ratio", "|log new/old| of a token", _tail("log_ratio_max")),
    Limit("min_entropy", "the entropy per token", lambda e: e.facts.entropy, is_floor=True),
    PROPOSED,
    Limit("max_kl_canary", "kl_policy_ref_per_response", _canary_kl),
    Limit("max_kl_slice", "kl_policy_ref per response of a slice", _worst_slice),
)
"""On the update, and a shorter step may meet them."""


def broken(limits: tuple[Limit, ...], config: GuardConfig, evidence: Evidence) -> list[str]:
    """Which limits are broken, a sentence each. What was not measured breaks the limit on it; so does NaN.

    Raises:
        ConfigError: a KL has another unit or direction than the limit on it.
    """
    return [why for limit in limits if (why := _why(limit, config, evidence))]


def _why(limit: Limit, config: GuardConfig, evidence: Evidence) -> str:
    bound: float | None = getattr(config, limit.name)
    found = limit.find(evidence)
    if bound is None or (found is None and _may_lack(limit, evidence)):
        return ""
    if found is None:
        return f"{limit.what} was not measured, and {limit.name} limits it"
    if isinstance(found, KLReading) and found.name != limit.what:
        raise ConfigError(
            f"the limit {limit.name} was shown another KL than it is for",
            expected=limit.what,
            got=found.name,
        )
    value = found.value if isinstance(found, KLReading) else found
    fine = value >= bound if limit.is_floor else value <= bound
    # A reading that is no number says nothing of the policy; the update that rests on it is refused (`judge`).
    if fine or (limit in HALTING and value != value):
        return ""
    side = "under" if limit.is_floor else "over"
    return f"{limit.what} is {value:.6g}{limit.unit}, {side} the limit {limit.name} = {bound:.6g}"


def _may_lack(limit: Limit, evidence: Evidence) -> bool:
    """Whether there was nothing to measure: the reference is as it was; or the record is of before it was measured."""
    is_old = evidence.facts.tails is None
    return limit is HALTING[1] or (limit is PROPOSED and is_old)
