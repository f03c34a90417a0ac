"""Curves at equal KL, peaks that are not the largest of noise, and forms that are found again."""

import math
import random
from statistics import fmean

import pytest

from kleash.lab.study.curves import (
    FORMS,
    Curve,
    at,
    curve,
    fit_form,
    fit_mean,
    grid,
    mean_curve,
    peaks,
    predicted,
    rest_above,
    values_at,
)

D = tuple(0.1 + 0.1 * i for i in range(60))


def of(form: str, alpha: float, beta: float) -> Curve:
    bends = (lambda d: d * d) if form == FORMS[0] else (lambda d: d * math.log(d))
    return Curve(D, tuple(alpha * d - beta * bends(d) for d in D))


@pytest.mark.parametrize(
    ("form", "peak"), [(FORMS[0], 0.9 / (2 * 0.15)), (FORMS[1], math.exp(0.9 / 0.5 - 1))]
)
def test_forms_are_found_again_and_extrapolate(form: str, peak: float) -> None:
    beta = 0.15 if form == FORMS[0] else 0.5
    found = fit_form(of(form, 0.9, beta), form, 0.0)
    assert found is not None
    assert (found.alpha, found.beta, found.peak) == pytest.approx((0.9, beta, peak))
    assert found.held_out == pytest.approx(1.0)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert predicted(form, found, 4.0) == pytest.approx(at(of(form, 0.9, beta), 4.0))


def test_the_wrong_form_is_told_by_what_it_was_not_shown() -> None:
    log = of(FORMS[1], 0.9, 0.5)
    right, wrong = fit_form(log, FORMS[1], 0.0), fit_form(log, FORMS[0], 0.0)
    assert right is not None
    assert wrong is not None
    assert right.error == pytest.approx(0.0, abs=1e-9)
    assert wrong.error is not None
    assert wrong.error > 0.2


def test_a_gain_that_only_rises_has_no_peak() -> None:
    found = fit_form(Curve(D, tuple(0.5 * d + 0.02 * d * d for d in D)), FORMS[0], 0.0)
    assert found is not None
    assert found.peak is None


def test_values_between_steps_and_none_beyond() -> None:
    line = Curve((1.0, 2.0, 4.0), (0.0, 10.0, 30.0))
    assert [at(line, d) for d in (0.5, 1.0, 3.0, 4.0, 4.1)] == [None, 0.0, 20.0, 30.0, None]


def test_a_curve_that_turns_back_has_the_mean_of_its_visits() -> None:
    line = Curve((0.0, 2.0, 1.0, 3.0), (0.0, 2.0, 99.0, 99.0))
    assert at(line, 1.0) == (1.0 + 99.0) / 2  # at a step both of its stretches end: it is one visit
    assert at(line, 1.5) == (1.5 + 50.5 + 99.0) / 3
    assert at(Curve((1.0, 1.0, 1.0), (1.0, 2.0, 6.0)), 1.0) == 3.0


def test_a_held_run_is_what_it_is_on_all_its_steps_and_not_on_its_first() -> None:
    """It comes to d = 2 with 5, hovers there, and falls to 0: what it is worth at 2 is not 5."""
    d = (0.0, 1.0, 2.0, *(1.9, 2.1) * 50)
    found = at(Curve(d, (0.0, 3.0, 5.0, *[0.0] * 100)), 2.0)
    assert found == pytest.approx(0.05, abs=0.01)


def test_what_never_meets_is_not_compared() -> None:
    line = Curve((0.0, 1.0), (0.0, 1.0))
    assert rest_above(Curve((0.0, 2.0, 3.0), (0.0, 5.0, 5.0)), line) is None
    assert rest_above(Curve((0.5,), (2.0,)), line) == 1.5
    # Of the last two of seven one is where the other never came.
    assert (
        rest_above(Curve((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 9.0), (0.0,) * 5 + (1.0, 9.0)), line) == 0.4
    )


def test_the_grid_ends_where_all_or_where_two_are() -> None:
    curves = [Curve((0.0, end), (0.0, 0.0)) for end in (1.0, 2.0, 3.0)]
    assert grid(curves)[-1] == pytest.approx(2.0)
    assert grid(curves, 3)[-1] == grid(curves, 9)[-1] == pytest.approx(1.0)
    assert values_at(curves, [1.5]) == [[None, 0.0, 0.0]]


def test_smoothing_keeps_a_line_and_leaves_out_what_was_not_measured() -> None:
    kl = [(0.2 * i) ** 2 for i in range(20)]
    values: list[float | None] = [3.0 * math.sqrt(k) for k in kl]
    values[7] = None
    found = curve(kl, values)
    assert len(found.d) == 19
    assert found.value == pytest.approx([3.0 * d for d in found.d])


def test_a_peak_is_not_the_largest_of_noise() -> None:
    """Flat curves of pure noise: the largest value of each is far above 0, and the peaks told are 0 on average."""
    draw = random.Random(7)
    naive, honest = list[float](), list[float]()
    for _ in range(200):
        curves = [Curve(D, tuple(draw.gauss(0, 1) for _ in D)) for _ in range(4)]
        naive += [max(each.value) for each in curves]
        honest += [peak.value for peak in peaks(curves) if peak is not None]
    assert fmean(naive) > 1.5
    assert abs(fmean(honest)) < 4 * 1.0 / math.sqrt(200)


def test_a_true_peak_is_found_where_it_is() -> None:
    curves = [of(FORMS[0], alpha, 0.15) for alpha in (0.88, 0.9, 0.92)]
    for peak in peaks(curves):
        assert peak is not None
        assert peak.d == pytest.approx(3.0, abs=0.2)


def test_alone_there_is_nobody_to_say_where() -> None:
    assert peaks([of(FORMS[0], 0.9, 0.15)]) == [None]


def test_a_mean_ends_where_the_first_curve_does() -> None:
    found = mean_curve([Curve((0.0, 1.0), (0.0, 1.0)), Curve((0.5, 2.0), (2.5, 4.0))])
    assert (found.d[0], found.d[-1]) == pytest.approx((0.5, 1.0))
    assert (found.value[0], found.value[-1]) == pytest.approx((1.5, 2.0))


def test_one_wild_seed_widens_the_interval_of_a_peak_and_is_not_its_value() -> None:
    """Four seeds peak at 9 nats and one at 64: on the mean curve the peak is between, and the interval says so."""
    like = [of(FORMS[0], 0.9, 0.15) for _ in range(4)]
    alike, wild = (
        fit_mean([*like, of(FORMS[0], 0.9, beta)], FORMS[0], 0.0) for beta in (0.15, 0.05625)
    )
    assert alike is not None
    assert alike.peak is not None
    assert (alike.peak.value, alike.peak.low, alike.peak.high) == pytest.approx((9.0, 9.0, 9.0))
    assert wild is not None
    assert wild.peak is not None
    assert wild.peak.low is not None
    assert wild.peak.high is not None
    assert wild.peak.low < 9.0 < wild.peak.value < wild.peak.high
    # β of the mean curve is the mean of the β: (4·0.15 + 0.05625)/5.
    assert wild.peak.value == pytest.approx((0.9 / (2 * 0.13125)) ** 2, rel=1e-3)


def test_jackknifed_intervals_cover() -> None:
    """α of noisy curves about α = 0.9: 95 % of intervals hold it, within what 300 tries can tell."""
    draw = random.Random(11)
    hits = 0
    for _ in range(300):
        curves = [of(FORMS[0], draw.gauss(0.9, 0.1), draw.gauss(0.15, 0.02)) for _ in range(5)]
        found = fit_mean(curves, FORMS[0], 0.0)
        assert found is not None
        assert found.alpha is not None
        hits += found.alpha.is_above(0.9) is None
    assert 0.92 <= hits / 300 <= 0.98
