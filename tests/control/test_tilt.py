"""`tilt` on a plant that it knows: mirror descent on a Gaussian reward, where every number has a closed form."""

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash import control
from kleash.control import ControlConfig, Signals
from kleash.control.kalman import Belief, certain_of
from kleash.control.tilt import TiltMemory, advance
from kleash.records import KLReading

Reading = Callable[..., KLReading]


@dataclass
class Plant:
    """λ ← (1 − η β) λ + η s, KL = (λσ)²/2, u = λ r less a constant; s is the reward's scale.

    Another power than 2 is of no Gaussian: a plant that bends the wrong way.
    """

    eta: float
    sigma: float = 1.0
    scale: float = 1.0
    power: float = 2.0
    tilt: float = 0.0
    momentum: float = 0.0
    inertia: float = 0.0
    move: float = 0.0

    @property
    def kl(self) -> float:
        return abs(self.tilt * self.sigma) ** self.power / 2

    def signals(self, **more: Any) -> Signals:
        return Signals(
            num_responses=512,
            reward_std=self.scale * self.sigma,
            log_ratio_std=abs(self.tilt) * self.sigma,
            correlation=1.0 if self.tilt else None,
            response_length=16.0,
            momentum=self.momentum,
            **more,
        )

    def step(self, kl_coef: float) -> None:
        self.inertia = self.momentum * self.inertia + 1
        fresh = self.eta * (self.scale - kl_coef * self.tilt)
        self.move += (fresh - self.move) / self.inertia
        self.tilt += self.move

    def holding(self, target: float) -> float:
        """The β at which KL stays at the target."""
        return self.scale * self.sigma / math.sqrt(2 * target)


class Run:
    """A plant under a controller, and the KL before each update."""

    def __init__(self, plant: Plant, reading: Reading, **config: Any) -> None:
        self.plant, self.reading = plant, reading
        self.config = ControlConfig.model_validate({"kl_target": 2.0, **config})
        self.state = control.init(self.config)
        self.drift: list[float] = []
        self.betas: list[float] = []
        self.seen: list[tuple[KLReading, Signals]] = []

    def go(self, steps: int, *, delay: int = 0, undo: Callable[[int], bool] | None = None) -> "Run":
        applied = True
        for _ in range(steps):
            kl, now = self.plant.kl, len(self.drift)
            self.drift.append(kl)
            age = min(delay, now)
            self.seen.append((self.reading(kl, 0.01 * kl + 1e-6), self.plant.signals(age=age)))
            seen, signals = self.seen[now - age]
            signals = replace(signals, age=age, applied=applied)
            self.state = control.update(self.state, seen, signals)
            self.betas.append(self.state.kl_coef)
            applied = undo is None or not undo(now)
            if applied:
                self.plant.step(self.state.kl_coef)
        return self

    def held(self, target: float, within: float, last: int = 20) -> bool:
        return all(abs(kl / target - 1) <= within for kl in self.drift[-last:])


def test_the_start_is_the_closed_forms_for_a_gaussian(reading: Reading) -> None:
    """β = σ_r/√(2 target) would hold the target; on the way there `loosest` of it is left."""
    run = Run(Plant(eta=0.1, sigma=1.3), reading, kl_target=6.0).go(1)

    assert run.betas[0] == pytest.approx(0.2 * 1.3 / math.sqrt(12), rel=1e-12)


@pytest.mark.parametrize("eta", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("target", [0.5, 2.0, 18.0])
def test_the_target_is_met_as_fast_as_the_plant_can_and_not_passed(
    reading: Reading, eta: float, target: float
) -> None:
    plant = Plant(eta=eta)
    fastest = math.sqrt(2 * target) * math.sqrt(0.9) / eta
    run = Run(plant, reading, kl_target=target).go(int(3 * fastest) + 60)
    rise = next(i for i, kl in enumerate(run.drift) if kl >= 0.9 * target)

    assert rise <= 1.2 * math.ceil(fastest)
    assert max(run.drift) <= 1.05 * target
    assert run.held(target, 0.02)
    assert run.state.kl_coef == pytest.approx(plant.holding(target), rel=0.02)
    assert run.state.note == ""


@pytest.mark.parametrize("delay", [1, 2, 4])
def test_old_readings_are_brought_up_to_date_by_the_model(reading: Reading, delay: int) -> None:
    run = Run(Plant(eta=0.1), reading).go(120, delay=delay)

    assert max(run.drift) <= 1.1 * 2.0
    assert run.held(2.0, 0.03)


@pytest.mark.parametrize("momentum", [0.5, 0.8])
def test_momentum_is_braked_for_in_time(reading: Reading, momentum: float) -> None:
    """Told of it, the controller stops short; not told, it runs past the target."""
    told = Run(Plant(eta=0.1, momentum=momentum), reading).go(150)
    plant = Plant(eta=0.1, momentum=momentum)
    honest = plant.signals
    plant.signals = lambda **more: replace(honest(**more), momentum=0.0)  # type: ignore[method-assign]
    untold = Run(plant, reading).go(150)

    assert max(told.drift) <= 1.1 * 2.0
    assert max(untold.drift) > max(told.drift)
    assert told.held(2.0, 0.03)


def test_an_update_that_was_undone_is_not_thought_to_have_moved_the_policy(
    reading: Reading,
) -> None:
    run = Run(Plant(eta=0.1), reading).go(140, undo=lambda step: step % 2 == 0)

    assert max(run.drift) <= 1.1 * 2.0
    assert run.held(2.0, 0.03)


@pytest.mark.parametrize("factor", [0.01, 0.03, 30.0, 100.0])
def test_a_start_that_is_wrong_by_far_costs_a_few_steps(reading: Reading, factor: float) -> None:
    right = Run(Plant(eta=0.05), reading).go(150)
    wrong = Run(Plant(eta=0.05), reading, kl_coef=factor * 0.5).go(150)
    settled = [
        max((i for i, kl in enumerate(run.drift) if abs(kl / 2.0 - 1) > 0.1), default=0)
        for run in (right, wrong)
    ]

    assert settled[1] <= 1.3 * settled[0]
    assert wrong.held(2.0, 0.02)


@pytest.mark.parametrize("factor", [0.3, 0.5, 2.0, 3.9])
def test_a_rescaled_reward_is_answered_in_the_same_step(reading: Reading, factor: float) -> None:
    run = Run(Plant(eta=0.1), reading).go(100)
    before = run.state.kl_coef
    run.plant.scale = factor
    run.go(1)
    assert run.state.kl_coef == pytest.approx(factor * before, rel=0.1)
    run.go(60)

    assert max(abs(kl / 2.0 - 1) for kl in run.drift[100:]) <= 0.12
    assert run.held(2.0, 0.02)


@pytest.mark.parametrize("scale", [2.0**-20, 0.25, 1024.0])
def test_scaling_the_reward_scales_beta_and_nothing_else(reading: Reading, scale: float) -> None:
    """To the last bit for a power of two: no constant in the law has the reward's unit."""
    one = Run(Plant(eta=0.1), reading).go(60)
    # The same policies: the plant's λ is in units of 1/reward, so η goes with 1/scale².
    other = Run(Plant(eta=0.1 / scale**2, sigma=1.0, scale=1.0), reading)
    for (seen, signals), beta in zip(one.seen, one.betas, strict=True):
        spread = signals.reward_std
        assert spread is not None
        scaled = replace(signals, reward_std=spread * scale)
        other.state = control.update(other.state, seen, scaled)
        assert other.state.kl_coef == beta * scale


def test_a_target_per_token_is_the_same_target(reading: Reading) -> None:
    """16 tokens a response: the same β to the last bit, as √16 and 16 are exact."""
    one = Run(Plant(eta=0.1), reading).go(60)
    state = control.init(ControlConfig(kl_target=2.0 / 16, kl_unit="token"))
    for (seen, signals), beta in zip(one.seen, one.betas, strict=True):
        assert seen.low is not None
        assert seen.high is not None
        token = replace(
            seen, unit="token", value=seen.value / 16, low=seen.low / 16, high=seen.high / 16
        )
        state = control.update(state, token, signals)
        assert state.kl_coef == beta


def test_at_rest_on_the_target_nothing_moves(reading: Reading) -> None:
    run = Run(Plant(eta=0.1, tilt=2.0), reading, kl_coef=0.5).go(200)

    assert run.drift[100:] == pytest.approx([2.0] * 100, rel=0.005)
    assert run.betas[100:] == pytest.approx([0.5] * 100, rel=0.01)


def test_above_the_target_beta_rises_and_below_it_falls(reading: Reading) -> None:
    run = Run(Plant(eta=0.1), reading).go(100)
    signals = run.plant.signals()
    low, same, high = (
        control.update(run.state, reading(kl, 0.01), signals).kl_coef for kl in (1.6, 2.0, 2.4)
    )

    assert low < same < high


def test_a_ramp_is_led_by_a_step(reading: Reading) -> None:
    """The update of step 1 makes the policy of step 2, and is for the target there."""
    first = Signals(num_responses=64, reward_std=1.0)
    ramped, at_once = (
        control.update(
            control.init(ControlConfig(kl_target=6.0, kl_ramp=steps)), reading(0.0, 0.0), first
        )
        for steps in (2, 0)
    )

    assert ramped.kl_coef == at_once.kl_coef == pytest.approx(0.2 / math.sqrt(12))


def test_beta_falls_at_once_where_an_update_would_pass_the_reference(reading: Reading) -> None:
    """The one thing that goes before the slew: a start that is 70 times too large, from a policy at 4 nats."""
    state = control.init(ControlConfig(kl_target=6.0, kl_coef=1000.0))
    signals = Signals(num_responses=64, reward_std=1.0, log_ratio_std=3.0, correlation=0.5)

    assert control.update(state, reading(4.0, 0.2), signals).kl_coef < 20.0


def test_readings_that_stay_away_do_not_pile_up(reading: Reading) -> None:
    run = Run(Plant(eta=0.1), reading).go(5)
    state = run.state
    for _ in range(100):
        state = control.update(state, reading(math.nan), run.plant.signals())
    memory = state.memory

    assert isinstance(memory, TiltMemory)
    assert len(memory.pending) == 64
    assert state.kl_coef == run.state.kl_coef


def test_a_ramp_is_followed(reading: Reading) -> None:
    """At most 6 nats by step 200, spent evenly."""
    run = Run(Plant(eta=0.1), reading, kl_target=6.0, kl_ramp=200).go(260)

    for step in (50, 100, 150, 200, 259):
        assert run.drift[step] == pytest.approx(run.config.target_at(step + 1), rel=0.06)
    assert max(run.drift) <= 1.03 * 6.0


def test_drift_that_no_reward_asked_for_is_learnt(reading: Reading) -> None:
    """Every update adds 0.05 nats of its own: the closed form's β is too small, and κ makes up for it."""
    run = Run(Plant(eta=0.1), reading)
    for _ in range(300):
        run.go(1)
        run.plant.tilt = math.sqrt(run.plant.tilt**2 + 2 * 0.05)
    memory = run.state.memory
    assert isinstance(memory, TiltMemory)

    assert sum(run.drift[-50:]) / 50 == pytest.approx(2.0, rel=0.02)
    assert run.state.kl_coef > 1.2 * run.plant.holding(2.0)
    assert memory.belief.mean[3] > 1.2


def test_an_emergency_brakes_and_says_so(reading: Reading) -> None:
    run = Run(Plant(eta=0.1), reading).go(100)
    before = run.state.kl_coef
    after = control.update(run.state, reading(6.5, 0.1), run.plant.signals())

    assert after.kl_coef >= 3.0 * before
    assert "emergency" in after.note


def test_a_rescue_from_far_beyond_the_target(reading: Reading) -> None:
    run = Run(Plant(eta=0.1, tilt=20.0), reading).go(150)

    assert run.drift[0] == 200.0
    assert run.held(2.0, 0.03)


def test_a_target_smaller_than_one_update_is_named_with_the_number(reading: Reading) -> None:
    run = Run(Plant(eta=0.5), reading, kl_target=0.02).go(4)

    assert "one update moves KL by up to" in run.state.note
    assert "lower the learning rate" in run.state.note


def test_an_emergency_of_one_update_says_what_to_do_though_the_reading_is_wide(
    reading: Reading,
) -> None:
    """0.3 ± 0.2 nats after the first update, for a target of 1e-4: how long a stride is, is not known, but too long."""
    plant = Plant(eta=0.5)
    state = control.init(ControlConfig(kl_target=1e-4))
    for kl, width in ((0.0, 0.0), (0.3, 0.2)):
        state = control.update(state, reading(kl, width), plant.signals())

    assert "emergency" in state.note
    assert "lower the learning rate" in state.note


def test_a_target_that_is_out_of_reach_is_named_with_the_number(reading: Reading) -> None:
    """A policy that has come to rest at 1 nat, as one does on a reward with nothing left to give."""
    state = control.init(ControlConfig(kl_target=50.0))
    signals = Plant(eta=0.1, tilt=1.4).signals()
    for _ in range(150):
        state = control.update(state, reading(1.0, 0.01), signals)

    assert "steps from the target" in state.note


def test_rewards_without_spread_hold_beta_until_they_have_one(reading: Reading) -> None:
    state = control.init(ControlConfig(kl_target=2.0))
    flat = Signals(num_responses=64, reward_std=0.0)
    state = control.update(state, reading(0.0, 0.0), flat)
    assert (state.kl_coef, state.memory) == (0.1, None)
    assert "no spread" in state.note

    assert control.update(state, reading(0.0, 0.0), replace(flat, reward_std=1.0)).memory


@settings(max_examples=30)
@given(
    eta=st.floats(0.01, 0.4),
    sigma=st.floats(0.1, 10.0),
    target=st.floats(0.3, 30.0),
    delay=st.integers(0, 2),
)
def test_any_plant_of_the_family_is_held(
    reading: Reading, eta: float, sigma: float, target: float, delay: int
) -> None:
    """No knob: whatever learning rate, reward scale and target, where an update is shorter than the way."""
    eta /= sigma**2
    strides = math.sqrt(2 * target) / (eta * sigma)
    if not 4 <= strides <= 300:
        return
    run = Run(Plant(eta=eta, sigma=sigma), reading, kl_target=target)
    run.go(int(2.5 * strides) + 60, delay=delay)

    assert run.held(target, 0.05)
    assert max(run.drift) <= (1.15 if delay == 0 else 1.3) * target


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_models_forecast_is_the_plant(momentum: float) -> None:
    """With the plant's own numbers believed, many steps ahead, to rounding."""
    plant = Plant(eta=0.1, momentum=momentum)
    memory = believed(stride=0.1, pull=1.0)
    for kl_coef in (0.1, 0.4, 1.0, 0.0, 2.0, 0.7):
        plant.step(kl_coef)
        memory = advance(memory, kl_coef, momentum, 2.0)
        x, move, *_ = memory.belief.mean
        assert x == pytest.approx(plant.tilt, rel=1e-12)
        assert move == pytest.approx(plant.move, rel=1e-12)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_covariance_moves_by_the_models_derivatives(index: int, momentum: float) -> None:
    """One number uncertain at a time, against finite differences of the forecast."""
    start = believed(stride=0.13, pull=0.9, mean=(1.2, 0.07, 0.13, 1.3), inertia=2.0)
    variance = 0.01

    def after(shift: float, spread: float = 0.0) -> TiltMemory:
        mean = tuple(v + shift * (i == index) for i, v in enumerate(start.belief.mean))
        cov = certain_of([spread * (i == index) for i in range(4)])
        return advance(replace(start, belief=Belief(mean=mean, cov=cov)), 0.5, momentum, 2.0)

    up, down = (after(h).belief.mean for h in (1e-4, -1e-4))
    slope = [(a - b) / 2e-4 for a, b in zip(up, down, strict=True)]
    # Both wider than what is always doubted of the stride.
    known, unsure = (after(0.0, spread).belief.cov for spread in (0.01, 0.01 + variance))
    for i in range(4):
        for j in range(4):
            added = (unsure[i][j] - known[i][j]) / variance
            assert added == pytest.approx(slope[i] * slope[j], rel=1e-4, abs=1e-6)


def believed(
    *,
    stride: float,
    pull: float,
    mean: tuple[float, ...] | None = None,
    inertia: float = 0.0,
) -> TiltMemory:
    """A memory that is certain of all it believes."""
    belief = Belief(mean=mean or (0.0, 0.0, stride, 1.0), cov=certain_of((0.0,) * 4))
    return TiltMemory(belief=belief, inertia=inertia, moves=100, pull=pull, pull_variance=0.0)


def test_an_undone_update_says_nothing_of_the_stride(reading: Reading) -> None:
    """The policy was read where it was: as it had to be, or as if an update had moved it nowhere."""
    run = Run(Plant(eta=0.1), reading).go(10)
    memory = run.state.memory
    assert isinstance(memory, TiltMemory)
    stride = memory.belief.mean[2]
    tilt, run.plant.tilt = run.plant.tilt, math.sqrt(2 * run.drift[-1])
    seen = reading(run.plant.kl, 0.01 * run.plant.kl)
    found: list[float] = []
    for applied in (False, True):
        after = control.update(run.state, seen, run.plant.signals(applied=applied)).memory
        assert isinstance(after, TiltMemory)
        found.append(after.belief.mean[2])
    assert tilt > run.plant.tilt
    assert found[0] == pytest.approx(stride, rel=0.01)
    assert found[1] < 0.95 * stride


def test_what_the_model_cannot_follow_is_trimmed_away(reading: Reading) -> None:
    """Drift that grows and grows: κ lags behind it, and the mean is held all the same."""
    run = Run(Plant(eta=0.1), reading)
    for step in range(400):
        run.go(1)
        run.plant.tilt = math.sqrt(run.plant.tilt**2 + 2 * 0.0006 * step)
    memory = run.state.memory
    assert isinstance(memory, TiltMemory)

    assert sum(run.drift[-100:]) / 100 == pytest.approx(2.0, rel=0.006)
    assert memory.trim < 0.0


@pytest.mark.parametrize("power", [0.3, 0.6, 1.0, 3.0, 4.0])
@pytest.mark.parametrize(("eta", "delay"), [(0.02, 2), (0.1, 0), (0.5, 0)])
@pytest.mark.parametrize(("responses", "within"), [(64, 0.07), (512, 0.03)])
def test_a_plant_that_bends_otherwise_is_held_too(
    reading: Reading, power: float, eta: float, delay: int, responses: int, within: float
) -> None:
    """No trim may hold the policy off: one that was learnt on the way has to be unlearnt."""
    noise = random.Random(1)
    error = math.sqrt(2 / responses)

    def noisy(value: float, _: float) -> KLReading:
        return reading(value * (1 + error * noise.gauss(0, 1)), error * value)

    plant = Plant(eta=eta, sigma=4 ** (1 / power) / 5, power=power)  # on the target at λ = 5
    run = Run(plant, noisy).go(600, delay=delay)

    assert statistics.mean(run.drift[-150:]) == pytest.approx(2.0, rel=within)


@pytest.mark.parametrize(("momentum", "seed"), [(0.9, 10), (0.95, 7), (0.95, 10)])
def test_a_slow_plant_with_noisy_readings_is_not_held_far_below(
    reading: Reading, momentum: float, seed: int
) -> None:
    """On the way up little shows κ, and its doubt grew past all bounds: then each reading's noise was taken for it.

    Intervals are as wide as the reading is high, as those of few responses are.
    """
    noise, error = random.Random(seed), math.sqrt(2 / 64)

    def noisy(value: float, _: float) -> KLReading:
        seen = value * (1 + error * noise.gauss(0, 1))
        return reading(seen, error * seen + 1e-6)

    run = Run(Plant(eta=0.02, sigma=0.4, momentum=momentum), noisy).go(700)

    assert statistics.mean(run.drift[-150:]) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("eta", "ramp"), [(0.5, 300), (0.3, 300), (0.5, 100)])
def test_a_short_aim_does_not_throw_the_policy_past_the_reference(
    reading: Reading, eta: float, ramp: int
) -> None:
    """A quadratic ramp begins below one stride: the β that its first aims ask for would."""
    run = Run(Plant(eta=eta), reading, kl_ramp=ramp, kl_ramp_shape="quadratic").go(ramp + 100)

    assert max(run.drift) <= 1.15 * 2.0
    assert run.held(2.0, 0.03)


def test_a_policy_that_fell_back_comes_up_again(reading: Reading) -> None:
    """Whatever κ the fall was blamed on: the loosest β does not grow with it."""
    plant = Plant(eta=0.02, sigma=0.4)
    run = Run(plant, reading).go(400)
    plant.tilt *= 0.3
    run.go(900)

    assert run.held(2.0, 0.03)


def test_one_freak_reading_moves_the_trim_a_little(reading: Reading) -> None:
    state = Run(Plant(eta=0.05), reading).go(200).state
    signals = Plant(eta=0.05, tilt=2.0).signals()
    before = state.memory
    after = control.update(state, reading(20.0, 1.3), signals).memory
    assert isinstance(before, TiltMemory)
    assert isinstance(after, TiltMemory)

    assert 0 < before.trim - after.trim <= 0.05 * 0.2 * 2.0 + 1e-12


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_a_reference_that_comes_nearer_is_no_surprise(reading: Reading, share: float) -> None:
    """The policy is let go to the target again, at the pace that was learnt, and does not pass it."""
    run = Run(Plant(eta=0.1), reading).go(60)
    run.plant.tilt *= 1 - share
    seen, signals = reading(run.plant.kl, 0.01), run.plant.signals(refreshed=share)
    run.state = control.update(run.state, seen, signals)
    memory = run.state.memory
    assert isinstance(memory, TiltMemory)
    assert memory.belief.mean[0] == pytest.approx(math.sqrt(2 * run.plant.kl), abs=0.02)
    assert memory.belief.mean[2] == pytest.approx(0.1, rel=0.1)
    run.plant.step(run.state.kl_coef)
    run.drift.clear()
    run.seen.clear()
    run.go(60)

    assert run.held(2.0, 0.03, last=30)
    assert max(run.drift) < 1.04 * 2.0
    assert next(i for i, kl in enumerate(run.drift) if kl > 1.8) <= 1.4 * share * 2 / 0.1


def test_without_a_reading_a_refresh_leaves_nothing_to_believe(reading: Reading) -> None:
    run = Run(Plant(eta=0.1), reading).go(30)
    kl_coef = run.state.kl_coef
    held = control.update(run.state, reading(math.nan, 0.0), run.plant.signals(refreshed=1.0))

    assert (held.memory, held.kl_coef) == (None, kl_coef)


def test_the_trim_waits_until_the_target_is_near(reading: Reading) -> None:
    run = Run(Plant(eta=0.01), reading)
    trims: list[float] = []
    while run.plant.kl < 1.6:
        run.go(1)
        memory = run.state.memory
        assert isinstance(memory, TiltMemory)
        trims.append(memory.trim)

    assert set(trims) == {0.0}


def test_the_next_steps_target_is_aimed_at(reading: Reading) -> None:
    """An update made at step t is what is read at step t + 1."""
    run = Run(Plant(eta=0.1), reading, kl_target=6.0, kl_ramp=60).go(60)

    late = [run.drift[step] / run.config.target_at(step + 1) for step in range(40, 60)]
    early = [run.drift[step] / run.config.target_at(step) for step in range(40, 60)]
    assert abs(sum(late) / 20 - 1) < abs(sum(early) / 20 - 1)


def test_the_model_is_told_the_beta_that_was_in_force(reading: Reading) -> None:
    """On a rail the law's own answer is not what the policy felt."""
    run = Run(Plant(eta=0.1), reading, kl_coef=0.5, kl_coef_min=0.4, kl_coef_max=0.6).go(12)
    memory = run.state.memory
    assert isinstance(memory, TiltMemory)

    assert run.state.kl_coef == 0.4
    assert memory.pending == (0.4,)


def test_a_reading_counts_by_its_interval(reading: Reading) -> None:
    """Its error is that of √(2 KL): of KL over the root."""
    run = Run(Plant(eta=0.1), reading).go(60)
    memory = run.state.memory
    assert isinstance(memory, TiltMemory)
    forecast = advance(memory, run.state.kl_coef, 0.0, 2.0).belief
    for error in (0.02, 0.2, 2.0):
        after = control.update(run.state, reading(2.1, error), run.plant.signals()).memory
        assert isinstance(after, TiltMemory)
        root = math.sqrt(4.2)
        own = forecast.cov[0][0]
        gain = own / (own + (error / root) ** 2)
        moved = after.belief.mean[0] - forecast.mean[0]
        assert moved == pytest.approx(gain * (root - forecast.mean[0]), rel=1e-9)


def test_a_long_first_step_does_not_set_the_pace(reading: Reading) -> None:
    """Adam's first update is longer than its others: that is the stride's fault, not κ's, which would let KL go."""
    run = Run(Plant(eta=2.3), reading, kl_target=10.0).go(1)
    run.plant.eta = 0.1
    ratios, strides = list[float](), list[float]()
    for _ in range(8):
        run.go(1)
        memory = run.state.memory
        assert isinstance(memory, TiltMemory)
        ratios.append(memory.belief.mean[3])
        strides.append(memory.belief.mean[2])
    assert min(ratios) > 0.55
    assert strides[-1] < 0.15

    run.go(60)
    assert run.held(10.0, 0.02)
    assert max(run.drift) < 1.02 * 10.0


@pytest.mark.parametrize("pace", [1.03, 1.05])
def test_a_hold_that_runs_away_is_run_after(reading: Reading, pace: float) -> None:
    """Each step asks for more β than the rewards' spread says: surprises of one sign let κ move faster."""
    run = Run(Plant(eta=0.05), reading).go(60)
    drag, spread = 1.0, run.plant.sigma
    drift: list[float] = []
    for _ in range(50):
        drag *= pace
        # The policy is pulled harder and harder by what the recorded spread of rewards does not show.
        run.plant.scale = drag
        seen = reading(run.plant.kl, 0.05 * run.plant.kl)
        signals = replace(run.plant.signals(), reward_std=spread)
        run.state = control.update(run.state, seen, signals)
        run.plant.step(run.state.kl_coef)
        drift.append(run.plant.kl)

    assert statistics.mean(drift[-20:]) < 1.04 * 2.0
