"""What rewards say of a rollout, and what of it is learnt from: clipped, and less the penalties."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.rewards import length_penalty
from kleash.rewards.combined import ask_parts
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer
from kleash.rollout.rollout import Rollout


class Scored(NamedTuple):
    """What rewards say of a rollout, as `Experience` has it; [B] each."""

    scores: Tensor
    penalised: Tensor
    clipped: Tensor | None
    monitor: dict[str, Tensor]
    parts: dict[str, Tensor]
    disagreement: Tensor | None


def score(
    rollout: Rollout, reward: Scorer, monitors: Sequence[Scorer], config: RewardConfig
) -> Scored:
    """The reward's own scores, what is learnt from them, and what else is said of a rollout."""
    found = ask_parts(reward, rollout.prompts, rollout.responses)
    scores = _on(rollout, found.scores)
    learnt = scores if config.clip is None else scores.clamp(*config.clip)
    apart = found.disagreement
    return Scored(
        scores=scores,
        penalised=_penalised(learnt, rollout, config),
        clipped=None if config.clip is None else learnt != scores,
        monitor={monitor.name: ask(monitor, rollout) for monitor in monitors},
        parts={name: _on(rollout, part) for name, part in found.parts.items()},
        disagreement=None if apart is None else _on(rollout, apart),
    )


def _penalised(scores: Tensor, rollout: Rollout, config: RewardConfig) -> Tensor:
    penalised = scores - config.missing_eos_penalty * (~rollout.finished)
    if not config.length_penalty:
        return penalised
    return penalised - length_penalty(
        rollout.mask.sum(-1),
        config.length_penalty,
        config.length_free,
        config.length_penalty_max,
    )


def ask(scorer: Scorer, rollout: Rollout) -> Tensor:
    """Scores [B] of a rollout's responses, where the rollout is."""
    return _on(rollout, scorer.score(rollout.prompts, rollout.responses))


def _on(rollout: Rollout, scores: list[float]) -> Tensor:
    return torch.tensor(scores, dtype=torch.float32, device=rollout.mask.device)
