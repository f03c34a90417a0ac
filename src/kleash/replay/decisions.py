"""Every decision of a run, made again from what was recorded before it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kleash import control, guard
from kleash.control import ControlConfig
from kleash.errors import ConfigError, InputError, KleashError
from kleash.guard import GuardConfig, GuardState, judge_policy
from kleash.ledger import Entry, MeasurementEntry, Problem, UpdateEntry, encode, kind_of
from kleash.records import KEEPING, ROUNDING, KLReading, Unit, carried_momentum, refreshed_share
from kleash.replay.overrides import Plan, overrides_of
from kleash.replay.sequence import action_of, problem_at

SKIPPED = "skipped"
"""What a run's first entry says where its self-test was not made."""


def replay(entries: Sequence[Entry]) -> list[Problem]:
    """Recompute every controller state, its kl_coef, and every verdict from readings, signals and config as recorded.

    A run of measurements has verdicts alone.

    After a mismatch the recomputation goes on from the recorded state, so that each mismatch is
    reported where it is. Sentences, the reasons of a verdict and a controller's note, are not
    compared: their wording may change between versions.
    """
    if not entries:
        return []
    if kind_of(entries) == "measurement":
        return _replay_measurements(entries)
    settings = settings_of(entries[0])
    if settings is None:
        return [
            problem_at(entries[0], "no usable configuration of controller, guard and optimizer")
        ]
    problems = _check_self_test(entries[0])
    plan = Plan(settings.guard, tuple(overrides_of(entries, settings.guard)[0]))
    before = _Standing(control.init(settings.rl), guard.start(settings.guard, settings.steps))
    updates = [entry for entry in entries if entry.type == "update"]
    # Records of before there was a plan have no state of a guard either.
    planned = any(entry.type == "plan.committed" for entry in entries)
    for step, entry in enumerate(updates, start=1):
        if planned and entry.body.get("guard") is None:
            problems.append(problem_at(entry, "the guard's state is missing"))
        before, settings = _under(plan.at(step), before, settings)
        before, found = _replay_update(entry, before, settings)
        problems += found
    return problems


class _Standing(NamedTuple):
    """Controller and guard between two steps."""

    control: control.State
    guard: GuardState
    applied: bool = True
    """Whether the last update was."""


class Settings(NamedTuple):
    """What a run's configuration says of its decisions."""

    rl: ControlConfig
    guard: GuardConfig
    steps: int
    checkpoint_every: int | None
    """None: a record of before there were checkpoints."""
    momentum: float
    refresh_every: int | None
    refresh_share: float


def _under(
    limits: GuardConfig, before: _Standing, settings: Settings
) -> tuple[_Standing, Settings]:
    """Standing and settings under the limits of the next step."""
    if limits == settings.guard:
        return before, settings
    carried = guard.carry(before.guard, settings.guard, limits, settings.steps)
    return before._replace(guard=carried), settings._replace(guard=limits)


def settings_of(started: Entry) -> Settings | None:
    """The settings in a run's first entry; None where that doesn't hold them."""
    try:
        config = started.body["config"]
        algorithm, rollout, train = config["algorithm"], config["rollout"], config.get("train", {})
        every = config["model"].get("refresh_every")
        momentum = carried_momentum(
            float(config["optimizer"]["beta1"]),
            int(algorithm["num_epochs"]),
            int(algorithm["num_minibatches"]),
            int(rollout["num_prompts"]) * int(rollout["group_size"]),
        )
        settings = Settings(
            ControlConfig.model_validate(config["rl"]),
            GuardConfig.model_validate(config["guard"]),
            int(train.get("steps", 1)),
            _number(train.get("checkpoint_every")),
            momentum,
            _number(every),
            float(config["model"].get("refresh_share", 1.0)),
        )
        guard.start(settings.guard, settings.steps)  # refuses a budget over no steps
        return settings
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, ConfigError):
        return None


def _replay_measurements(entries: Sequence[Entry]) -> list[Problem]:
    try:
        limits = GuardConfig.model_validate(entries[0].body["config"]["guard"])
    except (KeyError, TypeError, ValueError):
        return [problem_at(entries[0], "no usable configuration of the guard")]
    measured = [entry for entry in entries if entry.type == "measurement"]
    return [problem_at(e, what) for e in measured if (what := _wrong_measurement(e, limits))]


def _wrong_measurement(entry: Entry, limits: GuardConfig) -> str:
    try:
        measured = MeasurementEntry.from_json(entry.body)
        if measured.kl.name != "kl_policy_ref_per_response":
            return f"kl is {measured.kl.name}, where kl_policy_ref_per_response belongs"
        verdict = judge_policy(limits, measured.kl)
    except KleashError as error:
        return str(error)
    if measured.verdict.action != verdict.action:
        return f"the verdict is {measured.verdict.action}; the guard gives {verdict.action}"
    return ""


def _check_self_test(started: Entry) -> list[Problem]:
    """A run is only started with a self-test that passed, one that was skipped, or, in older records, none."""
    said = started.body.get("self_test", SKIPPED)
    if said == SKIPPED:
        return []
    try:
        fine = bool(said["checks"]) and all(
            check["passed"] is True and (check["limit"] is None or check["value"] <= check["limit"])
            for check in said["checks"]
        )
    except (KeyError, TypeError):
        fine = False
    return [] if fine else [problem_at(started, "self_test is not a self-test that passed")]


def _replay_update(
    entry: Entry, before: _Standing, settings: Settings
) -> tuple[_Standing, list[Problem]]:
    try:
        update = UpdateEntry.from_json(entry.body)
        decision = _decide(update, before.guard, settings)
        after = control.update(before.control, update.kl_control or update.kl, update.signals)
    except KleashError as error:
        kept = action_of(entry.body.get("verdict")) in KEEPING
        return before._replace(applied=kept), [problem_at(entry, str(error))]
    found = _wrong_readings(update, settings.rl.kl_unit)
    found += _wrong_signals(update, settings, applied=before.applied)
    found += _wrong_origin(update, settings.refresh_every)
    found += _wrong_facts(update, settings.guard)
    if update.kl_coef != after.kl_coef:
        found.append(f"kl_coef is {update.kl_coef!r}; the controller gives {after.kl_coef!r}")
    if update.verdict.action != decision.verdict.action:
        given = decision.verdict.action
        found.append(f"the verdict is {update.verdict.action}; the guard gives {given}")
    if len(update.verdict.alarms) != len(decision.verdict.alarms):
        rung = len(decision.verdict.alarms)
        found.append(f"{len(update.verdict.alarms)} alarms are told, where {rung} rang")
    try:
        recorded = control.from_json(update.control, settings.rl)
    except InputError:
        found.append("the controller's state is not a state at all")
        recorded = after
    if _without_note(update.control) != _without_note(after.to_json()):
        found.append("the controller's state is not the one its reading leads to")
        after = recorded
    watch, wrong = _guard_after(update, decision.state, settings)
    found += wrong
    standing = _Standing(control.raised(after, decision.raise_by), watch, update.verdict.keeps)
    return standing, [problem_at(entry, what) for what in found]


def _decide(update: UpdateEntry, state: GuardState, settings: Settings) -> guard.Decision:
    evidence = guard.Evidence(
        kl=update.kl, facts=update.facts, origin=update.kl_origin, sampler=update.kl_sampler
    )
    return guard.decide(
        settings.guard,
        state,
        update.step,
        evidence,
        guard.observed(evidence, update.signals, update.concordance),
        settings.checkpoint_every,
    )


def _guard_after(
    update: UpdateEntry, made: GuardState, settings: Settings
) -> tuple[GuardState, list[str]]:
    """The guard's state to go on from, and what is wrong with the one that was recorded."""
    if update.guard is None or encode(update.guard) == encode(made.to_json()):
        return made, []
    try:
        recorded = guard.from_json(update.guard, settings.guard, settings.steps)
    except InputError:
        return made, ["the guard's state is not a state at all"]
    return recorded, ["the guard's state is not the one its readings lead to"]


def _wrong_facts(update: UpdateEntry, config: GuardConfig) -> list[str]:
    """Measurements that are missing, or there where nothing was to be measured."""
    facts, part = update.facts, update.facts.fraction
    if update.guard is None:  # of before they were made
        return []
    alarms = config.alarms
    wrong = {
        "kl_sampler is there, and nothing limits it": (
            update.kl_sampler is not None and config.max_mismatch is None
        ),
        "concordance is there, and no alarm watches it": (
            update.concordance is not None and alarms.concordance is None
        ),
        "tails of an update that is not finite": not facts.finite and facts.tails is not None,
        "facts.fraction is no part of an update": part is not None and not 0.0 < part < 1.0,
        "facts.fraction is there, and nothing is to be shortened": (
            part is not None and config.on_breach != "shrink"
        ),
        "facts.over is there without facts.fraction": bool(facts.over) and part is None,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    return found + (_wrong_measurements(update, config) if facts.finite else [])


def _wrong_measurements(update: UpdateEntry, config: GuardConfig) -> list[str]:
    """Of an update that is finite: what was to be measured, exactly and on the rollout's own states."""
    facts, tails, moved = update.facts, update.facts.tails, update.facts.kl_new_old
    taken = (update.kl.n, update.kl.clusters)
    of_rollout = {"facts.kl_new_old": moved, "facts.kl_proposed": facts.kl_proposed}
    readings = {**of_rollout, "facts.canary.kl": None if facts.canary is None else facts.canary.kl}
    wrong = {
        "facts.kl_new_old is missing": moved is None,
        "the largest of facts.tails is under the mean": (
            tails is not None
            and moved is not None
            and tails.kl_max < moved.value * (1.0 - 1e-6) - ROUNDING
        ),
        "facts.tails is missing": facts.tails is None,
        "facts.entropy is missing": facts.entropy is None,
        "facts.kl_proposed is missing, and max_kl limits it": (
            config.max_kl is not None and facts.kl_proposed is None
        ),
        "facts.canary is missing, and there is a canary set": (
            config.needs_canary and facts.canary is None
        ),
    }
    found = [what for what, is_so in wrong.items() if is_so]
    found += [
        f"{name} is not exact"
        for name, reading in readings.items()
        if reading is not None and reading.estimator != "exact"
    ]
    return found + [
        f"{name} and kl are not readings of one rollout"
        for name, reading in of_rollout.items()
        if reading is not None and (reading.n, reading.clusters) != taken
    ]


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _without_note(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "note"}


def _wrong_readings(update: UpdateEntry, unit: Unit) -> list[str]:
    """Readings other than the ones that the guard and a controller with a target of that unit are shown."""
    found: list[str] = []
    if update.kl.name != "kl_policy_ref_per_response":
        found.append(f"kl is {update.kl.name}, where kl_policy_ref_per_response belongs")
    seen = update.kl_control
    if unit == "response":
        if seen is not None:
            found.append("kl_control is another reading, though the target is per response")
    elif seen is None or seen.name != "kl_policy_ref_per_token":
        found.append("kl_control is not kl_policy_ref_per_token, though the target is per token")
    elif _taken_from(seen) != _taken_from(update.kl):
        found.append("kl_control and kl are not readings of one rollout")
    return found


def _wrong_origin(update: UpdateEntry, refresh_every: int | None) -> list[str]:
    """A drift from the first reference that is missing, or there where the reference never changed."""
    origin = update.kl_origin
    if refresh_every is None:
        return [] if origin is None else ["kl_origin is there, though the reference stays"]
    if origin is None or origin.name != "kl_policy_origin_per_response":
        return ["kl_origin is not kl_policy_origin_per_response, though the reference changes"]
    if (origin.n, origin.clusters) != (update.kl.n, update.kl.clusters):
        return ["kl_origin and kl are not readings of one rollout"]
    return []


def _wrong_signals(update: UpdateEntry, settings: Settings, *, applied: bool) -> list[str]:
    """Signals that the readings, the configuration or the step before contradict."""
    signals, n = update.signals, (update.kl_control or update.kl).n
    # A power's last bit is the platform's own.
    momentum = settings.momentum
    is_momentum = math.isclose(signals.momentum, momentum, rel_tol=1e-12)
    refreshed = refreshed_share(settings.refresh_every, settings.refresh_share, update.step - 1)
    wrong = {
        f"signals.num_responses is {signals.num_responses}, where the reading is of {n}": (
            signals.num_responses != n
        ),
        f"signals.applied is not whether the update before was accepted, {applied}": (
            signals.applied != applied
        ),
        f"signals.momentum is {signals.momentum!r}; the configuration gives {momentum!r}": (
            not is_momentum
        ),
        f"signals.age is {signals.age}, where 0 belongs": signals.age != 0,
        f"signals.refreshed is {signals.refreshed!r}; the configuration gives {refreshed!r}": (
            signals.refreshed != refreshed
        ),
    }
    return [what for what, is_so in wrong.items() if is_so]


def _taken_from(reading: KLReading) -> tuple[Any, ...]:
    """What two readings of one rollout have in common, whatever their unit."""
    return reading.n, reading.clusters, reading.level, reading.estimator, reading.reference
