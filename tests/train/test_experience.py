"""A rollout, scored and metered."""

from collections.abc import Sequence

import pytest
import torch

from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.models.config import ModelConfig
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.train.config import OptimizerConfig
from kleash.train.experience import meter, score
from kleash.train.learner import build_learner


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
    scores, penalised, monitors = score(rollout, reward, [monitor], penalty)
    assert scores.tolist() == [1.5, -4.0, 3.0]
    assert penalised.tolist() == [1.5, -4.0 - penalty, 3.0 - penalty]
    assert {name: x.tolist() for name, x in monitors.items()} == {"length": [3.0, 2.0, 1.0]}


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
