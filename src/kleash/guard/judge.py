"""The judgement of one proposed update: pure, and closed when in doubt."""

from kleash.errors import ConfigError
from kleash.guard.config import GuardConfig
from kleash.records import Direction, KLReading, Unit, UpdateFacts, Verdict


def judge(
    config: GuardConfig,
    reading: KLReading,
    facts: UpdateFacts,
    origin: KLReading | None = None,
) -> Verdict:
    """Whether a proposed update may be applied, is refused, or ends the run.

    `halt` when the policy has drifted past `max_kl` (an infinite KL is past every limit); `reject`
    when the reading or the update is not a possible number, or the update moves the policy past
    `max_kl_new_old`, or cannot be shown not to. What was not measured counts against the update.

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
    halts = _over("max_kl", config.max_kl, reading, "policy_ref", "response")
    if origin is not None:
        halts += _over("max_kl", config.max_kl, origin, "policy_origin", "response")
    rejects = [] if facts.finite else ["the loss, the gradient or a weight is not finite"]
    rejects += _impossible(reading)
    rejects += [] if origin is None else _impossible(origin)
    if facts.kl_new_old is not None:
        rejects += _impossible(facts.kl_new_old)
        rejects += _over(
            "max_kl_new_old", config.max_kl_new_old, facts.kl_new_old, "new_old", "token"
        )
    elif config.max_kl_new_old is not None:
        rejects.append("kl_new_old_per_token was not measured, and max_kl_new_old limits it")
    action = "halt" if halts else "reject" if rejects else "accept"
    return Verdict(action=action, reasons=(*halts, *rejects))


def judge_policy(config: GuardConfig, reading: KLReading) -> Verdict:
    """Whether a run may go on from a policy whose updates are made elsewhere: there is none to be refused.

    `halt` when it has drifted past `max_kl`, or its KL is not a possible number; `accept` otherwise.

    Args:
        config: the limits.
        reading: KL(π‖π_ref) per response, of the policy as it stands.

    Raises:
        ConfigError: the KL has another unit or direction than the limit set on it.
    """
    halts = _over("max_kl", config.max_kl, reading, "policy_ref", "response") + _impossible(reading)
    return Verdict(action="halt" if halts else "accept", reasons=tuple(halts))


def _impossible(reading: KLReading) -> list[str]:
    if reading.is_possible:
        return []
    return [f"{reading.name} is {reading.value:.6g} nats: not a KL to act on"]


def _over(
    name: str, limit: float | None, reading: KLReading, direction: Direction, unit: Unit
) -> list[str]:
    if limit is None:
        return []
    if (reading.direction, reading.unit) != (direction, unit):
        raise ConfigError(
            f"the limit {name} was shown another KL than it is for",
            expected=f"kl_{direction}_per_{unit}",
            got=reading.name,
        )
    if reading.value > limit:
        return [f"{reading.name} is {reading.value:.6g} nats, over the limit {name} = {limit:.6g}"]
    return []
