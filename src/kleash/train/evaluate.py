"""Fresh responses from a policy, scored and metered: a table row, and lines for samples.jsonl."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kleash.drift import measure_drift
from kleash.functional.diversity import distinct_n
from kleash.models.blend import Blend
from kleash.models.policy import LanguageModel
from kleash.records import KLReading
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.train.experience import Experience, Metered, meter
from kleash.train.learner import Learner
from kleash.train.scoring import ask, score

NO_PENALTIES = RewardConfig()
"""What is taken off scores by default: nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """A rollout that is metered, and scored where there is something to score it by."""

    rollout: Rollout
    metered: Metered
    scores: Tensor | None
    """[B]; None: nothing scores."""
    monitor: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a policy does on fresh responses."""

    reward: float
    monitor: dict[str, float]
    kl: KLReading
    """Per response."""
    distinct_2: float | None
    """Different token pairs over all token pairs, of all responses together; None when there is no pair."""
    length: float
    """Mean tokens per response."""


def collect(
    learner: Learner,
    prompts: Sequence[str],
    config: RolloutConfig,
    scorers: tuple[Scorer, Sequence[Scorer]],
    generator: torch.Generator,
    *,
    penalties: RewardConfig = NO_PENALTIES,
    micro_batch_size: int = 32,
) -> Experience:
    """Samples, scores and meters: the first half of a training step, and the whole of an evaluation."""
    return experience_of(
        learner,
        sample(learner.policy, prompts, config, generator),
        scorers,
        temperature=config.temperature,
        penalties=penalties,
        micro_batch_size=micro_batch_size,
    )


def experience_of(
    learner: Learner,
    rollout: Rollout,
    scorers: tuple[Scorer, Sequence[Scorer]],
    *,
    temperature: float,
    penalties: RewardConfig = NO_PENALTIES,
    micro_batch_size: int = 32,
) -> Experience:
    """A rollout scored, and metered by the policy as it now is."""
    scored = score(rollout, *scorers, penalties)
    metered = meter(learner, rollout, temperature=temperature, micro_batch_size=micro_batch_size)
    return Experience(rollout=rollout, metered=metered, **scored._asdict())


def observe(
    learner: Learner,
    prompts: Sequence[str],
    config: RolloutConfig,
    scorers: tuple[Scorer | None, Sequence[Scorer]],
    generator: torch.Generator,
    *,
    micro_batch_size: int = 32,
) -> Observed:
    """The same where no reward need be: nothing learns from it."""
    reward, monitors = scorers
    rollout = sample(learner.policy, prompts, config, generator)
    return Observed(
        rollout=rollout,
        metered=meter(
            learner, rollout, temperature=config.temperature, micro_batch_size=micro_batch_size
        ),
        scores=None if reward is None else ask(reward, rollout),
        monitor={monitor.name: ask(monitor, rollout) for monitor in monitors},
    )


def fresh_drift(
    learner: Learner,
    prompts: Sequence[str],
    config: RolloutConfig,
    generator: torch.Generator,
    *,
    micro_batch_size: int = 32,
) -> KLReading:
    """KL per response of the policy as it is now from the reference as the run began, on responses drawn for this."""
    rollout = sample(learner.policy, prompts, config, generator)
    metered = meter(
        learner, rollout, temperature=config.temperature, micro_batch_size=micro_batch_size
    )
    return measure_drift(
        metered.origin_kl, rollout.mask, rollout.prompt_index, reference=learner.origin.name
    )


def summarise(experience: Experience, reference: str) -> Evaluation:
    """The figures of an evaluation."""
    rollout = experience.rollout
    return Evaluation(
        reward=float(experience.scores.mean()),
        monitor={name: float(scores.mean()) for name, scores in experience.monitor.items()},
        kl=measure_drift(
            experience.metered.kl, rollout.mask, rollout.prompt_index, reference=reference
        ),
        distinct_2=distinct_n(rollout.responses_in_tokens(), 2),
        length=float(rollout.mask.sum(-1).float().mean()),
    )


class Samples:
    """The same prompts and the same random numbers each time, so that what changes is the policy.

    Args:
        learner: whose policy is asked, and whose reference as the run began has been.
        prompts: what they are asked, once each.
        config: how long and at which temperature they answer.
        scorers: the reward, where there is one, and the monitors.
        random: the same stream of random numbers at every call.
        reference: what the reference answered and got for it, where it was asked before; a run that goes on does not
            ask the reward twice, which may draw at random.
    """

    def __init__(
        self,
        learner: Learner,
        prompts: Sequence[str],
        config: RolloutConfig,
        scorers: tuple[Scorer | None, Sequence[Scorer]],
        random: Callable[[], torch.Generator],
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        self.learner, self.prompts, self.scorers, self.random = learner, prompts, scorers, random
        self.config = RolloutConfig.model_validate(
            {**config.model_dump(), "num_prompts": len(prompts), "group_size": 1}
        )
        if reference is not None:
            self.reference = reference
            return
        shown = learner.origin  # `reference` may have been refreshed
        speaker = shown.heaviest if isinstance(shown, Blend) else shown
        rollout = sample(speaker, prompts, self.config, random())
        reward = scorers[0]
        self.reference = {
            "responses": rollout.responses,
            "scores": [None] * len(prompts)
            if reward is None
            else reward.score(rollout.prompts, rollout.responses),
        }

    def draw(self, step: int) -> tuple[dict[str, Any], ...]:
        """The policy's answers now, as lines for samples.jsonl."""
        observed = observe(self.learner, self.prompts, self.config, self.scorers, self.random())
        return sample_lines(step, observed, self.learner.policy, self.reference)


def sample_lines(
    step: int, observed: Observed, policy: LanguageModel, reference: Mapping[str, Any]
) -> tuple[dict[str, Any], ...]:
    """Lines for samples.jsonl: each response with its KL per token, beside the reference's answer.

    Args:
        step: which policy answered.
        observed: its answers.
        policy: for its tokenizer.
        reference: "responses" and "scores" of the reference for the same prompts.
    """
    rollout, metered, scores = observed.rollout, observed.metered, observed.scores
    lines: list[dict[str, Any]] = []
    for i, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
        keep = rollout.mask[i]
        kl: list[float] = metered.kl[i][keep].tolist()
        ids: list[int] = rollout.response_ids[i][keep].tolist()
        lines.append(
            {
                "step": step,
                "prompt": prompt,
                "response": response,
                "tokens": [policy.tokenizer.decode([token]) for token in ids],
                "kl_per_token": kl,
                "kl_policy_ref": sum(kl),
                "reward": None if scores is None else float(scores[i]),
                "monitor": {name: float(x[i]) for name, x in observed.monitor.items()},
                "reference_response": reference["responses"][i],
                "reference_reward": reference["scores"][i],
            }
        )
    return tuple(lines)
