"""Controllers of β on a simulated plant, and figures of what they did.

What a controller sees of the plant is what it sees in training, a reading by the same meter from a batch of sampled
sequences; what it did is judged by the true KL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash import control
from kleash.control import ControlConfig
from kleash.drift import measure_drift
from kleash.errors import InputError
from kleash.lab.plant import LEAST_SPREAD, RISEN, Law, Plant
from kleash.records import KLReading, Signals

BAND = 0.1
"""How far from the target, relatively, a KL still counts as settled."""
WINDOW = 150
"""Steps over which what remains of the error is averaged."""
MAX_DELAY = 15
MAX_BATCH = 2**20
MAX_STEPS = 100_000
MAX_ETA = 1e6
MAX_SCALE = 1e6
"""The reward's scale may move so far, up or down."""


class ScaleChange(NamedTuple):
    """A reward that from a step on is larger, or smaller."""

    step: int
    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What a controller is put to.

    Raises:
        InputError: a number is out of its range.
    """

    eta: float = 0.1
    """η, the size of an update."""
    batch: int = 512
    """Sequences in a rollout."""
    delay: int = 0
    """D, updates that a reading is late: at step t that of step t − D is shown."""
    seed: int = 0
    """Of the sequences drawn."""
    steps: int = 600
    changes: tuple[ScaleChange, ...] = ()
    """Of the reward's scale S, which starts at 1."""

    def __post_init__(self) -> None:
        """Refuses what cannot be simulated."""
        _in_range("eta", self.eta, self.eta > 0 and self.eta <= MAX_ETA, f"above 0, to {MAX_ETA:g}")
        for name, value, low, high in (
            ("batch", self.batch, 2, MAX_BATCH),
            ("delay", self.delay, 0, MAX_DELAY),
            ("seed", self.seed, 0, 2**63 - 1),
            ("steps", self.steps, 1, MAX_STEPS),
        ):
            _in_range(name, value, low <= value <= high, f"a whole number, {low} to {high}")
        scale = 1.0
        for step, factor in self.changes:
            expected = f"at a step from 1 to {self.steps - 1}, the last of this run"
            _in_range("change of the reward", step, 1 <= step < self.steps, expected)
            scale *= factor
            expected = f"a scale from {1 / MAX_SCALE:g} to {MAX_SCALE:g}"
            held = 1 / MAX_SCALE <= scale <= MAX_SCALE
            _in_range("change of the reward", factor, held, expected)

    def scale(self, step: int) -> float:
        """S, what the reward is multiplied with at a step."""
        return math.prod(change.factor for change in self.changes if change.step <= step)


def _in_range(name: str, value: float, is_held: bool, expected: str) -> None:
    if not is_held:
        raise InputError(f"the simulation's {name} is wrong", expected=expected, got=f"{value}")


class Trace(NamedTuple):
    """What happened, step by step: `kl[t + 1]` follows from `kl_coef[0..t]` by the plant's law alone."""

    kl: list[float]
    """KL(π‖π_ref) of the policy of each step, nats per response, exact."""
    kl_coef: list[float]
    """β of each step's update."""
    shown: list[tuple[KLReading, Signals]]
    """What the controller was told at each step."""
    held: int
    """Updates after which λ would have left the range that floats hold, where it was kept: the plant ran away."""


def simulate(plant: Plant, config: ControlConfig, conditions: Conditions) -> Trace:
    """A run of one controller from the reference, λ = 0.

    The controller is asked before each update, with a reading of the policy about to be updated (or, under a delay,
    of an earlier one), and the update is made with the β that it answers. One with η·β above 2 throws λ farther than
    it was, to the other side: it is held where every probability can be represented, and counted.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> from kleash.lab.plant import plant
        >>> fixed = ControlConfig(controller="fixed", kl_coef=0.0)
        >>> trace = simulate(plant(golden()), fixed, Conditions(eta=0.5, steps=9))
        >>> [round(trace.kl[step], 5) for step in (1, 2, 4, 8)]
        [0.07575, 0.27516, 0.80756, 1.69836]
    """
    generator = torch.Generator().manual_seed(conditions.seed)
    state, weight = control.init(config), 0.0
    seen: list[tuple[KLReading, Signals]] = []
    trace = Trace([], [], [], 0)
    held = 0
    for step in range(conditions.steps):
        scale, law = conditions.scale(step), plant.law(weight)
        drawn = law.probs.multinomial(conditions.batch, replacement=True, generator=generator)
        seen.append(observe(plant, law, drawn, weight=weight, scale=scale))
        reading, signals = seen[max(step - conditions.delay, 0)]
        signals = replace(signals, age=min(conditions.delay, step))
        state = control.update(state, reading, signals)
        trace.kl.append(law.kl)
        trace.kl_coef.append(state.kl_coef)
        trace.shown.append((reading, signals))
        proposed = (1 - conditions.eta * state.kl_coef) * weight + conditions.eta * scale
        weight = plant.hold(proposed)
        held += weight != proposed
    return trace._replace(held=held)


def observe(
    plant: Plant, law: Law, drawn: Tensor, *, weight: float, scale: float = 1.0
) -> tuple[KLReading, Signals]:
    """What training would have measured from these sequences.

    Args:
        plant: the plant.
        law: of the policy that drew them.
        drawn: [B], the sequences, by number.
        weight: λ of that policy.
        scale: S.

    Returns:
        The reading, exact at each sampled prefix, each sequence a cluster of its own; and the other signals. On a
        tilt u = log π/π_ref = λR − log Z, so that reward and log-ratio correlate wholly, or at λ = 0 not at all.
    """
    kl = law.kl_at[plant.prefixes[drawn]]
    mask = torch.ones_like(kl, dtype=torch.bool)
    reading = measure_drift(kl, mask, torch.arange(len(drawn)), reference="the problem's reference")
    spread = float(plant.mdp.rewards[drawn].std())
    return reading, Signals(
        num_responses=len(drawn),
        reward_std=scale * spread,
        log_ratio_std=abs(weight) * spread,
        correlation=math.copysign(1.0, weight) if weight and spread > LEAST_SPREAD else None,
        response_length=float(plant.mdp.length),
    )


class Figures(NamedTuple):
    """How a KL came to its target and was held there. Steps and, relative to the target, shares; None: never."""

    rise: int | None
    """First step with KL ≥ 0.9 T."""
    overshoot: float
    """max KL/T − 1 before the disturbance; negative where the target was never reached."""
    settling: int | None
    """First step from which KL stays within ±10 % of T, up to the disturbance."""
    rms: float
    """Root mean square of KL/T − 1 over the last 150 steps before the disturbance."""
    mean_error: float
    """Mean of KL/T − 1 over the same steps."""
    peak: float | None
    """max |KL/T − 1| after the disturbance."""
    recovery: int | None
    """Steps from the disturbance on until KL stays within ±10 % of T."""


def figures(kl: Sequence[float], target: float, disturbed: int | None = None) -> Figures:
    """The figures of a KL, step by step.

    Args:
        kl: of the policy of each step, nats.
        target: T.
        disturbed: the first step whose update something new acts on, where there is one.

    Examples:
        >>> found = figures([0.0, 1.0, 2.6, 2.1, 2.0], target=2.0)
        >>> found.rise, round(found.overshoot, 6), found.settling
        (2, 0.3, 3)
    """
    errors = [nats / target - 1 for nats in kl]
    before = errors[:disturbed]
    after = [] if disturbed is None else errors[disturbed:]
    last = before[-WINDOW:]
    return Figures(
        rise=next(
            (step for step, nats in enumerate(kl[:disturbed]) if nats >= RISEN * target), None
        ),
        overshoot=max(before),
        settling=_settled(before),
        rms=math.sqrt(sum(error**2 for error in last) / len(last)),
        mean_error=sum(last) / len(last),
        peak=max(map(abs, after), default=None),
        recovery=_settled(after),
    )


def _settled(errors: Sequence[float]) -> int | None:
    """The first step from which all stay within the band; None where the last one is not."""
    outside = [step for step, error in enumerate(errors) if not abs(error) <= BAND]
    first = outside[-1] + 1 if outside else 0
    return first if first < len(errors) else None


def controllers(target: float, kl_coef: float) -> dict[str, ControlConfig]:
    """The controllers that can be put to a plant, by name.

    Args:
        target: T, nats per response.
        kl_coef: β before the first reading.
    """
    laws: dict[str, dict[str, Any]] = {
        "tilt": {},
        "pid": {},
        "dual": {},
        "ppo": {},
        "ziegler": {"ziegler": {"gain": 0.1}},
        "ziegler-code": {"controller": "ziegler"},
        "fixed": {},
    }
    start = {"kl_coef": kl_coef, "kl_target": target}
    return {
        name: ControlConfig.model_validate({"controller": name, **start, **law})
        for name, law in laws.items()
    }
