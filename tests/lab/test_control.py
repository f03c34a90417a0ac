"""The simulated plant: its law and golden numbers (A6, A17), what a controller is shown, and the figures of a KL."""

import math

import pytest
import torch

from kleash.control import ControlConfig
from kleash.drift import measure_drift
from kleash.errors import InputError
from kleash.functional.divergences import reverse_kl
from kleash.lab.control import (
    Conditions,
    ScaleChange,
    Trace,
    controllers,
    figures,
    observe,
    simulate,
)
from kleash.lab.mdp import MDP, golden, optimum, tilt
from kleash.lab.plant import Plant, fastest_rise, plant, weight_for

TARGET = 2.04046781


@pytest.fixture(scope="module")
def simulated() -> Plant:
    return plant(golden())


def fixed(kl_coef: float) -> ControlConfig:
    return ControlConfig(controller="fixed", kl_coef=kl_coef)


@pytest.mark.parametrize("weight", [-7.0, -0.3, 0.0, 1e-4, 0.7, 5.0, 60.0])
def test_a_tilt_is_the_closed_form(weight: float, simulated: Plant) -> None:
    """Of the soft Bellman backup, of the sequences' weights and of the tree of prefixes alike."""
    mdp = golden()
    logits, ref = tilt(mdp, weight), mdp.ref_logits.log_softmax(-1)
    tilted = mdp.logprobs(ref).sum(-1) + weight * mdp.rewards
    own = mdp.logprobs(logits).sum(-1)
    torch.testing.assert_close(own, tilted - tilted.logsumexp(-1), rtol=0, atol=1e-10)
    law = simulated.law(weight)
    torch.testing.assert_close(law.probs, own.exp(), rtol=1e-9, atol=0)
    torch.testing.assert_close(law.kl_at, reverse_kl(logits, ref), rtol=1e-9, atol=1e-15)
    assert law.kl == pytest.approx(float(reverse_kl(own, simulated.ref_logprobs)), abs=1e-12)
    if weight == 0:
        assert law.kl == 0
    if weight > 0:
        torch.testing.assert_close(logits, optimum(mdp, 1 / weight), rtol=0, atol=1e-10)


def test_a_tilt_that_no_float_holds_is_refused() -> None:
    for weight in (1000.0, -1000.0, math.inf, math.nan):
        with pytest.raises(InputError, match="too far out"):
            tilt(golden(), weight)


def test_the_beta_of_a_target(simulated: Plant) -> None:
    assert weight_for(simulated, TARGET) == pytest.approx(5, abs=1e-6)
    assert fastest_rise(simulated, TARGET, eta=0.1) == 44
    # −log π_ref of [0, 3, 2, 0]
    best = golden().logprobs(golden().ref_logits).sum(-1)[golden().rewards.argmax()]
    assert simulated.kl_max == pytest.approx(-float(best), abs=1e-12)


@pytest.mark.parametrize("target", [0.0, -1.0, 8.1, math.inf, math.nan])
def test_a_target_that_no_policy_has_is_refused(target: float, simulated: Plant) -> None:
    with pytest.raises(InputError) as caught:
        weight_for(simulated, target)
    assert f"KL_max = −log π_ref(argmax R) = {simulated.kl_max:.6g}" in (
        caught.value.expected or ""
    )


def test_a_constant_reward_moves_nothing() -> None:
    shell = golden()
    with pytest.raises(InputError, match="drift"):
        plant(MDP(shell.vocab, shell.length, shell.ref_logits, torch.ones(4096).double()))


def test_free_mirror_descent(simulated: Plant) -> None:
    """A6: at β = 0 λ is tη."""
    trace = simulate(simulated, fixed(0), Conditions(eta=0.5, steps=9, batch=2))
    for step, kl in ((0, 0), (1, 0.07575), (2, 0.27516), (4, 0.80756), (8, 1.69836)):
        assert trace.kl[step] == pytest.approx(kl, abs=5e-6)


def test_the_next_kl_follows_from_the_betas(simulated: Plant) -> None:
    """Whoever has β of each step has every KL, under a controller that moves and a reward that changes too."""
    conditions = Conditions(steps=60, batch=64, delay=1, changes=(ScaleChange(30, 2.0),))
    trace = simulate(simulated, controllers(TARGET, 0.1)["ziegler"], conditions)
    assert len({*trace.kl_coef}) > 50
    weight = 0.0
    for step, (kl, kl_coef) in enumerate(zip(trace.kl, trace.kl_coef, strict=True)):
        assert kl == simulated.law(weight).kl
        weight = (1 - 0.1 * kl_coef) * weight + 0.1 * (2.0 if step >= 30 else 1.0)
    assert trace.held == 0


def test_a_fixed_beta_ends_at_its_optimum(simulated: Plant) -> None:
    """λ = S/β: with the reward's scale doubled, λ doubles."""
    conditions = Conditions(eta=1.0, steps=300, batch=2, changes=(ScaleChange(150, 2.0),))
    trace = simulate(simulated, fixed(0.2), conditions)
    assert trace.kl[149] == pytest.approx(TARGET, abs=1e-8)
    assert trace.kl[-1] == pytest.approx(3.33920208, abs=1e-8)  # A1: β = 0.1


def test_the_reading_is_the_meters(simulated: Plant) -> None:
    """And the signals are those of the sequences that were drawn."""
    mdp, weight = golden(), 3.0
    law = simulated.law(weight)
    drawn = law.probs.multinomial(100, replacement=True)
    reading, signals = observe(simulated, law, drawn, weight=weight, scale=2.0)
    kl = reverse_kl(tilt(mdp, weight), mdp.ref_logits.log_softmax(-1))[mdp.states()[drawn]]
    mask = torch.ones(100, 4, dtype=torch.bool)
    expected = measure_drift(kl, mask, torch.arange(100), reference=reading.reference)
    for name in ("value", "low", "high", "largest_share"):
        assert getattr(reading, name) == pytest.approx(getattr(expected, name), rel=1e-9)
    assert (reading.n, reading.clusters, reading.estimator) == (100, 100, "exact")
    rewards = 2 * mdp.rewards[drawn]
    log_ratio = (mdp.logprobs(tilt(mdp, weight)) - mdp.logprobs(mdp.ref_logits)).sum(-1)[drawn]
    assert signals.reward_std == pytest.approx(float(rewards.std()), rel=1e-9)
    assert signals.log_ratio_std == pytest.approx(float(log_ratio.std()), rel=1e-9)
    both = torch.stack([rewards, log_ratio])
    assert signals.correlation == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-9)
    assert (signals.num_responses, signals.response_length) == (100, 4)


def test_what_does_not_vary_correlates_with_nothing(simulated: Plant) -> None:
    law, drawn = simulated.law(0.0), torch.arange(50)
    at_reference = observe(simulated, law, drawn, weight=0.0)[1]
    assert (at_reference.log_ratio_std, at_reference.correlation) == (0, None)
    same = observe(simulated, law, torch.zeros(50, dtype=torch.long), weight=1.0)[1]
    assert (same.reward_std, same.correlation) == (pytest.approx(0, abs=1e-12), None)


def test_readings_are_unbiased_and_as_noisy_as_the_theory_says(simulated: Plant) -> None:
    """At 2.04 nats one batch of 512 has a standard error of 0.9 % of the KL."""
    weight = weight_for(simulated, TARGET)
    law = simulated.law(weight)
    readings = torch.tensor(
        [
            observe(simulated, law, drawn, weight=weight)[0].value / TARGET - 1
            for drawn in law.probs.multinomial(400 * 512, replacement=True).view(400, 512)
        ]
    )
    std = float(readings.std())
    assert abs(float(readings.mean())) <= 4 * std / 20
    assert std == pytest.approx(0.009, abs=0.001)


def test_under_a_delay_an_earlier_step_is_shown(simulated: Plant) -> None:
    """A fixed β draws the same sequences whatever it is shown."""
    prompt, late = (
        simulate(simulated, fixed(0.2), Conditions(steps=10, batch=8, delay=delay))
        for delay in (0, 3)
    )
    assert late.kl == prompt.kl
    for step, (reading, signals) in enumerate(late.shown):
        assert reading == prompt.shown[max(step - 3, 0)][0]
        assert signals.reward_std == prompt.shown[max(step - 3, 0)][1].reward_std
        assert signals.age == min(step, 3)
        assert prompt.shown[step][1].age == 0


def test_a_seed_repeats_bit_for_bit(simulated: Plant) -> None:
    def run(seed: int) -> Trace:
        config = controllers(TARGET, 0.2)["ziegler"]
        return simulate(simulated, config, Conditions(steps=40, batch=16, seed=seed))

    assert run(1) == run(1)
    assert run(1).shown != run(2).shown


def test_a_plant_that_runs_away_is_held_and_counted(simulated: Plant) -> None:
    """η·β = 6: λ would grow fivefold at each step, with its sign turned."""
    trace = simulate(simulated, fixed(60), Conditions(steps=30, batch=8))
    assert trace.held > 15
    assert all(math.isfinite(kl) for kl in trace.kl)
    assert max(trace.kl) == pytest.approx(
        max(simulated.law(simulated.low).kl, simulated.law(simulated.high).kl)
    )


def test_figures_of_curves_by_hand() -> None:
    risen = [0.0, 1.0, 1.79, 1.8, 2.3, 2.21, 2.19, 2.0]
    found = figures(risen, 2.0)
    assert (found.rise, found.settling, found.peak, found.recovery) == (3, 6, None, None)
    assert found.overshoot == pytest.approx(0.15)
    errors = [kl / 2 - 1 for kl in risen]
    assert found.mean_error == pytest.approx(sum(errors) / 8)
    assert found.rms == pytest.approx(math.sqrt(sum(e * e for e in errors) / 8))
    # What is before the disturbance is not judged by what is after it.
    found = figures([2.0, 2.0, 2.0, 3.0, 1.0, 1.9], 2.0, disturbed=2)
    assert (found.rise, found.overshoot, found.settling) == (0, 0, 0)
    assert (found.peak, found.recovery) == (0.5, 3)
    never = figures([0.0, 0.5, 3.0, 3.0], 2.0, disturbed=2)
    assert (never.rise, never.settling, never.recovery) == (None, None, None)
    assert never.overshoot == -0.75
    undisturbed = figures([2.0, 2.0, 2.1], 2.0, disturbed=1)
    assert (undisturbed.peak, undisturbed.recovery) == (pytest.approx(0.05), 0)


def test_only_the_last_steps_are_averaged() -> None:
    found = figures([*[0.0] * 50, *[1.1] * 150, *[9.0] * 20], 1.0, disturbed=200)
    assert found.mean_error == pytest.approx(0.1)
    assert found.rms == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "batch", "rise", "overshoot", "settling"),
    [
        ("ziegler", TARGET, 512, 56, 0.29, 208),
        ("ziegler", 0.5, 512, 15, 1.71, 134),
        ("ziegler-code", TARGET, 512, 64, 0.22, 178),
        ("ziegler-code", 0.5, 512, 15, 1.94, 166),
        ("ziegler-code", 0.5, 32, 15, 2.80, None),
        ("ppo", TARGET, 512, 43, 0.80, None),
        ("ppo", 0.5, 512, 13, 1.49, None),
        ("dual", TARGET, 512, 44, 0.31, 180),
        ("dual", 0.5, 512, 14, 1.56, 149),
    ],
)
def test_the_published_controllers_flaws(
    name: str,
    target: float,
    batch: int,
    rise: int,
    overshoot: float,
    settling: int | None,
    simulated: Plant,
) -> None:
    """A17: what they are known to do where β was right from the start, or (at 0.5 nats) too small by 3.5."""
    config = controllers(target, 0.2)[name]
    trace = simulate(simulated, config, Conditions(batch=batch, steps=400))
    found = figures(trace.kl, target)
    assert found.rise == pytest.approx(rise, rel=0.2)
    assert found.overshoot == pytest.approx(overshoot, rel=0.2)
    if settling is not None:
        assert found.settling == pytest.approx(settling, rel=0.2)
    else:  # in a limit cycle, outside the band for good, or too slow to tell within the run
        assert found.settling is None or found.rms > 0.1


@pytest.mark.parametrize("target", [TARGET, 0.5])
@pytest.mark.parametrize("eta", [pytest.param(0.1, marks=pytest.mark.slow), 0.3])
@pytest.mark.parametrize("delay", [0, 1])
def test_tilt_meets_the_target_as_fast_as_can_be_and_stays(
    target: float, eta: float, delay: int, simulated: Plant
) -> None:
    """A17 for ours: rise, overshoot, settling, mean; and a reward that is doubled half-way."""
    change = ScaleChange(300, 2.0)
    conditions = Conditions(eta=eta, delay=delay, steps=450, changes=(change,))
    trace = simulate(simulated, controllers(target, 0.2)["tilt"], conditions)
    found = figures(trace.kl, target, disturbed=change.step + 1)
    fastest, way = fastest_rise(simulated, target, eta), weight_for(simulated, target) / eta
    assert found.rise is not None
    assert found.rise <= max(1.2 * fastest, fastest + 2)
    assert found.overshoot <= 0.1
    assert found.settling is not None
    assert found.settling <= 1.5 * way
    assert abs(found.mean_error) <= 0.02
    assert found.rms <= 0.03
    assert found.recovery is not None
    assert found.recovery <= 20
    if delay == 0:  # else what happens before the first reading is the plant's own
        assert found.peak is not None
        assert found.peak <= 0.15


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_tilt_settles_from_a_start_that_is_wrong_by_a_hundred(
    factor: float, simulated: Plant
) -> None:
    right, wrong = (
        figures(
            simulate(simulated, controllers(TARGET, 0.2 * x)["tilt"], Conditions(steps=150)).kl,
            TARGET,
        )
        for x in (1.0, factor)
    )
    assert right.settling is not None
    assert wrong.settling is not None
    assert wrong.settling <= 2 * right.settling


@pytest.mark.parametrize(
    "wrong",
    [
        {"eta": 0.0},
        {"eta": -0.1},
        {"eta": math.nan},
        {"eta": math.inf},
        {"batch": 1},
        {"delay": -1},
        {"delay": 16},
        {"steps": 0},
        {"seed": -1},
        {"changes": (ScaleChange(0, 2.0),)},
        {"changes": (ScaleChange(600, 2.0),)},
        {"changes": (ScaleChange(5, 0.0),)},
        {"changes": (ScaleChange(5, math.nan),)},
        {"changes": (ScaleChange(5, 1e5), ScaleChange(6, 1e5))},
    ],
)
def test_conditions_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        Conditions(**wrong)
