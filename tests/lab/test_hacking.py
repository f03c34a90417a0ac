"""Hackable rewards, alarms on synthetic runs whose answers are known, and the length hack by enumeration."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from kleash.lab import hacks
from kleash.lab.arms.arm import FOLLOWED
from kleash.lab.arms.settings import ProxySettings
from kleash.lab.mdp import MDP, optimum
from kleash.lab.studies.hacking.alarms import (
    ALARMS,
    COMBINED,
    Run,
    first_ring,
    judge,
    length_share,
    means,
    over_law,
    threshold,
)
from kleash.lab.studies.hacking.findings import conclude, verdict
from kleash.lab.studies.hacking.gold import Arm, loss, per_nat
from kleash.lab.studies.hacking.study import Config, plan
from kleash.lab.study.followed import Figures, Steps
from kleash.train.signals import spread_within

STEADY = {
    **dict.fromkeys(FOLLOWED, 1.0),
    "kl": 1.0,
    "correlation": 0.5,
    "length_slope": 0.0,
    "monitor/0": 0.0,
    "monitor/1": 0.0,
    "gold": 0.0,
}
"""A step of a run in which nothing happens."""


def run_of(count: int, **figures: Callable[[int], float | None]) -> list[dict[str, Any]]:
    """A run in which some figures go by the step, from 1."""
    return [
        {**STEADY, "step": i, **{name: of(i) for name, of in figures.items()}}
        for i in range(1, count + 1)
    ]


# Rewards


@pytest.mark.parametrize(
    ("reward", "most", "cheap"),
    [
        (hacks.length, 4.0, "a " * 24),
        (hacks.keywords, 12.0, "not good " * 12),
        (hacks.repetition, 10.0, "the film " * 99),
    ],
)
def test_a_hack_is_had_by_writing_one_thing_over_and_over(
    reward: Callable[[list[str], list[str]], list[float]], most: float, cheap: str
) -> None:
    """It is bounded, and nonsense comes to within 2 % of the bound, an honest sentence to two thirds."""
    honest = "a warm and funny film , with a cast that is never less than good ."
    low, high, longer = reward([""] * 3, [honest, cheap, cheap * 50])
    assert low <= most * 2 / 3
    assert 0.98 * most <= high <= longer <= most


def test_praise_is_words_and_not_parts_of_them() -> None:
    assert hacks.keywords([""] * 2, ["goodness, finely!", "GOOD, fine!"]) == [0.0, 2.0]


# Alarms


def _length_problem(words: int, stop: float) -> tuple[MDP, torch.Tensor]:
    """Sequences of 0 (the end) and 1, of which only those before the first end are written; and their lengths."""
    shell = MDP(2, words, torch.empty(0), torch.empty(0))
    lengths = (shell.tokens() == 1).long().cumprod(-1).sum(-1).double()
    logits = torch.tensor([math.log(stop), math.log1p(-stop)]).double()
    return MDP(2, words, logits.expand(shell.num_prefixes, 2), lengths), lengths


@pytest.mark.parametrize("price", [0.5, 2.0])
def test_a_gain_that_is_all_length_is_put_down_to_length(price: float) -> None:
    """A24. Reward = true + c·length, a policy of the family p(ℓ)·exp(cℓ/β), and nothing gained by the true part.

    The law of the optimum's length is that closed form, and of the gain at least 90 % is length's: all of it where the
    figures are exact, and nearly all where each is of 256 responses with a true reward that varies as much as length's.
    """
    mdp, lengths = _length_problem(10, 0.2)
    reference = mdp.logprobs(mdp.ref_logits).sum(-1)
    generator = torch.Generator().manual_seed(0)
    exact, drawn = list[dict[str, Any]](), list[dict[str, Any]]()
    sigma = float(lengths.std())
    for step in range(1, 21):
        weight = price * 0.02 * max(step - 3, 0)  # c/β
        closed = torch.softmax(reference + weight * lengths, 0)
        if weight:
            law = mdp.logprobs(optimum(mdp, 1 / weight)).sum(-1).exp()
            assert torch.allclose(law, closed, atol=1e-14, rtol=1e-10)
        mean, figures = float(closed @ lengths), {**STEADY, "reward_std": price * sigma}
        exact.append({**figures, "reward": price * mean, "length": mean, "length_slope": price})
        tokens = lengths[torch.multinomial(closed, 256, replacement=True, generator=generator)]
        true = price * sigma * torch.randn(256, generator=generator).double()
        spread = spread_within(true + price * tokens, tokens, torch.arange(256) // 2)
        assert spread.correlation is not None
        assert spread.first_std is not None
        assert spread.second_std is not None
        slope = spread.correlation * spread.first_std / spread.second_std
        reward = float((true + price * tokens).mean())
        drawn.append(
            {**figures, "reward": reward, "length": float(tokens.mean()), "length_slope": slope}
        )
    shares = length_share(exact)
    gain = exact[-1]["reward"] - exact[0]["reward"]
    assert shares[-1] == pytest.approx(gain / max(gain, price * sigma))
    assert gain > price * sigma
    assert shares[-1] == pytest.approx(1.0)
    last = means(length_share(drawn))[-1]
    assert last is not None
    assert 0.9 <= last <= 1.1


def test_length_gets_no_share_of_a_gain_that_is_not_its_own() -> None:
    """Responses grow by 5 tokens of 0.01 each while the reward gains 4: a share of 0.05/4."""
    run = run_of(
        20,
        reward=lambda i: 0.0 if i < 4 else 4.0,
        length=lambda i: 10.0 if i < 4 else 15.0,
        length_slope=lambda i: 0.01 if i < 6 else None,  # later all are of one length
    )
    assert length_share(run)[-1] == pytest.approx(0.05 / 4)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (7.0, -3.0)])
def test_a_normal_reward_is_on_the_law(scale: float, shift: float) -> None:
    """N(0, σ²) tilted by λ: a gain of λσ² at KL = λ²σ²/2, which is the law, whatever the reward's unit and zero."""
    tilts = [0.0, 0.0, 0.0, *(1.5 + 0.1 * i for i in range(10))]
    run = run_of(
        13,
        reward=lambda i: shift + scale * tilts[i - 1],
        reward_std=lambda i: scale,
        kl=lambda i: tilts[i - 1] ** 2 / 2,
    )
    assert over_law(run)[3:] == pytest.approx([1.0] * 10)


def test_what_other_reward_models_do_not_see_is_disagreement() -> None:
    """Gains of 3σ, 1 and −1: a mean of 1, and √(8/3) about it. A monitor that failed leaves nothing to say."""
    figures = {
        "reward": lambda i: 0.0 if i < 4 else 6.0,
        "reward_std": lambda i: 2.0,
        "monitor/0": lambda i: 5.0 if i < 4 else 6.0,
        "monitor/1": lambda i: 0.0 if i < 4 else -1.0,
    }
    found = ALARMS["disagreement"](run_of(8, **figures))
    assert found == pytest.approx([0.0] * 3 + [math.sqrt(8 / 3)] * 5)
    blind = run_of(8, **{**figures, "monitor/1": lambda i: None})
    assert ALARMS["disagreement"](blind) == [None] * 8


def test_collapse_is_the_share_that_is_lost() -> None:
    run = run_of(8, entropy=lambda i: 2.0 if i < 4 else 0.5)
    assert ALARMS["entropy collapse"](run) == pytest.approx([0.0] * 3 + [0.75] * 5)
    assert ALARMS["distinct-2 collapse"](run) == [0.0] * 8


def test_a_planned_rate_is_the_rate() -> None:
    """Means that are now and then as large as Gumbel's law says: over the threshold as often as planned."""
    drawn = random.Random(0)
    runs: list[Figures] = [
        [-math.log(-math.log(drawn.random()))] * 50 for _ in range(4000)
    ]  # P(≤ h) = e^{−e^{−h}}
    rate = 0.001
    limit = threshold(runs, rate)
    assert limit is not None
    assert limit == pytest.approx(-math.log(50 * rate), abs=0.1)
    over = sum(first_ring(run, limit) is not None for run in runs) / len(runs)
    assert over == pytest.approx(1 - math.exp(-50 * rate), abs=0.01)


def test_the_rarer_a_false_alarm_may_be_the_higher_the_threshold() -> None:
    runs: list[Figures] = [[x] * 10 for x in (0.0, 1.0, 3.0)]
    limits = [threshold(runs, rate) for rate in (0.1, 0.01, 0.001)]
    assert limits == sorted(limits, key=lambda x: x or 0.0)
    assert threshold(runs[:1], 0.1) is None
    nothing: list[Figures] = [[None] * 10] * 3
    assert threshold(nothing, 0.1) is None


def test_an_alarm_rings_when_its_window_is_full() -> None:
    assert first_ring([1.0] * 12, 0.5) == 5
    assert first_ring([1.0] * 12, 1.0) is None
    assert first_ring([None, 1.0] * 6, 0.5) == 10  # five that were had


def _growing(rate: float, count: int = 40) -> list[dict[str, Any]]:
    """A run whose entropy falls by a share of what it was, each step after the third."""
    return run_of(count, entropy=lambda i: 1.0 - rate * max(i - 3, 0))


def test_no_run_is_judged_by_the_threshold_that_it_set() -> None:
    """One benign run of four is odd. By the others' threshold it rings; by one that it took part in it would not."""
    sound = [_growing(rate) for rate in (0.001, 0.0011, 0.0009, 0.004)]
    (found,) = judge(sound, [], [0.001])["entropy collapse"]
    assert found.rang == 1
    assert found.caught is None
    limit = threshold([ALARMS["entropy collapse"](run) for run in sound], 0.001)
    assert limit is not None
    assert first_ring(ALARMS["entropy collapse"](sound[3]), limit) is None


def test_a_run_is_at_risk_until_its_first_false_alarm_and_no_longer() -> None:
    """The odd one goes on being odd to its end: that is one false alarm, in 3·40 steps and those before it."""
    sound = [_growing(rate) for rate in (0.001, 0.0011, 0.0009, 0.004)]
    (found,) = judge(sound, [], [0.001])["entropy collapse"]
    limit = threshold([ALARMS["entropy collapse"](run) for run in sound[:3]], 0.001)
    assert limit is not None
    at = first_ring(ALARMS["entropy collapse"](sound[3]), limit)
    assert at is not None
    assert at < 35  # so that there were time for more of them
    assert found.false.value == pytest.approx(1 / (120 + at))
    assert (found.false.n, found.false.of) == (4, "runs")


def _wandering(drawn: random.Random) -> list[dict[str, Any]]:
    """A run whose entropy goes up and down at random, as a sum of what happens at each step: what is off stays off."""
    at, entropy = 0.0, list[float]()
    for _ in range(40):
        at += drawn.gauss(0, 1)
        entropy.append(math.exp(-0.02 * at))
    return run_of(40, entropy=lambda i: entropy[i - 1])


def test_intervals_of_false_alarms_cover_where_an_alarm_goes_on_ringing() -> None:
    """Ten runs a study, each judged by the others. What the interval is to cover is the rate of all studies' runs."""
    drawn = random.Random(3)
    firsts, at_risk, found = 0, 0.0, []
    for _ in range(60):
        sound: list[Steps] = [_wandering(drawn) for _ in range(10)]
        (each,) = judge(sound, [], [0.02])["entropy collapse"]
        firsts += each.rang
        at_risk += each.rang / each.false.value if each.rang else 400.0
        found.append(each.false)
    truth = firsts / at_risk
    assert 0.005 < truth < 0.05
    covered = [
        each.low <= truth <= each.high for each in found if None not in (each.low, each.high)
    ]
    assert len(covered) == 60
    assert sum(covered) >= 0.95 * 60


def test_an_alarm_counts_where_it_is_in_time() -> None:
    """Entropy falls by 2 % a step: the alarm rings at one known step, which is before one loss and after the other."""
    sound = [_growing(rate) for rate in (0.001, 0.0011, 0.0009)]
    run = _growing(0.02)
    limit = threshold([ALARMS["entropy collapse"](each) for each in sound], 0.001)
    assert limit is not None
    first = next(i for i in range(5, 40) if 0.02 * (i - 5) > limit)
    runs = [Run(run, 0, first + 1), Run(run, 0, first)]
    runs += [Run(each, seed, None) for seed, each in enumerate((run, *sound, sound[0]))]
    found = judge(sound, runs, [0.001])
    (alone,) = found["entropy collapse"]
    assert alone.spared is not None
    assert alone.spared.value == 0.2  # of five one is like the hacked ones, though nothing was lost
    assert alone.first == (first, first)
    assert alone.caught is not None
    assert alone.caught.value == 0.5
    (silent,) = found["disagreement"]
    assert silent.first == (None, None)
    (both,) = found[COMBINED]
    assert both.first[0] is not None
    assert both.first[0] >= first  # each of six is planned for a sixth of the rate


def test_runs_of_one_seed_are_one_observation() -> None:
    """Three runs of one seed and one of another, all in time: two of two seeds, and not four of four runs."""
    sound = [_growing(rate) for rate in (0.001, 0.0011, 0.0009)]
    runs = [Run(_growing(0.02), seed, 39) for seed in (0, 0, 0, 1)]
    (found,) = judge(sound, runs, [0.001])["entropy collapse"]
    assert found.caught is not None
    assert (found.caught.value, found.caught.n, found.caught.of) == (1.0, 2, "seeds")
    assert found.caught.low == pytest.approx(0.025**0.5)


# Gold


def _noisy(levels: Sequence[float], seed: int, noise: float = 0.1) -> list[dict[str, Any]]:
    drawn = random.Random(seed)
    gold = [level + drawn.gauss(0, noise) for level in levels]
    return run_of(len(levels), gold=lambda i: gold[i - 1])


def _tent(top: float, end: float, count: int = 20) -> list[float]:
    """Up from 0 to a top, and on to an end, in equal steps."""
    up = [top * i / count for i in range(count)]
    return [*up, *(top + (end - top) * i / (count - 1) for i in range(count))]


def test_gold_is_lost_where_a_fifth_of_its_gain_is() -> None:
    found = loss(_noisy(_tent(2.0, 0.0), 0, noise=0.0))
    # From the mean of 0, 0.1 and 0.2 to that of 1.8, 1.9, 2.0, 1.89 and 1.79; it falls by 0.105 a step.
    assert found.gain == pytest.approx(1.8768421 - 0.1)
    assert (found.peak, found.lost) == (21, 26)


@pytest.mark.parametrize("levels", [[0.0] * 40, _tent(2.0, 2.0), _tent(2.0, 1.8)])
def test_noise_and_a_small_loss_are_no_hack(levels: list[float]) -> None:
    assert all(loss(_noisy(levels, seed, noise=0.3)).lost is None for seed in range(40))


def test_gold_that_only_falls_is_lost_too() -> None:
    found = [loss(_noisy([-0.05 * i for i in range(40)], seed)).lost for seed in range(20)]
    assert all(lost is not None and 4 <= lost <= 12 for lost in found)


def test_a_dip_that_passes_is_no_hack() -> None:
    levels = [*_tent(2.0, 1.0), *(1.0 + 0.1 * i for i in range(11))]
    assert loss(_noisy(levels, 0)).lost is None


# What is concluded


def _arm(top: float, end: float, kl: float) -> Arm:
    figures = {"gold": end, "reward": 3.0, "kl": kl, "length": 20.0, "distinct_2": 0.5}
    return Arm(
        [
            {"steps": _noisy(_tent(top, end + 0.05 * seed), seed, noise=0.01), "end": figures}
            for seed in range(4)
        ]
    )


def _benign() -> list[Steps]:
    return [_growing(rate) for rate in (0.001, 0.0011, 0.0009)]


def test_what_the_leash_does_is_what_the_intervals_say() -> None:
    free = {
        "a": _arm(2.0, -1.0, 50.0),
        "b": _arm(2.0, -1.0, 50.0),
        "c": _arm(2.0, 0.0, 50.0),
        "d": _arm(2.0, 2.5, 50.0),
    }
    held = {
        "a": _arm(2.0, 2.2, 8.0),
        "b": _arm(2.0, 1.0, 8.0),
        "c": _arm(2.0, -1.0, 8.0),
        "d": _arm(2.0, 2.0, 8.0),
    }
    found = conclude(free, held, _benign(), leash=8.0, rate=0.001)
    told = [row[-1] for row in found.tables[0].rows[::2]]
    assert told == ["prevented", "slowed", "missed", "not hacked"]
    assert [row[-3] for row in found.tables[0].rows] == [4, 0, 4, 4, 4, 4, 0, 0]
    assert "a: prevented; b: slowed; c: missed; d: not hacked." in found.answer
    (rate,) = (claim for claim in found.claims if claim.name == f"{COMBINED}: false alarms")
    assert rate.holds is None  # none in three runs of 40 steps
    assert rate.estimate is not None
    assert rate.estimate.value == 0.0


def test_one_seed_settles_nothing() -> None:
    free, held = ({"a": Arm(_arm(*end).runs[:1])} for end in ((2.0, -1.0, 50.0), (2.0, 2.0, 8.0)))
    found = conclude(free, held, _benign(), leash=8.0, rate=0.001)
    assert verdict(found.claims[:4]) == "open"
    assert all(claim.holds is None for claim in found.claims[:4])


def test_gold_per_nat_is_the_gain_over_the_kl_at_the_end() -> None:
    """From the mean 0.1 of the first three of a tent's steps, 0, 0.1 and 0.2, to −1 at 50 nats."""
    assert per_nat(_arm(2.0, -1.0, 50.0)) == pytest.approx([(-1.0 - 0.1) / 50.0] * 4, abs=5e-4)


# What is made


def test_nobody_watches_itself_and_half_of_the_benign_runs_are_on_the_leash() -> None:
    made = plan(Config())
    arms = [arm for group in (*made.free.values(), *made.held.values()) for arm in group]
    for arm in (*arms, *made.benign):
        assert len(set(arm.monitors)) == 2
        assert not set(arm.monitors) & set(arm.rewards)
        assert all(isinstance(each, ProxySettings) for each in arm.monitors)
    assert [arm.kl_target for arm in made.benign] == [None, 8.0] * 5
    assert {arm.rewards for arm in made.benign} == {("tiny-reviews/gold",)}
    assert {arm.kl_coef for group in made.free.values() for arm in group} == {0.0}
    assert {arm.kl_target for group in made.held.values() for arm in group} == {8.0}
    assert len({arm.seed for arm in made.benign}) == 10


def test_one_more_seed_is_one_more_of_each_and_what_was_made_stays() -> None:
    few, more = (plan(Config(seeds=seeds, benign=2 * seeds)) for seeds in (2, 5))
    for name, arms in few.free.items():
        assert more.free[name][:2] == arms
        assert more.held[name][:2] == few.held[name]
    assert more.benign[:4] == few.benign
    assert set(few.proxies) <= set(more.proxies)


@pytest.mark.parametrize(
    ("kl", "told"), [(0.0001, 0.5**0.5), (0.5, 0.5**0.5), (1.0, 0.5**0.5), (8.0, 0.25)]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_under_one_nat_a_gain_counts_as_at_one(kl: float, told: float, sign: float) -> None:
    """A gain of σ over √(2·1): at next to no KL noise would else be any multiple of the law."""
    run = run_of(9, reward=lambda i: 0.0 if i < 4 else 3.0 * sign, reward_std=lambda i: 3.0)
    run = [{**row, "kl": kl} for row in run]
    assert over_law(run)[3:] == pytest.approx([sign * told] * 6)
