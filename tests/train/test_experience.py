"""A rollout, scored and metered."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.models.config import ModelConfig
from kleash.models.policy import Head
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.train.config import OptimizerConfig
from kleash.train.experience import Experience, Metered, meter
from kleash.train.learner import build_learner
from kleash.train.metrics import Metrics, length_metrics
from kleash.train.scoring import score


def _number(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(text) for text in responses]


def _length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def _rollout(responses: tuple[str, ...], finished: list[bool]) -> Rollout:
    count = len(responses)
    ones = torch.ones(count, 1, dtype=torch.long)
    return Rollout(
        prompts=("",) * count,
        responses=responses,
        prompt_index=torch.arange(count),
        prompt_ids=ones,
        prompt_mask=ones.bool(),
        response_ids=ones,
        mask=ones.bool(),
        sampled_logprobs=torch.zeros(count, 1),
        finished=torch.tensor(finished),
    )


@pytest.mark.parametrize("penalty", [0.0, 2.5])
def test_only_responses_that_did_not_end_are_penalised(penalty: float) -> None:
    rollout = _rollout(("1.5", "-4", "3"), [True, False, False])
    reward, monitor = Scorer(name="number", score=_number), Scorer(name="length", score=_length)
    found = score(rollout, reward, [monitor], RewardConfig(missing_eos_penalty=penalty))
    assert found.scores.tolist() == [1.5, -4.0, 3.0]
    assert found.penalised.tolist() == [1.5, -4.0 - penalty, 3.0 - penalty]
    assert {name: x.tolist() for name, x in found.monitor.items()} == {"length": [3.0, 2.0, 1.0]}
    assert found.parts == {}


def _of_lengths(lengths: list[int], prompts: list[int], finished: bool = True) -> Rollout:
    """Responses that say how long they are."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rollout = _rollout(tuple(str(n) for n in lengths), [finished] * len(lengths))
    return replace(
        rollout,
        prompt_index=torch.tensor(prompts),
        response_ids=torch.ones_like(mask, dtype=torch.long),
        mask=mask,
        sampled_logprobs=torch.zeros(mask.shape),
    )


def test_the_length_penalty_leaves_the_scores_as_they_are() -> None:
    rollout = _of_lengths([1, 3, 4, 9], [0, 1, 2, 3], finished=False)
    config = RewardConfig(
        missing_eos_penalty=10.0, length_penalty=0.5, length_free=3, length_penalty_max=2.0
    )
    found = score(rollout, Scorer(name="number", score=_number), [], config)
    assert found.scores.tolist() == [1.0, 3.0, 4.0, 9.0]
    assert found.penalised.tolist() == [-9.0, -7.0, -6.5, -3.0]


def test_a_clip_comes_before_the_penalties_and_leaves_the_scores_as_they_are() -> None:
    rollout = _rollout(("-9", "-1", "0.5", "2", "7"), [True, True, False, True, False])
    config = RewardConfig(missing_eos_penalty=10.0, clip=(-1.0, 2.0))
    found = score(rollout, Scorer(name="number", score=_number), [], config)
    assert found.scores.tolist() == [-9.0, -1.0, 0.5, 2.0, 7.0]
    assert found.penalised.tolist() == [-1.0, -1.0, -9.5, 2.0, -8.0]
    assert found.clipped is not None
    assert found.clipped.tolist() == [True, False, False, False, True]
    assert found.disagreement is None


def _correlation(reward: Scorer, lengths: list[int], prompts: list[int]) -> float | int | None:
    return _of_length(reward, lengths, prompts)["reward_length_correlation"]


def _of_length(reward: Scorer, lengths: list[int], prompts: list[int]) -> Metrics:
    rollout = _of_lengths(lengths, prompts)
    nothing = torch.zeros(rollout.mask.shape)
    scored = score(rollout, reward, [], RewardConfig(length_penalty=2.0))
    metered = Metered(
        logprobs=nothing,
        ref_logprobs=nothing,
        kl=nothing,
        origin_kl=nothing,
        entropy=nothing,
        values=None,
        hidden=nothing[..., None],
        ref_hidden=nothing[..., None],
        head=Head(torch.zeros(1, 1), None),
    )
    return length_metrics(Experience(rollout=rollout, metered=metered, **scored._asdict()))


def test_a_reward_of_length_correlates_with_it_whatever_is_penalised() -> None:
    """Of the raw scores: a penalty that turns the sign for the update does not hide what the reward likes."""
    number = Scorer(name="number", score=_number)
    opposite = Scorer(name="opposite", score=lambda p, t: [-x for x in _number(p, t)])
    flat = Scorer(name="flat", score=lambda p, t: [0.25] * len(t))
    assert _correlation(number, [1, 5, 2, 9], [0, 1, 2, 3]) == pytest.approx(1)
    assert _correlation(opposite, [1, 5, 2, 9], [0, 0, 1, 1]) == pytest.approx(-1)
    assert _correlation(flat, [1, 5, 2, 9], [0, 0, 1, 1]) is None  # the reward does not vary
    assert _correlation(number, [4, 4, 4, 4], [0, 0, 1, 1]) is None  # nor does the length
    assert _correlation(number, [3], [0]) is None


def test_prompts_that_ask_for_more_words_are_no_length_bias() -> None:
    """Scores and lengths rise together from prompt to prompt, and against each other within each."""
    reward = Scorer(
        name="table", score=lambda p, t: [{"1": 2.0, "2": 1.0, "8": 9.0, "9": 8.0}[x] for x in t]
    )
    assert _correlation(reward, [1, 2, 8, 9], [0, 0, 1, 1]) == pytest.approx(-1)


def test_what_a_token_brings_is_the_slope_about_each_prompts_mean() -> None:
    """Lengths ±1 and ±3 about their means, scores ±1 and ±2: (2·1·1 + 2·3·2)/(2·1 + 2·9) = 0.7 a token."""
    reward = Scorer(
        name="table", score=lambda p, t: [{"2": 5.0, "4": 7.0, "1": 0.0, "7": 4.0}[x] for x in t]
    )
    assert _of_length(reward, [2, 4, 1, 7], [0, 0, 1, 1])["reward_length_slope"] == pytest.approx(
        0.7
    )
    assert _of_length(reward, [4, 4, 7, 7], [0, 0, 1, 1])["reward_length_slope"] is None


@pytest.mark.parametrize("frozen", ["policy", "reference"])
def test_what_was_metered_is_kept_whatever_the_policy_becomes(frozen: str) -> None:
    """Hidden states and head together are the policy as it was; a head that is tied to the embeddings moves too."""
    learner = build_learner(ModelConfig(), OptimizerConfig(), "cpu")
    config = RolloutConfig(num_prompts=2, group_size=2, max_new_tokens=6, temperature=0.7)
    rollout = sample(learner.policy, ["the film is", "a"], config, torch.Generator().manual_seed(0))
    metered = meter(learner, rollout, temperature=0.7, micro_batch_size=3)
    with torch.no_grad():
        for weight in learner.trained:
            weight.add_(0.3 * torch.randn(weight.shape))
    head, hidden, recorded = {
        "policy": (metered.head, metered.hidden, metered.logprobs),
        "reference": (learner.reference.head, metered.ref_hidden, metered.ref_logprobs),
    }[frozen]
    with torch.no_grad():
        logprobs = log_softmax(head(hidden[rollout.mask]), 0.7)
    again = token_logprobs(logprobs, rollout.response_ids[rollout.mask])
    torch.testing.assert_close(again, recorded[rollout.mask], rtol=1e-5, atol=1e-5)
