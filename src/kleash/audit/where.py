"""Where two models part: by prompt, position and token, in real answers, and in how likely they find other texts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kleash.audit.pair import Pair
from kleash.audit.prompts import Prompt
from kleash.audit.rounds import Measured
from kleash.audit.stream import Stream, hear, listen
from kleash.models.policy import LanguageModel
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded

TOP = 20
"""Prompts, and tokens either way, that are listed."""
GREEDY = 1e-5
"""The temperature that stands for 0: the likeliest token is drawn, unless the next is within 1e-4 nats of it."""


def by_position(measured: Measured) -> list[dict[str, Any]]:
    """KL at each position of a response, both ways, nats per response; the positions add up to it."""
    sides = measured.policy, measured.reference
    longest = max(int(side.position.max()) + 1 for side in sides)
    summed, counts = zip(*(_at_positions(side, longest) for side in sides), strict=True)
    return [
        {
            "position": t,
            "kl_policy_ref": float(summed[0][t]) / sides[0].count,
            "kl_ref_policy": float(summed[1][t]) / sides[1].count,
            "count": int(counts[0][t]),
        }
        for t in range(longest)
    ]


def _at_positions(stream: Stream, longest: int) -> tuple[Tensor, Tensor]:
    zeros = torch.zeros(longest, dtype=torch.double)
    summed = zeros.index_add(0, stream.position, stream.read.kl.double())
    return summed, torch.bincount(stream.position, minlength=longest)


def by_prompt(measured: Measured, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Mean KL of the responses to each prompt, both ways, nats per response; the worst first."""
    means = [_of_prompts(side, len(prompts)) for side in (measured.policy, measured.reference)]
    order = means[0].argsort(descending=True, stable=True)[:TOP].tolist()
    return [
        {
            "prompt": prompts[i].text,
            "slice": prompts[i].slice,
            "kl_policy_ref": float(means[0][i]),
            "kl_ref_policy": float(means[1][i]),
            "index": i,
        }
        for i in order
    ]


def _of_prompts(stream: Stream, count: int) -> Tensor:
    zeros = torch.zeros(count, dtype=torch.double)
    sums = zeros.index_add(0, stream.prompt, stream.totals(stream.read.kl))
    return sums / torch.bincount(stream.prompt, minlength=count)


def by_token(measured: Measured, tokenizer: Any) -> dict[str, list[dict[str, Any]]]:
    """Tokens that gained and lost most probability, on average over the states of both models: exact, not by draws."""
    order = measured.gained.argsort(descending=True, stable=True)
    gained = [i for i in order[:TOP].tolist() if measured.gained[i] > 0]
    lost = [i for i in order.flip(0)[:TOP].tolist() if measured.gained[i] < 0]
    return {
        name: [
            {"token": tokenizer.decode([i]), "id": i, "probability": float(measured.gained[i])}
            for i in ids
        ]
        for name, ids in (("gained", gained), ("lost", lost))
    }


class _Shown(NamedTuple):
    """One model's greedy answers, with the KL at each token from the model that gave them to the other."""

    texts: tuple[str, ...]
    tokens: list[list[int]]
    kl: list[list[float]]


def side_by_side(
    pair: Pair,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    worst: Sequence[int],
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Greedy answers of both models to some prompts, token by token with their KL.

    Args:
        pair: the models.
        prompts: all of them.
        encoded: the same in tokens.
        worst: which are asked.
        max_new_tokens: the longest answer.
    """
    if not worst:
        return []
    texts, rows = [prompts[i].text for i in worst], [encoded[i] for i in worst]
    policy = pair.policy()
    answers = _greedy(policy, texts, rows, max_new_tokens)
    own = hear(policy, answers)
    del policy
    reference = pair.reference()
    others, theirs = _greedy(reference, texts, rows, max_new_tokens), hear(reference, answers)
    other_own = hear(reference, others)
    del reference
    other_theirs = hear(pair.policy(), others)
    which = range(len(worst))
    shown = [
        _shown(rollout, listen(rollout, which, one, other, 1.0)[0])
        for rollout, one, other in ((answers, own, theirs), (others, other_own, other_theirs))
    ]
    return [
        {
            "prompt": texts[i],
            "slice": prompts[worst[i]].slice,
            "same": shown[0].tokens[i] == shown[1].tokens[i],
            **{
                name: {
                    "text": side.texts[i],
                    "tokens": [pair.tokenizer.decode([token]) for token in side.tokens[i]],
                    "kl": side.kl[i],
                }
                for name, side in zip(("policy", "reference"), shown, strict=True)
            },
        }
        for i in which
    ]


def _greedy(
    model: LanguageModel, texts: Sequence[str], rows: Sequence[list[int]], max_new_tokens: int
) -> Rollout:
    config = RolloutConfig(
        num_prompts=len(rows), group_size=1, max_new_tokens=max_new_tokens, temperature=GREEDY
    )
    return sample(model, texts, config, seeded(0, "greedy"), encoded=rows)


def _shown(rollout: Rollout, stream: Stream) -> _Shown:
    per_response = [stream.response == i for i in range(stream.count)]
    return _Shown(
        rollout.responses,
        [stream.tokens[rows].tolist() for rows in per_response],
        [stream.read.kl[rows].tolist() for rows in per_response],
    )
