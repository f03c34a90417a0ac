"""The judgement of one proposed update: pure, and closed when in doubt."""

from math import isfinite

from kleash.guard.config import GuardConfig
from kleash.guard.limits import HALTING, REFUSING, SHRINKING, Evidence, broken
from kleash.records import ROUNDING, KLReading, UpdateFacts, Verdict


def judge(
    config: GuardConfig,
    reading: KLReading,
    facts: UpdateFacts,
    origin: KLReading | None = None,
    sampler: KLReading | None = None,
) -> Verdict:
    """Whether a proposed update may be applied, is refused, or ends the run: by the limits alone.

    `halt` when the policy has drifted past `max_kl` (an infinite KL is past every limit); `reject`
    when the reading or the update is not a possible number, or the update breaks a limit, or cannot
    be shown not to. What was not measured counts against the update. `shrink` is to accept what the
    facts were measured at: a part of the update. What repeats itself, budget and alarms come after
    (`guard.state`).

    Limits are compared with the reading's value, not with the upper end of its interval: the guard
    decides hundreds of times a run, where a 95 % bound would be crossed by noise alone and does not
    exist for a single prompt. A claim about a finished model is made once and does use the upper
    end.

    Args:
        config: the limits.
        reading: KL(π‖π_ref) per response, of the policy that sampled the rollout.
        facts: what was measured of the proposed update.
        origin: KL per response from the reference as the run began, where that was refreshed since: it is held to
            `max_kl` too, or a reference that follows the policy would lift the limit.
        sampler: KL(μ‖π) per token of what sampled.

    Raises:
        ConfigError: a KL has another unit or direction than the limit set on it.

    Examples:
        >>> reading = KLReading(value=21.5, low=None, high=None, n=64, clusters=1, unit="response",
        ...                     direction="policy_ref", estimator="exact", reference="base")
        >>> facts = UpdateFacts(finite=True, kl_new_old=None, grad_norm=1.0)
        >>> verdict = judge(GuardConfig(max_kl=20.0), reading, facts)
        >>> verdict.action, *verdict.reasons
        ('halt', 'kl_policy_ref_per_response is 21.5 nats, over the limit max_kl = 20')
    """
    evidence = Evidence(kl=reading, facts=facts, origin=origin, sampler=sampler)
    halts = broken(HALTING, config, evidence)
    rejects = unfit(config, evidence) + broken(SHRINKING, config, evidence)
    if halts or rejects:
        action = "halt" if halts else "reject"
        return Verdict(action=action, reasons=(*halts, *rejects))
    if facts.fraction is not None:
        said = f"{facts.fraction:.3g} of the update is what meets the limits"
        return Verdict(action="shrink", reasons=(said, *facts.over))
    return Verdict(action="accept")


def unfit(config: GuardConfig, evidence: Evidence) -> list[str]:
    """What speaks against an update however short it is made, a sentence each."""
    facts = evidence.facts
    readings = [evidence.kl, evidence.origin, facts.kl_new_old, facts.kl_proposed]
    readings += [] if facts.canary is None else [facts.canary.kl]
    if evidence.sampler is not None and evidence.sampler.value < 0.0:  # else its limit says so
        readings.append(evidence.sampler)
    reasons = [] if facts.finite else ["the loss, the gradient or a weight is not finite"]
    reasons += [why for reading in readings if reading is not None for why in _impossible(reading)]
    # Of what is not finite nothing else is measured: it needs no second sentence.
    reasons += _impossible_numbers(facts) if facts.finite else []
    return reasons + broken(REFUSING, config, evidence)


def judge_policy(config: GuardConfig, reading: KLReading) -> Verdict:
    """Whether a run may go on from a policy whose updates are made elsewhere: there is none to be refused.

    `halt` when it has drifted past `max_kl`, or its KL is not a possible number; `accept` otherwise.

    Args:
        config: the limits.
        reading: KL(π‖π_ref) per response, of the policy as it stands.

    Raises:
        ConfigError: the KL has another unit or direction than the limit set on it.
    """
    nothing = UpdateFacts(finite=True, kl_new_old=None, grad_norm=None)
    halts = broken(HALTING, config, Evidence(kl=reading, facts=nothing)) + _impossible(reading)
    return Verdict(action="halt" if halts else "accept", reasons=tuple(halts))


def _impossible_numbers(facts: UpdateFacts) -> list[str]:
    """What was measured beside KLs and can't be: none of it is ever below zero.

    A limit doesn't see it: −∞ is under every ceiling, ∞ over every floor.
    """
    tails, canary = facts.tails, facts.canary
    found = {"the gradient's norm": facts.grad_norm, "the entropy per token": facts.entropy}
    if tails is not None:
        found["kl_new_old of a token in a hundred"] = tails.kl_p99
        found["kl_new_old of a token"] = tails.kl_max
        found["|log new/old| of a token"] = tails.log_ratio_max
    if canary is not None:
        of_slices = canary.by_slice.items()
        found |= {f"kl_policy_ref per response of slice {name}": x for name, x in of_slices}
    return [
        f"{what} is {value:.6g}: not a number to act on"
        for what, value in found.items()
        if value is not None and not (isfinite(value) and value >= -ROUNDING)
    ]


def _impossible(reading: KLReading) -> list[str]:
    if reading.is_possible:
        return []
    return [f"{reading.name} is {reading.value:.6g} nats: not a KL to act on"]
