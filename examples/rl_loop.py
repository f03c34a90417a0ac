"""PPO on an exact KL leash, all of it on two screens: what `kleash.train` does, in the order in which it does it.

    python examples/rl_loop.py

Models, sampling, the meter, the controller and the formulas are kleash's rooms; the loop is here, with whole
distributions [B, T, V] in plain sight. `rl_basic.py` is the same run through the library: a test holds their numbers
against each other. What a library has to do besides is left out: to judge and undo updates, to keep a record, to do
without [B, T, V].
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kleash import control
from kleash.control import ControlConfig, Signals
from kleash.drift import measure_drift
from kleash.functional.advantages import deviation, gae, whiten
from kleash.functional.losses import clipped_policy_loss, clipped_value_loss
from kleash.functional.rewards import shaped_rewards
from kleash.models.embedded import resolve
from kleash.models.hub import freeze, load_language_model
from kleash.models.policy import LanguageModel
from kleash.models.value_head import ValueHead
from kleash.records import KLReading
from kleash.rewards.scorers import load_scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample

STEPS, EPOCHS, MINIBATCHES = 20, 2, 2
LEARNING_RATE, CLIP_EPS, VALUE_COEF = 3e-4, 0.2, 0.1
ROLLOUT = RolloutConfig(num_prompts=16, group_size=4, max_new_tokens=24)
CONTROL = ControlConfig(controller="pid", kl_coef=0.1, kl_target=6.0)
SEED = 7141385427855713540  # what `train.seed = 0` makes of itself


class Step(NamedTuple):
    """What one step reports."""

    reward: float
    kl: KLReading
    kl_coef: float
    foreseen: float
    """Of the returns' variance, by the value head."""


def distributions(model: LanguageModel, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """log π(·|h_t) at every token, [B, T, V], and the hidden states that it was read from."""
    hidden = model.hidden(rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids)
    return torch.log_softmax(model.head(hidden.flatten(0, 1)), -1).view(
        *hidden.shape[:2], -1
    ), hidden


def taken(logprobs: Tensor, rollout: Rollout) -> Tensor:
    """log π of the tokens that were drawn, [B, T]."""
    return logprobs.gather(-1, rollout.response_ids[..., None])[..., 0]


def exact_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(π(·|h_t) ‖ π_ref(·|h_t)) over the whole vocabulary, [B, T]."""
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)


def prompt_batches(prompts: list[str], generator: torch.Generator) -> Iterator[list[str]]:
    """Different prompts for every rollout, until none are left; then a new shuffle."""
    size = ROLLOUT.num_prompts
    while True:
        order = torch.randperm(len(prompts), generator=generator).tolist()
        for start in range(0, len(prompts) - size + 1, size):
            yield [prompts[i] for i in order[start : start + size]]


def run(steps: int = STEPS) -> Iterator[Step]:
    """The loop: sample, score, meter, choose β, update."""
    generator = torch.Generator().manual_seed(SEED)
    policy = load_language_model("tiny-reviews/base")
    reference, reward = freeze(policy), load_scorer("tiny-reviews/gold")
    value_head = ValueHead(policy.hidden_size)
    trained = [*policy.model.parameters(), *value_head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    with open(resolve("tiny-reviews/prompts"), encoding="utf-8") as file:
        prompts = [line.rstrip() for line in file if line.strip()]
    state = control.init(CONTROL)

    for _, asked in zip(range(steps), prompt_batches(prompts, generator), strict=False):
        rollout = sample(policy, asked, ROLLOUT, generator)
        mask, index = rollout.mask, rollout.prompt_index
        scores = torch.tensor(reward.score(rollout.prompts, rollout.responses))
        with torch.no_grad():
            logprobs, hidden = distributions(policy, rollout)
            ref_logprobs, _ = distributions(reference, rollout)
            kl = torch.where(mask, exact_kl(logprobs, ref_logprobs), 0.0)
            old_logprobs, values = taken(logprobs, rollout), value_head(hidden)

        reading = measure_drift(kl, mask, index, reference=reference.name)
        state = control.update(state, reading, Signals(num_responses=len(scores)))
        kl_coef = state.kl_coef

        # A token is charged the KL of the state that it leads to; that of its own state is in the loss.
        following = torch.nn.functional.pad(kl[:, 1:], (0, 1))
        rewards = shaped_rewards(scores, following, mask, kl_coef)
        advantages, returns = gae(rewards, values, mask)
        foreseen = float(1 - (returns - values)[mask].var() / returns[mask].var())
        scale = deviation(advantages, mask)  # what divides the advantages divides β
        advantages = whiten(advantages, mask)

        for _ in range(EPOCHS):
            for rows in torch.randperm(len(scores), generator=generator).tensor_split(MINIBATCHES):
                part = rollout.rows(rows)
                keep = part.mask
                now, hidden = distributions(policy, part)
                ref_now, _ = distributions(reference, part)
                policy_loss, _ = clipped_policy_loss(
                    taken(now, part)[keep],
                    at(old_logprobs, rows, keep),
                    at(advantages, rows, keep),
                    clip_eps=CLIP_EPS,
                )
                kl_loss = kl_coef / scale * exact_kl(now, ref_now)[keep]
                value_loss = clipped_value_loss(
                    value_head(hidden[keep]), at(values, rows, keep), at(returns, rows, keep)
                )
                loss = (policy_loss + kl_loss).mean() + VALUE_COEF * value_loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()

        yield Step(float(scores.mean()), reading, kl_coef, foreseen)


def at(tensor: Tensor, rows: Tensor, keep: Tensor) -> Tensor:
    """What was recorded at the tokens of some responses, whose mask may be the narrower."""
    return tensor[rows, : keep.shape[1]][keep]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, step in enumerate(run(), 1):
        print(f"{number:3}  reward {step.reward:+.2f}  KL {step.kl}  β {step.kl_coef:.3g}")
