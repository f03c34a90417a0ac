"""What a policy still finds likely: texts of a task that it is not trained on.

The prompts are divided in two. The policy is trained to answer one half; its reference's answers to the other half are
the texts that it should not forget. Over them KL(π_ref‖π) is measured, exact at every token: their negative
log-likelihood rises by just that much on average, without the noise of which token was drawn.
"""

from typing import Any

import torch

from kleash.functional.divergences import forward_kl
from kleash.functional.intervals import clustered_mean
from kleash.lab.arms.settings import ArmSettings, RetentionSettings
from kleash.models.blend import Blend
from kleash.models.hub import load_language_model
from kleash.models.policy import LanguageModel
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded
from kleash.train.data import load_prompts
from kleash.train.learner import Learner

BATCH = 32
"""Texts read at once."""


def trained_prompts(settings: ArmSettings) -> list[str]:
    """The half that the policy answers: every other one."""
    return load_prompts(settings.prompts)[::2]


def other_prompts(settings: ArmSettings) -> list[str]:
    """The half that it is never asked."""
    return load_prompts(settings.prompts)[1::2]


def held_texts(
    settings: ArmSettings, kept: RetentionSettings, reference: str, stream: str
) -> list[str]:
    """The reference's answers to the other half of the prompts, with their prompts, each on a line."""
    model = load_language_model(reference, settings.device)
    rollout = answers(model, other_prompts(settings), settings, kept, stream)
    pairs = zip(rollout.prompts, rollout.responses, strict=True)
    return [" ".join((prompt + response).split()) for prompt, response in pairs]


def answers(
    model: LanguageModel,
    prompts: list[str],
    settings: ArmSettings,
    kept: RetentionSettings,
    stream: str,
) -> Rollout:
    """So many answers of a model, to the prompts in turn; the same for every arm of a seed."""
    config = RolloutConfig(
        num_prompts=kept.texts, group_size=1, max_new_tokens=settings.max_new_tokens
    )
    asked = [prompts[i % len(prompts)] for i in range(kept.texts)]
    return sample(model, asked, config, seeded(settings.seed, f"retention {stream}"))


def kept_texts(learner: Learner, settings: ArmSettings, kept: RetentionSettings) -> dict[str, Any]:
    """How much less likely the reference's answers have become, nats per token, on both halves of the prompts."""
    reference = learner.reference
    assert not isinstance(reference, Blend), "an arm has one reference"
    found: dict[str, Any] = {}
    halves = {"task": trained_prompts(settings), "other": other_prompts(settings)}
    for name, prompts in halves.items():
        rollout = answers(reference, prompts, settings, kept, name)
        rise = lost(learner.policy, reference, rollout)
        found |= {
            f"lost_{name}{end}": x for end, x in zip(("", "_low", "_high"), rise, strict=True)
        }
    return found


@torch.no_grad()
def lost(
    policy: LanguageModel, reference: LanguageModel, rollout: Rollout
) -> tuple[float, float | None, float | None]:
    """KL(π_ref‖π) per token at the states of the reference's own answers, nats, with its interval over answers."""
    totals, counts = list[float](), list[int]()
    for rows in torch.arange(len(rollout.mask)).split(BATCH):
        part = rollout.rows(rows)
        given = part.prompt_ids, part.prompt_mask, part.response_ids, part.mask
        own, theirs = (
            torch.log_softmax(model.head(model.hidden(*given)[part.mask]), -1)
            for model in (policy, reference)
        )
        each = torch.zeros(part.mask.shape, dtype=torch.double, device=own.device)
        each[part.mask] = forward_kl(own, theirs).double()
        totals += each.sum(-1).tolist()
        counts += part.mask.sum(-1).tolist()
    found = clustered_mean(
        torch.tensor(totals), torch.tensor(counts).double(), torch.arange(len(totals))
    )
    return found.value, found.low, found.high
