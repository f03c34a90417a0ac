"""One line of metrics.jsonl: every figure of a step that repeats bit for bit."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.chi_squared import chi_squared_reading, response_log_ratio
from kleash.functional.diversity import distinct_n, unique_share
from kleash.functional.losses import explained_variance
from kleash.functional.masking import masked_mean
from kleash.functional.penalties import Penalty
from kleash.guard import Decision
from kleash.records import KLReading, Signals, UpdateFacts
from kleash.rollout.rollout import Rollout
from kleash.train.algorithms import Targets
from kleash.train.experience import Experience, Metered, Readings
from kleash.train.signals import Measured, spread_within
from kleash.train.update import Proposal

Metrics = dict[str, float | int | None]


class Settings(NamedTuple):
    """What a step was made with."""

    kl_coef: float
    kl_target: float | None
    learning_rate: float


def step_metrics(
    step: int,
    measured: Measured,
    targets: Targets,
    proposal: Proposal,
    decision: Decision,
    settings: Settings,
) -> Metrics:
    """The figures of one step. None: not measured, never 0.

    Args:
        step: 1-based.
        measured: the rollout, its readings and its signals.
        targets: what the update aimed at.
        proposal: the update.
        decision: what became of it.
        settings: as used in this step.
    """
    experience, readings = measured.experience, measured.readings
    reward = float(experience.scores.mean())
    count = len(experience.scores)
    chi_squared = _chi_squared_metrics(experience, targets)
    return {
        "step": step,
        "reward_mean": reward,
        "reward_std": float(experience.scores.std()) if count > 1 else None,
        **{f"reward_part/{name}": float(x.mean()) for name, x in experience.parts.items()},
        "reward_disagreement": _mean(experience.disagreement),
        "reward_clipped_share": _mean(experience.clipped),
        **length_metrics(experience),
        **{f"monitor/{name}": float(x.mean()) for name, x in experience.monitor.items()},
        **signal_metrics(measured.signals),
        **drift_metrics(readings),
        **update_metrics(proposal.facts),
        **guard_metrics(decision),
        "kl_coef_effective": targets.kl_coef_effective,
        "step_penalty": targets.step_penalty or None,
        "kl_drawn_share": None if targets.drawn is None else float(targets.drawn.mean()),
        **settings._asdict(),
        "objective": _objective(reward, settings.kl_coef, readings, targets.penalty, chi_squared),
        **chi_squared,
        **response_metrics(experience.rollout, experience.metered),
        **proposal.metrics,
        **_critic_metrics(experience, targets),
        "grad_norm": proposal.facts.grad_norm,
        "accepted": int(decision.verdict.keeps),
    }


def _chi_squared_metrics(experience: Experience, targets: Targets) -> Metrics:
    """χ²(π‖π_ref) as it reads, and where its charge was bound; nothing where it isn't penalised."""
    if not targets.penalty.chi_squared:
        return {}
    mask = experience.rollout.mask
    log_ratios = response_log_ratio(experience.log_ratio, mask)
    kl = torch.where(mask, experience.metered.kl, 0.0).double().sum(-1)
    reading = float(chi_squared_reading(log_ratios, kl))
    return {
        "chi_squared_policy_ref_per_response": reading if math.isfinite(reading) else None,
        "chi_squared_bound_share": None
        if targets.bound is None
        else float(targets.bound.double().mean()),
    }


def _objective(
    reward: float, kl_coef: float, readings: Readings, penalty: Penalty, chi_squared: Metrics
) -> float | None:
    """E[R] − β (KL + (c/2) χ²) as it reads."""
    divergence = readings.response.value
    if penalty.chi_squared:
        reading = chi_squared["chi_squared_policy_ref_per_response"]
        if reading is None:
            return None
        divergence += 0.5 * penalty.chi_squared * reading
    return reward - kl_coef * divergence


def length_metrics(experience: Experience) -> Metrics:
    """What the reward's own scores have to do with the tokens of the responses, about each prompt's mean."""
    rollout = experience.rollout
    lengths = rollout.mask.sum(-1).double()
    spread = spread_within(experience.scores.double(), lengths, rollout.prompt_index)
    slope = None
    if spread.correlation is not None and spread.first_std and spread.second_std:
        slope = spread.correlation * spread.first_std / spread.second_std
    return {"reward_length_correlation": spread.correlation, "reward_length_slope": slope}


def update_metrics(facts: UpdateFacts) -> Metrics:
    """The figures of a proposed update."""
    tails, canary = facts.tails, facts.canary
    found: Metrics = {
        "kl_new_old_per_token": _value(facts.kl_new_old),
        "kl_new_old_per_token_p99": None if tails is None else tails.kl_p99,
        "kl_new_old_per_token_max": None if tails is None else tails.kl_max,
        "log_ratio_new_old_max": None if tails is None else tails.log_ratio_max,
        "step_fraction": facts.fraction,
    }
    if canary is not None:
        found["canary_kl_policy_ref_per_response"] = canary.kl.value
        found["canary_sup_log_ratio"] = canary.away.sup_log_ratio
        found["canary_total_variation"] = canary.away.total_variation
        found |= {f"slice/{name}": value for name, value in canary.by_slice.items()}
    return found


def guard_metrics(decision: Decision) -> Metrics:
    """The figures of alarms and budget after a verdict."""
    budget = decision.state.budget
    found: Metrics = {
        f"alarm/{name}": each.statistic for name, each in decision.state.detectors.items()
    }
    if budget is not None:
        found["budget_log_ratio_spent"] = budget.spent.sup_log_ratio
        found["budget_variation_spent"] = budget.spent.total_variation
    return found


def signal_metrics(signals: Signals) -> Metrics:
    """The figures that a controller knows beside the reading."""
    return {
        "reward_std_within": signals.reward_std,
        "log_ratio_std_within": signals.log_ratio_std,
        "reward_log_ratio_correlation": signals.correlation,
        "response_length": signals.response_length,
    }


def drift_metrics(readings: Readings) -> Metrics:
    """The figures of a policy's drift."""
    response, token, tails = readings.response, readings.token, readings.tails
    return {
        **_interval(response),
        **_interval(token),
        f"{response.name}_max": tails.response_max,
        f"{token.name}_max": tails.token_max,
        f"{token.name}_p99": tails.token_p99,
        f"{response.name}_largest_share": response.largest_share,
        f"{response.name}_trusted": int(response.is_trusted),
        readings.origin.name: readings.origin.value,
        readings.sampler.name: readings.sampler.value,
        "k3_tail_tokens": tails.k3_tail_tokens,
    }


def _interval(reading: KLReading) -> Metrics:
    return {
        reading.name: reading.value,
        f"{reading.name}_low": reading.low,
        f"{reading.name}_high": reading.high,
    }


def _value(reading: KLReading | None) -> float | None:
    return None if reading is None else reading.value


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else float(values.float().mean())


def response_metrics(rollout: Rollout, metered: Metered) -> Metrics:
    """What the responses are like, beside their scores."""
    gap = (metered.logprobs - rollout.sampled_logprobs)[rollout.mask].abs().max()
    rows = rollout.responses_in_tokens()
    return {
        "entropy_per_token": float(masked_mean(metered.entropy, rollout.mask)),
        "distinct_2": distinct_n(rows, 2),
        "unique_share": unique_share(rows, rollout.prompt_index.tolist()),
        "eos_rate": float(rollout.finished.float().mean()),
        "sampler_logprob_gap_max": float(gap),
    }


def _critic_metrics(experience: Experience, targets: Targets) -> Metrics:
    mask, values, returns = experience.rollout.mask, experience.metered.values, targets.returns
    if values is None or returns is None:
        return {"explained_variance": None}
    explained = explained_variance(values[mask], returns[mask])
    return {"explained_variance": None if explained is None else float(explained)}
