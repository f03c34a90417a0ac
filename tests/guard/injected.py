"""Breaches and near misses of every limit, drawn at random and shown to the guard, for tests and `benchmarks/`."""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from kleash.guard import Evidence, GuardConfig, GuardState, allowance, check, decide, start
from kleash.records import CanaryFacts, Distance, KLReading, StepTails, UpdateFacts

STEPS = 100
SLICES = ("films", "books", "names")

Kind = Literal["just over", "far over", "nan", "inf", "-inf", "below zero", "missing"]
KINDS: tuple[Kind, ...] = ("just over", "far over", "nan", "inf", "-inf", "below zero", "missing")
IMPOSSIBLE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "below zero": -1.0}


def kl(name: str, value: float) -> KLReading:
    """A reading; its name says direction and unit."""
    direction, unit = name.removeprefix("kl_").split("_per_")
    rest = {"low": None, "high": None, "n": 64, "clusters": 16, "estimator": "exact"}
    return KLReading(value=value, direction=direction, unit=unit, reference="base", **rest)  # pyright: ignore[reportArgumentType]


Put = Callable[[Evidence, float | None], Evidence]
"""The evidence with one measurement as it is told; None: it was not measured."""


def _facts(evidence: Evidence, **changed: object) -> Evidence:
    return replace(evidence, facts=replace(evidence.facts, **changed))  # pyright: ignore[reportArgumentType]


def _tail(name: str) -> Put:
    def put(evidence: Evidence, value: float | None) -> Evidence:
        tails = evidence.facts.tails
        assert tails is not None
        return _facts(evidence, tails=None if value is None else replace(tails, **{name: value}))

    return put


def _reading(field: str, name: str) -> Put:
    def put(evidence: Evidence, value: float | None) -> Evidence:
        reading = None if value is None else kl(name, value)
        if field in ("kl", "origin", "sampler"):
            return replace(evidence, **{field: reading})
        return _facts(evidence, **{field: reading})

    return put


def _canary(change: Callable[[CanaryFacts, float], CanaryFacts]) -> Put:
    def put(evidence: Evidence, value: float | None) -> Evidence:
        canary = evidence.facts.canary
        assert canary is not None
        return _facts(evidence, canary=None if value is None else change(canary, value))

    return put


def _slice(evidence: Evidence, value: float | None) -> Evidence:
    canary = evidence.facts.canary
    assert canary is not None
    by_slice = {} if value is None else {**canary.by_slice, SLICES[1]: value}
    return _facts(evidence, canary=replace(canary, by_slice=by_slice))


class Target(NamedTuple):
    """One measurement that a setting limits."""

    setting: str
    put: Put
    is_floor: bool = False
    is_optional: bool = False
    """There may be nothing to measure: missing is no breach."""
    is_always_number: bool = True
    """What can't be one is refused whether or not a limit is set."""


RESPONSE = "kl_policy_ref_per_response"
TARGETS: dict[str, Target] = {
    "drift": Target("max_kl", _reading("kl", RESPONSE), is_optional=True),
    "drift from the origin": Target(
        "max_kl", _reading("origin", "kl_policy_origin_per_response"), is_optional=True
    ),
    "drift proposed": Target("max_kl", _reading("kl_proposed", RESPONSE)),
    "KL of the update": Target("max_kl_new_old", _reading("kl_new_old", "kl_new_old_per_token")),
    "its 99th percentile": Target("max_kl_new_old_p99", _tail("kl_p99")),
    "its largest": Target("max_kl_new_old_token", _tail("kl_max")),
    "log-ratio": Target("max_log_ratio", _tail("log_ratio_max")),
    "entropy": Target("min_entropy", lambda e, x: _facts(e, entropy=x), is_floor=True),
    "gradient": Target("max_raw_grad_norm", lambda e, x: _facts(e, grad_norm=x)),
    "mismatch": Target("max_mismatch", _reading("sampler", "kl_sampler_policy_per_token")),
    "canary": Target("max_kl_canary", _canary(lambda c, x: replace(c, kl=kl(RESPONSE, x)))),
    "slice": Target("max_kl_slice", _slice),
    "path, log-ratio": Target(
        "max_path_log_ratio",
        _canary(lambda c, x: replace(c, moved=replace(c.moved, sup_log_ratio=x))),
        is_always_number=False,
    ),
    "path, variation": Target(
        "max_path_variation",
        _canary(lambda c, x: replace(c, moved=replace(c.moved, total_variation=x))),
        is_always_number=False,
    ),
}
SETTINGS = tuple(dict.fromkeys(target.setting for target in TARGETS.values()))

FINE = Evidence(
    kl=kl(RESPONSE, 0.0),
    origin=kl("kl_policy_origin_per_response", 0.0),
    sampler=kl("kl_sampler_policy_per_token", 0.0),
    facts=UpdateFacts(
        finite=True,
        kl_new_old=kl("kl_new_old_per_token", 0.0),
        grad_norm=0.0,
        tails=StepTails(kl_p99=0.0, kl_max=0.0, log_ratio_max=0.0),
        entropy=1e9,
        kl_proposed=kl(RESPONSE, 0.0),
        canary=CanaryFacts(
            kl=kl(RESPONSE, 0.0),
            by_slice=dict.fromkeys(SLICES, 0.0),
            moved=Distance(sup_log_ratio=0.0, total_variation=0.0),
            away=Distance(sup_log_ratio=0.0, total_variation=0.0),
        ),
    ),
)
"""Everything was measured, and nothing moved."""


class Case(NamedTuple):
    """What the guard is shown, and what was done to it."""

    config: GuardConfig
    state: GuardState
    evidence: Evidence
    target: str
    kind: str

    @property
    def is_accepted(self) -> bool:
        """By the verdict, or as a part of an update to be kept."""
        verdict = decide(self.config, self.state, 1, self.evidence, {}, None).verdict
        # The policy as it stands is no part of what shortens an update.
        seen = self.target.startswith("drift") and self.target != "drift proposed"
        breach = check(self.config, self.state, self.evidence)
        return verdict.keeps or not (seen or breach.unfit or breach.too_far)

    @property
    def is_refused(self) -> bool:
        """By either."""
        breach = check(self.config, self.state, self.evidence)
        verdict = decide(self.config, self.state, 1, self.evidence, {}, None).verdict
        return not verdict.keeps or bool(breach.unfit or breach.too_far)


def _bound(config: GuardConfig, state: GuardState, setting: str) -> float | None:
    """The largest value that is allowed, or the least."""
    if not setting.startswith("max_path"):
        return getattr(config, setting)
    if state.budget is None:
        return None
    left = allowance(state.budget)
    return left.sup_log_ratio if setting == "max_path_log_ratio" else left.total_variation


def _configured(draw: random.Random, needed: tuple[str, ...]) -> tuple[GuardConfig, GuardState]:
    """Some limits, of any size; those needed among them."""
    kept = [name for name in SETTINGS if name in needed or draw.random() < 0.6]
    limits = {name: 10.0 ** draw.uniform(-6.0, 3.0) for name in kept}
    config = GuardConfig.model_validate({**limits, "on_breach": draw.choice(["shrink", "reject"])})
    return config, start(config, STEPS)


def _within(
    draw: random.Random, config: GuardConfig, state: GuardState, share: Callable[[], float]
) -> Evidence:
    """Evidence in which every measurement is a share of its limit, or over its floor by as much."""
    evidence = FINE
    for target in TARGETS.values():
        bound, part = _bound(config, state, target.setting), share()
        free = 10.0 ** draw.uniform(-6.0, 3.0)
        scaled = free if bound is None else bound * part
        if bound is not None and target.is_floor:
            scaled = bound / max(part, 1e-6)
        evidence = target.put(evidence, scaled)
    fraction = draw.choice([None, draw.uniform(0.001, 1.0)])
    return _facts(evidence, fraction=fraction)


def _broken(draw: random.Random, bound: float, kind: Kind, *, is_floor: bool) -> float | None:
    """A value that breaks a limit."""
    if kind == "missing":
        return None
    if kind in IMPOSSIBLE:
        return IMPOSSIBLE[kind]
    if kind == "just over":
        return math.nextafter(bound, 0.0 if is_floor else math.inf)
    factor = 10.0 ** draw.uniform(0.01, 6.0)
    return bound / factor if is_floor else bound * factor


def draw_breach(draw: random.Random) -> Case:
    """One measurement breaks its limit, or can't be; all others are within theirs."""
    name = draw.choice(list(TARGETS))
    target = TARGETS[name]
    config, state = _configured(draw, (target.setting,))
    bound = _bound(config, state, target.setting)
    assert bound is not None
    kinds: list[Kind] = [k for k in KINDS if not (k == "missing" and target.is_optional)]
    kind: Kind = draw.choice(kinds)
    evidence = _within(draw, config, state, lambda: draw.choice([0.0, 1.0, draw.random()]))
    value = _broken(draw, bound, kind, is_floor=target.is_floor)
    if kind in IMPOSSIBLE and target.is_always_number and target.setting != "max_mismatch":
        without = draw.random() < 0.5  # no limit is needed to refuse it
        config = config.model_copy(update={target.setting: None} if without else {})
    return Case(config, state, target.put(evidence, value), name, kind)


def draw_near_miss(draw: random.Random) -> Case:
    """Every measurement is at its limit, or under it by a hair, or anywhere within."""
    config, state = _configured(draw, ())
    just_under = math.nextafter(1.0, 0.0)
    shares = lambda: draw.choice([1.0, 1.0, just_under, draw.random()])  # noqa: E731
    return Case(config, state, _within(draw, config, state, shares), "all", "within")


class Found(NamedTuple):
    """What the guard made of what was injected."""

    injected: Counter[tuple[str, str]]
    """By target and kind."""
    accepted: Counter[tuple[str, str]]
    """Of these, in any way."""
    within: int
    refused: int
    """Of those that were within their limits."""


def inject(count: int, seed: int) -> Found:
    """So many breaches, and as many near misses."""
    draw = random.Random(seed)
    injected, accepted, refused = Counter(), Counter(), 0
    for _ in range(count):
        case = draw_breach(draw)
        injected[case.target, case.kind] += 1
        accepted[case.target, case.kind] += case.is_accepted
    for _ in range(count):
        refused += draw_near_miss(draw).is_refused
    return Found(injected, +accepted, count, refused)
