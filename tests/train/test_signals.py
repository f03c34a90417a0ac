"""What a controller is told of a rollout beside the reading, against sums by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kleash.control import ControlConfig
from kleash.models.config import ModelConfig
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.train.algorithms import AlgorithmConfig
from kleash.train.config import OptimizerConfig, RunConfig
from kleash.train.evaluate import collect
from kleash.train.experience import Experience
from kleash.train.learner import Learner, build_learner
from kleash.train.signals import Spread, measure, out_of_reach, spread_within

PROMPTS = ["the film is", "a", "despite its best efforts , this movie", "it's"]
CONFIG = RunConfig(
    rl=ControlConfig(kl_target=1.0, kl_unit="token"),
    rollout=RolloutConfig(num_prompts=4, group_size=3, max_new_tokens=8),
    optimizer=OptimizerConfig(beta1=0.5),
    algorithm=AlgorithmConfig(num_epochs=3, num_minibatches=12),
)
LENGTH = Scorer(name="length", score=lambda _, responses: [float(len(text)) for text in responses])


def by_hand(first: Sequence[float], second: Sequence[float], prompts: Sequence[int]) -> Spread:
    """The slow twin: exact sums, one response at a time."""
    group = list(prompts) if len(set(prompts)) < len(prompts) else [0] * len(prompts)
    freedom = len(group) - len(set(group))
    if freedom < 1:
        return Spread(None, None, None)

    def about(values: Sequence[float]) -> list[float]:
        found: list[float] = []
        for value, own in zip(values, group, strict=True):
            same = [x for x, other in zip(values, group, strict=True) if other == own]
            found.append(value - math.fsum(same) / len(same))
        return found

    x, y = about(first), about(second)
    var_x, var_y, covariance = (
        math.fsum(a * b for a, b in zip(*pair, strict=True)) / freedom
        for pair in ((x, x), (y, y), (x, y))
    )
    correlation = covariance / math.sqrt(var_x * var_y) if var_x * var_y > 0 else None
    return Spread(math.sqrt(var_x), math.sqrt(var_y), correlation)


@given(
    st.lists(
        st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    )
)
def test_spreads_are_those_of_the_formula(rows: list[tuple[int, int, int]]) -> None:
    """Prompts with one response beside prompts with several, in any order, and none with a degree of freedom."""
    first, second = ([row[i] / 8 for row in rows] for i in range(2))
    prompts = [row[2] for row in rows]
    found = spread_within(torch.tensor(first), torch.tensor(second), torch.tensor(prompts))
    expected = by_hand(first, second, prompts)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == (None if theirs is None else pytest.approx(theirs, rel=1e-12, abs=1e-12))


def test_what_is_common_to_a_prompts_responses_is_no_spread() -> None:
    prompts = torch.tensor([0, 0, 0, 1, 1, 1])
    first, second = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([100.0, -300.0])[prompts]
    plain = spread_within(first, second, prompts)
    moved = spread_within(first + shift, second - 2 * shift, prompts)
    assert moved == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Thirds of a tenth: a mean of equal numbers need not be that number to the last bit.
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], (0.0, 1.0, None)),
        ([1.0, 2.0, 3.0], [1.0, torch.inf, 3.0], (1.0, "nan", None)),
        ([1.0, torch.nan, 3.0], [1.0, 2.0, 3.0], ("nan", 1.0, None)),
        ([1e38, -1e38, 0.0], [1e-30, -1e-30, 0.0], (1e38, 1e-30, 1.0)),
        ([1.0, 2.0, 3.0], [-7.0, -14.0, -21.0], (1.0, 7.0, -1.0)),
    ],
)
def test_what_does_not_vary_or_is_no_number_has_no_correlation(
    first: list[float], second: list[float], expected: tuple[float | str | None, ...]
) -> None:
    found = spread_within(torch.tensor(first), torch.tensor(second), torch.tensor([0, 0, 0]))
    for ours, theirs in zip(found, expected, strict=True):
        if theirs == "nan":
            assert ours is not None
            assert math.isnan(ours)
        else:
            assert ours == (theirs if theirs is None else pytest.approx(theirs, rel=1e-6))


@given(st.floats(-1e30, 1e30), st.integers(2, 9))
def test_equal_figures_vary_by_exactly_nothing(value: float, count: int) -> None:
    same = torch.full((count,), value, dtype=torch.float64)
    found = spread_within(same / 3, torch.arange(float(count)), torch.zeros(count))
    assert found[0] == 0.0
    assert found.correlation is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-1e3, 1e3))
def test_a_correlation_lies_within_one(values: list[float], factor: float) -> None:
    first = torch.tensor(values, dtype=torch.float64)
    found = spread_within(first, factor * first, torch.zeros(len(values)))
    assert found.correlation is None or -1.0 <= found.correlation <= 1.0


@pytest.fixture(scope="module")
def learner() -> Learner:
    """One whose policy has left its reference."""
    learner = build_learner(ModelConfig(), CONFIG.optimizer, "cpu")
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in learner.trained:
            scale = 0.1 * float(weight.std()) if weight.any() else 0.05
            weight.add_(scale * torch.randn(weight.shape, generator=draw))
    return learner


@pytest.fixture(scope="module")
def experience(learner: Learner) -> Experience:
    generator = torch.Generator().manual_seed(11)
    return collect(
        learner,
        PROMPTS,
        CONFIG.rollout,
        (LENGTH, []),
        generator,
        penalties=RewardConfig(missing_eos_penalty=20.0),
    )


@pytest.mark.parametrize("applied", [True, False])
def test_signals_are_of_what_the_update_follows_and_of_whole_responses(
    learner: Learner, experience: Experience, applied: bool
) -> None:
    measured = measure(learner, experience, CONFIG, applied=applied)
    signals, rollout, metered = measured.signals, experience.rollout, experience.metered
    log_ratios = [
        math.fsum(
            float(metered.logprobs[i, t]) - float(metered.ref_logprobs[i, t])
            for t in rollout.mask[i].nonzero().flatten().tolist()
        )
        for i in range(12)
    ]
    expected = by_hand(experience.penalised.tolist(), log_ratios, rollout.prompt_index.tolist())
    assert signals.reward_std == pytest.approx(expected.first_std, rel=1e-9)
    assert signals.log_ratio_std == pytest.approx(expected.second_std, rel=1e-5)
    assert signals.correlation == pytest.approx(expected.correlation, rel=1e-4, abs=1e-6)
    raw = by_hand(experience.scores.tolist(), log_ratios, rollout.prompt_index.tolist())
    assert expected.first_std != pytest.approx(raw.first_std, rel=1e-3)
    assert signals.response_length == int(rollout.mask.sum()) / 12
    assert signals.num_responses == measured.seen.n == 12
    assert signals.momentum == 0.5 ** (3 * 12)
    assert (signals.age, signals.applied) == (0, applied)


def test_the_controller_is_shown_the_reading_in_its_targets_unit(
    learner: Learner, experience: Experience
) -> None:
    measured = measure(learner, experience, CONFIG, applied=True)
    assert measured.seen == measured.readings.token
    per_response = CONFIG.model_copy(update={"rl": ControlConfig(kl_target=1.0)})
    assert (
        measure(learner, experience, per_response, applied=True).seen == measured.readings.response
    )


def test_rewards_that_overflow_are_recorded_as_they_are(
    learner: Learner, experience: Experience
) -> None:
    scores = experience.penalised.clone()
    scores[0] = torch.inf
    signals = measure(learner, replace(experience, penalised=scores), CONFIG, applied=True).signals
    assert signals.to_json()["reward_std"] == "nan"
    assert signals.correlation is None
    assert signals.log_ratio_std is not None
    assert math.isfinite(signals.log_ratio_std)


def test_a_target_beyond_the_best_responses_seen_is_remarked_on_with_the_number(
    learner: Learner, experience: Experience
) -> None:
    """−log π_ref of each prompt's best response, by hand; per token that over the mean length."""
    metered, rollout = experience.metered, experience.rollout
    best: list[float] = []
    for prompt in range(4):
        rows = [i for i in range(12) if int(rollout.prompt_index[i]) == prompt]
        top = max(rows, key=lambda i: float(experience.penalised[i]))
        kept = rollout.mask[top].nonzero().flatten().tolist()
        best.append(-math.fsum(float(metered.ref_logprobs[top, t]) for t in kept))
    reach = math.fsum(best) / 4 / (int(rollout.mask.sum()) / 12)
    measured = measure(learner, experience, CONFIG, applied=True)
    assert out_of_reach(measured, 0.999 * reach) == ""
    assert f"is over {reach:.3g}" in out_of_reach(measured, 1.001 * reach)
    assert out_of_reach(measured, None) == ""
