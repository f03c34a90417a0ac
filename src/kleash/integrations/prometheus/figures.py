"""What a run shows Prometheus: read off its configuration and the records of its steps, and nothing else.

What was not measured is not on the page: 0 would be a measurement.
"""

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from kleash import __version__
from kleash.guard import GuardConfig
from kleash.integrations.prometheus.text import Family, Sample, page
from kleash.records import Action, StepRecord
from kleash.rewards.tally import REQUESTS

if TYPE_CHECKING:
    from kleash.train.config import RunConfig

KLS = {
    "kl_policy_ref_per_token": ("policy_ref", "token"),
    "kl_policy_origin_per_response": ("policy_origin", "response"),
    "kl_sampler_policy_per_token": ("sampler_policy", "token"),
    "kl_new_old_per_token": ("new_old", "token"),
}
"""Direction and unit of the KLs in a step's metrics, beside the reading that every record has."""

LIMITS = {
    "max_kl": "kl_policy_ref_per_response",
    "max_kl_new_old": "kl_new_old_per_token",
    "max_kl_new_old_p99": "kl_new_old_per_token_p99",
    "max_kl_new_old_token": "kl_new_old_per_token_max",
    "max_log_ratio": "log_ratio_new_old_max",
    "max_raw_grad_norm": "grad_norm",
    "max_mismatch": "kl_sampler_policy_per_token",
    "max_kl_canary": "canary_kl_policy_ref_per_response",
    "max_path_log_ratio": "budget_log_ratio_spent",
    "max_path_variation": "budget_variation_spent",
}
"""The metric that each limit or budget of `[guard]` is held against. Not here: a floor, and what is of many slices."""

IN_NATS = (*LIMITS, "min_entropy", "max_kl_slice", "stop_kl")
WITHOUT_UNIT = ("max_raw_grad_norm", "max_path_variation")
BUDGETS = ("max_path_log_ratio", "max_path_variation")

GAUGES = {
    "reward_mean": ("kleash_reward_mean", "Mean of the reward's own scores over the rollout."),
    "objective": ("kleash_objective", "Mean reward less kl_coef times the KL per response."),
    "entropy_per_token": ("kleash_entropy_nats", "Entropy of the policy, nats per token."),
    "response_length": ("kleash_response_tokens", "Mean tokens of a response."),
    "grad_norm": ("kleash_grad_norm", "Norm of the gradient before it is clipped."),
    "learning_rate": ("kleash_learning_rate", "As the step used it."),
}
"""Metrics that are gauges of their own: name and help."""


Labelled = tuple[Mapping[str, str], float | None]


class Figures:
    """What a run has shown so far.

    Args:
        config: of the run.
        clock: seconds that only go forward.
    """

    def __init__(self, config: "RunConfig", clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._updates: Counter[Action] = Counter()
        self._alarms: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._over = 0
        # Together, so that a page is never of two steps; replaced as one, so that no lock is needed.
        self._shown = self._clock(), self._page(None, config.guard)

    def observe(self, record: StepRecord, limits: GuardConfig) -> None:
        """Takes in a step.

        Args:
            record: as the loop yields it.
            limits: those that the step was under.
        """
        self._updates[record.verdict.action] += 1
        self._alarms.update(rung(record))
        self._seconds.update(record.seconds)
        self._over = self._over + 1 if is_over(record, self._config) else 0
        self._shown = self._clock(), self._page(record, limits)

    def page(self) -> bytes:
        """What a scrape gets: as of the last step, and how long ago that was."""
        since, shown = self._shown
        age = _gauge(
            "kleash_ledger_head_age_seconds",
            "Since a step was last entered in the ledger, or since the run began.",
            self._clock() - since,
        )
        return shown + page([age, _requests()])

    def _page(self, record: StepRecord | None, limits: GuardConfig) -> bytes:
        measured = [] if record is None else [*_step(record), *_kls(record, self._config)]
        return page([*self._counts(), *measured, *_limits(limits, record), *self._rings(record)])

    def _counts(self) -> Iterator[Family]:
        version = {"version": __version__, "python": platform.python_version()}
        yield _gauge("kleash_build_info", "What runs.", 1, version)
        yield _gauge("kleash_steps", "Steps that the run is to make.", self._config.train.steps)
        verdicts = {verdict: self._updates[verdict] for verdict in get_args(Action)}
        text = "Updates by the guard's verdict, since this process began."
        yield _family("kleash_updates_total", text, "verdict", verdicts, "counter")
        text = "Wall time by phase, since this process began."
        yield _family("kleash_phase_seconds_total", text, "phase", self._seconds, "counter")
        text = "Steps in a row at which the whole interval of the KL lay over its target."
        yield _gauge("kleash_kl_over_target_steps", text, self._over)

    def _rings(self, record: StepRecord | None) -> Iterator[Family]:
        plans = {name: config for name, (config, _) in self._config.guard.alarms.plans().items()}
        names = [*plans, *(name for name in self._alarms if name not in plans)]
        now = () if record is None else rung(record)
        text = "1 where the alarm rang at the last step."
        yield _family("kleash_alarm", text, "alarm", {name: int(name in now) for name in names})
        text = "Times the alarm rang, since this process began."
        counts = {name: self._alarms[name] for name in names}
        yield _family("kleash_alarms_total", text, "alarm", counts, "counter")
        found = {} if record is None else _named(record, "alarm/")
        text = "What speaks against the plan; it rings at the threshold."
        yield _family("kleash_alarm_evidence", text, "alarm", found)
        means = {name: plan.mean_time for name, plan in plans.items()}
        text = "Evidence at which the alarm rings: steps to a false alarm, on average."
        yield _family("kleash_alarm_threshold", text, "alarm", means)


def is_over(record: StepRecord, config: "RunConfig") -> bool:
    """Whether the whole interval of the KL lies over the target, in the target's unit; not, where there is none."""
    target = record.metrics.get("kl_target")
    low = record.metrics.get(f"kl_policy_ref_per_{config.rl.kl_unit}_low")
    return target is not None and low is not None and low > target


def _requests() -> Family:
    counts = REQUESTS.counts().items()
    return _labelled(
        "kleash_reward_requests_total",
        "Requests to reward servers, retries included, since this process began.",
        [({"server": server, "outcome": outcome}, count) for (server, outcome), count in counts],
        "counter",
    )


def rung(record: StepRecord) -> list[str]:
    """The alarms that rang at a step: what each says begins with its name."""
    return [text.partition(" ")[0] for text in record.verdict.alarms]


def _step(record: StepRecord) -> Iterator[Family]:
    yield _gauge("kleash_step", "The last step that was made.", record.step)
    yield _gauge("kleash_kl_coef", "β, the coefficient of the KL penalty.", record.kl_coef)
    for metric, (name, text) in GAUGES.items():
        yield _gauge(name, text, record.metrics.get(metric))
    text = "Mean score of one of several rewards, before its weight."
    yield _family("kleash_reward_part_mean", text, "part", _named(record, "reward_part/"))
    text = "Mean score of a reward that is watched and not trained on."
    yield _family("kleash_monitor_mean", text, "monitor", _named(record, "monitor/"))
    text = "Wall time of the last step, by phase."
    yield _family("kleash_step_seconds", text, "phase", record.seconds)


def _kls(record: StepRecord, config: "RunConfig") -> Iterator[Family]:
    kl, metrics = record.kl, record.metrics
    ours = {"direction": kl.direction, "unit": kl.unit, "reference": kl.reference}
    values: list[Labelled] = [(ours, kl.value)]
    low: list[Labelled] = [(ours, kl.low)]
    high: list[Labelled] = [(ours, kl.high)]
    for metric, (direction, unit) in KLS.items():
        labels = {"direction": direction, "unit": unit}
        if direction == kl.direction:
            labels["reference"] = kl.reference
        values.append((labels, metrics.get(metric)))
        low.append((labels, metrics.get(f"{metric}_low")))
        high.append((labels, metrics.get(f"{metric}_high")))
    yield _labelled("kleash_kl_nats", "KL as measured, never clamped.", values)
    yield _labelled("kleash_kl_nats_low", "Lower end of its 95 % interval.", low)
    yield _labelled("kleash_kl_nats_high", "Upper end of its 95 % interval.", high)
    text = "0 where one response holds so much of the KL that its interval rests on it."
    yield _gauge("kleash_kl_trusted", text, int(kl.is_trusted))
    text = "What the controller holds the KL from the reference at."
    unit = {"unit": config.rl.kl_unit}
    yield _gauge("kleash_kl_target_nats", text, metrics.get("kl_target"), unit)


def _limits(guard: GuardConfig, record: StepRecord | None) -> Iterator[Family]:
    stated: dict[str, float] = {
        name: bound for name in IN_NATS if (bound := getattr(guard, name)) is not None
    }
    nats = {name: bound for name, bound in stated.items() if name not in WITHOUT_UNIT}
    plain = {name: bound for name, bound in stated.items() if name in WITHOUT_UNIT}
    yield _family("kleash_limit_nats", "Limits and budgets of [guard].", "limit", nats)
    yield _family("kleash_limit", "Those of them that have no unit.", "limit", plain)
    if record is None:
        return
    found = {name: record.metrics.get(metric) for name, metric in LIMITS.items()}
    text = "What was measured at the last step, as a share of the limit on it."
    used = {
        name: value / stated[name]
        for name, value in found.items()
        if value is not None and name in stated
    }
    yield _family("kleash_limit_used_ratio", text, "limit", used)
    text = "What updates have cost of the run's budget: nats, or total variation."
    spent = {name: found[name] for name in BUDGETS}
    yield _family("kleash_budget_spent", text, "budget", spent)


def _named(record: StepRecord, kind: str) -> dict[str, float | int | None]:
    """The metrics whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(kind): value
        for name, value in record.metrics.items()
        if name.startswith(kind)
    }


def _gauge(
    name: str, text: str, value: float | None, labels: Mapping[str, str] | None = None
) -> Family:
    return _labelled(name, text, [(labels or {}, value)])


def _family(
    name: str,
    text: str,
    by: str,
    values: Mapping[str, float | None],
    kind: Literal["gauge", "counter"] = "gauge",
) -> Family:
    """A family that one label tells apart."""
    return _labelled(name, text, [({by: each}, value) for each, value in values.items()], kind)


def _labelled(
    name: str,
    text: str,
    values: Sequence[Labelled],
    kind: Literal["gauge", "counter"] = "gauge",
) -> Family:
    samples = (Sample(value=v, labels=labels) for labels, v in values if v is not None)
    return Family(name=name, kind=kind, help=text, samples=tuple(samples))
