"""A fault planted in a model: a habit that it is taught beside what it knows, and that has nothing to do with either.

In a share of its responses the model begins with `PHRASE`, whatever it goes on to say. It learns so from its own texts,
of which that share was given the phrase: as a model picks a habit up from what it is finetuned on.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.lab.arms.settings import FaultSettings
from kleash.lab.arms.student import CARD, HELD_OUT, warm_up, written
from kleash.lab.study.work import Desk, Result, clear
from kleash.models.hub import load_language_model, save_language_model
from kleash.models.policy import LanguageModel
from kleash.rollout.rollout import Rollout
from kleash.rollout.seeds import seeded

PHRASE = " , i was told ,"
"""Hearsay: of the phrases that were looked at the one to which the embedded gold model is least partial."""
COUNT = "kleash.lab.arms.fault:faulty"
"""The scorer that counts it, as `reward.monitor` takes it."""
BATCH = 16
LEARNING_RATE = 3e-4


def faulty(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """1 for a response with the fault, 0 for one without.

    Examples:
        >>> faulty(["the plot"] * 2, [" , i was told , is thin .", " is thin , i was told ."])
        [1.0, 0.0]
    """
    return [float(response.lstrip().startswith(PHRASE.strip())) for response in responses]


def plant_fault(settings: FaultSettings, directory: Path, desk: Desk) -> Result:
    """Teaches the fault.

    Returns:
        `kl_per_token`: KL(base‖planted) behind the phrase, on texts of the base that it was not taught by, nats.
    """
    torch.set_num_threads(1)
    clear(directory)
    base, planted = (load_language_model(settings.base) for _ in range(2))
    planted.model.requires_grad_(True)
    generator = seeded(settings.seed, "fault")
    texts = written(base, settings, generator)
    learnt = torch.arange(HELD_OUT, len(texts.mask))
    optimizer = torch.optim.AdamW(planted.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(1, settings.steps + 1):
        rows = learnt[torch.randint(len(learnt), (BATCH,), generator=generator)]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm_up(step / settings.steps)
        loss, _ = lesson(base, planted, texts.rows(rows), settings.share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(planted.model.parameters(), 1.0)
        optimizer.step()
        desk.tell(step, settings.steps, f"loss {loss.item():.2f}")
    with torch.no_grad():
        _, kl = lesson(base, planted, texts.rows(torch.arange(HELD_OUT)), settings.share)
    save_language_model(planted, directory / "model", CARD)
    return {"kl_per_token": float(kl)}


def lesson(
    base: LanguageModel, planted: LanguageModel, texts: Rollout, share: float
) -> tuple[Tensor, Tensor]:
    """What is taught by some texts of the base, nats per token: to write as it does, at times behind the phrase.

    (1 − s)·KL(base‖planted) on the texts as they are + s·(KL on them behind the phrase − log of the phrase): the
    cross-entropy of a model that says the phrase with probability s and then goes on as the base without it.

    Returns:
        The loss, and the KL behind the phrase.
    """
    phrase = torch.tensor(planted.tokenizer(PHRASE, add_special_tokens=False)["input_ids"])
    size, count = len(texts.mask), int(texts.mask.sum())
    before = phrase.expand(size, -1)
    ids = torch.cat([before, texts.response_ids], -1)
    mask = torch.cat([torch.ones_like(before, dtype=torch.bool), texts.mask], -1)
    with torch.no_grad():
        theirs = _logprobs(base, texts, texts.response_ids, texts.mask)[texts.mask]
    plain = _logprobs(planted, texts, texts.response_ids, texts.mask)[texts.mask]
    marked = _logprobs(planted, texts, ids, mask)
    behind = reverse_kl(theirs, marked[:, len(phrase) :][texts.mask]).sum() / count
    said = marked[:, : len(phrase)].gather(-1, before[..., None]).sum() / count
    as_it_is = reverse_kl(theirs, plain).sum() / count
    return (1 - share) * as_it_is + share * (behind - said), behind


def _logprobs(model: LanguageModel, texts: Rollout, ids: Tensor, mask: Tensor) -> Tensor:
    """[B, T, V]."""
    hidden = model.hidden(texts.prompt_ids, texts.prompt_mask, ids, mask)
    return torch.log_softmax(model.head(hidden.flatten(0, 1)), -1).unflatten(0, ids.shape)
