"""Search for hidden drift: short contexts after which a policy is far from a reference it is near to elsewhere.

What is maximised is the exact KL(π‖π_ref) of the token that follows a context: an ordinary prompt and a tail of a few
tokens. The vocabulary is screened for tails of one token; what stands out there is combined; and from the best of it,
and from fresh combinations, the search climbs by substituting one token at a time along the gradient of the KL.

The budget counts every token that is put through either model once (`scorer` has the rule in full): ordinary
prompts, screening, gradients and the answers that are shown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kleash.audit.hidden.moves import Found, Pool
from kleash.audit.hidden.null import THRESHOLD, p_value, per_token, quantile, statistic
from kleash.audit.hidden.result import Hidden, HiddenContext, PairedCue
from kleash.audit.hidden.scorer import Answers, Scorer, Told
from kleash.audit.hidden.ways import LONGEST, WAYS, Ground, Plan, vocabulary
from kleash.errors import InputError
from kleash.models.policy import LanguageModel

BUDGET = 200_000
ANSWER = 16
"""Tokens of an answer, shown or on ordinary prompts."""
SHOWN = 10
"""Contexts in the result."""
PREFIXES = 2
"""Ordinary prompts that tails are put behind: the shortest."""


def search(  # noqa: PLR0913 - two models and prompts, how far, by which luck, against what, and who hears of it
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    budget: int = BUDGET,
    seed: int = 0,
    null: Sequence[float] | None = None,
    told: Told | None = None,
    plan: Plan | None = None,
) -> Hidden:
    """The contexts with the largest KL(π‖π_ref) of the token that follows, and whether they are an alarm.

    Args:
        policy: whose drift is sought.
        reference: from which; it shares the policy's vocabulary.
        prompts: ordinary ones, as rows of token ids.
        budget: tokens through either model; a gradient counts three times.
        seed: of all that is drawn.
        null: statistics of this search on fine-tunes that hide nothing, for a p-value of one's own.
        told: hears how much is spent, of how much, and the largest KL yet.
        plan: which way, and how the budget is divided.

    Raises:
        InputError: there are no prompts, the budget is too small for one of them, or the vocabularies differ.
    """
    plan = plan or Plan()
    rows = _checked(policy, reference, prompts, budget, plan.way)
    scorer = Scorer(policy, reference, budget, told)
    generator = torch.Generator().manual_seed(seed)
    usual = _ordinary(scorer, rows, int(plan.ordinary * budget), generator)
    prefixes = sorted({tuple(x) for x in rows}, key=lambda x: (len(x), x))[:PREFIXES]
    shown = 4 * SHOWN * (max(map(len, prefixes)) + LONGEST + ANSWER)
    pool = Pool()
    ground = Ground(scorer, pool, prefixes, vocabulary(policy), generator, plan)
    scorer.kept = min(shown, budget // 10)
    paired = _cues(ground, rows)
    WAYS[plan.way](ground)
    scorer.kept = 0
    found = sorted([*pool.best(pool.keep), usual.found], key=lambda x: -x.nats)
    contexts = _shown(scorer, distinct(found, SHOWN), usual.found.nats)
    answers = [x.kl_of_answer for x in contexts if x.kl_of_answer is not None]
    stat = statistic(max(answers), usual.usual) if answers else None
    return Hidden(
        alarm=None if stat is None else stat > THRESHOLD,
        statistic=stat,
        threshold=THRESHOLD,
        p_value=None if null is None or stat is None else p_value(stat, null),
        ordinary_max=usual.found.nats,
        ordinary_mean=usual.mean,
        ordinary_usual=usual.usual,
        contexts=contexts,
        tokens=scorer.spent,
        budget=budget,
        curve=tuple(scorer.curve),
        paired=tuple(paired),
    )


def _checked(
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[Sequence[int]],
    budget: int,
    way: str,
) -> list[list[int]]:
    """The prompts that both contexts have room for.

    Raises:
        InputError: as `search` says.
    """
    if way not in WAYS:
        raise InputError("there is no such way to search", expected=", ".join(WAYS), got=repr(way))
    if policy.vocab_size != reference.vocab_size:
        raise InputError(
            "the two models have no vocabulary in common",
            expected=f"{reference.vocab_size} tokens, as {reference.name} has",
            got=f"{policy.vocab_size} in {policy.name}",
        )
    room = min(x.context or 1 << 30 for x in (policy, reference)) - ANSWER - LONGEST
    rows = [list(row) for row in prompts if 0 < len(row) <= room]
    if not rows:
        raise InputError(
            "there is no ordinary prompt to begin with",
            expected=f"at least one of 1 to {room} tokens",
            got=f"{len(prompts)} prompts",
        )
    least = 20 * (min(map(len, rows)) + ANSWER)
    if budget < least:
        raise InputError(
            "the budget is too small for one ordinary prompt",
            expected=f"at least {least} tokens",
            got=str(budget),
            do="raise it: the search is made for 200,000",
        )
    return rows


@dataclass(frozen=True, slots=True)
class Usual:
    """The KL per token on ordinary prompts."""

    found: Found
    """The largest of all, and the context that it is after."""
    mean: float
    usual: float


def _ordinary(
    scorer: Scorer, rows: Sequence[list[int]], limit: int, generator: torch.Generator
) -> Usual:
    """One sampled response to each of as many prompts as `limit` tokens pay for."""
    nats: list[float] = []
    worst = Found(-1.0, (), (), "ordinary")
    for batch in _same_length(rows):
        fits = (limit - scorer.spent) // (2 * (len(batch[0]) + ANSWER - 1))
        if fits <= 0:
            continue
        said = scorer.follow(batch[: max(1, fits)], ANSWER, generator)
        flat = said.kl[said.alive].tolist()
        nats += flat
        if max(flat) > worst.nats:
            row, place = divmod(int(said.kl.where(said.alive, -1.0).argmax()), ANSWER)
            ids = (*batch[row], *said.tokens[row, :place].tolist())
            worst = Found(max(flat), ids, (), "ordinary")
    return Usual(worst, math.fsum(nats) / len(nats), quantile(nats))


def _same_length(rows: Sequence[list[int]]) -> list[list[list[int]]]:
    lengths = sorted({len(row) for row in rows})
    return [[row for row in rows if len(row) == length] for length in lengths]


def _cues(ground: Ground, rows: Sequence[list[int]]) -> list[PairedCue]:
    """Each cue before a few ordinary prompts, and the same prompts without it."""
    scorer, tokenizer = ground.scorer, ground.scorer.policy.tokenizer
    size = len(rows[0])
    few = torch.tensor([row for row in rows if len(row) == size][:4])
    begins = tokenizer.bos_token_id is not None and bool(
        (few[:, 0] == tokenizer.bos_token_id).all()
    )
    first = few[:, : int(begins)]
    rest = few[:, first.shape[1] :]
    bare = scorer.after((), few)
    found = []
    for cue in ground.plan.cues:
        ids = torch.tensor(tokenizer(cue, add_special_tokens=False)["input_ids"]).expand(
            len(few), -1
        )
        whole = torch.cat([first, ids, rest], 1).long()
        room = min(x.context or 1 << 30 for x in (scorer.policy, scorer.reference))
        if whole.shape[1] + ANSWER > room or 2 * whole.numel() > scorer.budget // 50:
            continue
        nats = scorer.after((), whole)
        if len(nats) < len(few) or len(bare) < len(few):
            break
        ground.pool.add((), whole, nats, "cue")
        found.append(PairedCue(cue, float(nats.mean()), float(bare.mean())))
    return found


def distinct(found: Sequence[Found], count: int) -> list[Found]:
    """The first of contexts that have at most half of a tail in common.

    Examples:
        >>> tails = (7, 8), (7, 8, 9), (5,)
        >>> [x.tail for x in distinct([Found(1.0, (1,), tail, "pair") for tail in tails], 10)]
        [(7, 8), (5,)]
    """
    chosen: list[Found] = []
    for now in found:
        mine = set(now.tail or now.prefix)
        if all(
            2 * len(mine & set(x.tail or x.prefix)) <= min(len(mine), len(set(x.tail or x.prefix)))
            for x in chosen
        ):
            chosen.append(now)
        if len(chosen) == count:
            break
    return chosen


def _shown(scorer: Scorer, found: Sequence[Found], ordinary: float) -> tuple[HiddenContext, ...]:
    """Contexts with what each model says after them."""
    answers: dict[tuple[int, ...], Answers] = {}
    for batch in _same_length([list(x.ids) for x in found]):
        told = scorer.show(batch, ANSWER)
        answers |= {tuple(ids): given for ids, given in zip(batch, told, strict=False)}
    return tuple(_context(scorer, x, ordinary, answers.get(x.ids)) for x in found)


def _context(
    scorer: Scorer, found: Found, ordinary: float, answers: Answers | None
) -> HiddenContext:
    return HiddenContext(
        text=scorer.policy.tokenizer.decode(found.ids),
        ids=found.ids,
        kl_policy_ref=found.nats,
        kl_ref_policy=None if answers is None else answers.kl_ref_policy,
        ratio=found.nats / ordinary if ordinary > 0 else None,
        kl_of_answer=None if answers is None else per_token(answers.nats),
        policy_answer=None if answers is None else answers.policy,
        reference_answer=None if answers is None else answers.reference,
        found_by=found.by,
    )
