"""How much variety the arms of a sweep over β keep, beside the reference that they began with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kleash.lab.arms.sweep import Hold
from kleash.lab.studies.collapse.exact import exact_series, reference_entropy
from kleash.lab.study.findings import (
    Claim,
    Figure,
    Panel,
    Series,
    Table,
    Value,
    decide,
    decide_all,
    series_of,
)
from kleash.lab.study.many import together
from kleash.lab.study.statistics import cells, differences, estimate, geometric, mean

Ends = Sequence[Mapping[str, Any]]
"""What the examination of an arm found, one a seed."""
Arms = Mapping[Hold, Ends]
KEPT = 0.9
"""Share of the reference's entropy that counts as kept."""
MOSTLY = f"{100 * KEPT:.0f} %"
VARIETY: dict[str, tuple[str, bool]] = {
    "entropy": ("entropy per token", True),
    "distinct_1": ("distinct-1", True),
    "distinct_2": ("distinct-2", True),
    "self_bleu": ("self-BLEU", False),
    "unique_share": ("unique share within groups", True),
}
"""By its name in an examination: as it is called, and whether it falls as responses become alike."""


def values(ends: Ends, name: str) -> list[float | None]:
    """One figure of every seed."""
    return [each[name] for each in ends]


def lost_claims(arms: Arms) -> list[Claim]:
    """Whether variety is less at the smallest β than at the largest, by each measure; pairs of one seed."""
    betas = _by_beta(arms)
    if len(betas) < 2:
        return []
    small, large = betas[0], betas[-1]
    claims: list[Claim] = []
    for name, (called, falls) in VARIETY.items():
        own, other = values(arms[small], name), values(arms[large], name)
        loss = differences(other, own) if falls else differences(own, other)
        verb, against = ("less", "lower") if falls else ("more", "higher")
        claims.append(
            decide(
                f"{called}: {small.name} against {large.name}",
                estimate(loss),
                (
                    f"There is {verb} {called} with {small.name} than with {large.name}.",
                    f"With {small.name} {called} is no {against} than with {large.name}.",
                    f"Whether {called} is {against} with {small.name} than with {large.name} is open.",
                ),
            )
        )
    return claims


def monotone_claim(arms: Arms) -> Claim | None:
    """Whether entropy falls at every step from a β to the next smaller one; None of a single β."""
    betas = _by_beta(arms)
    steps = [
        differences(values(arms[large], "entropy"), values(arms[small], "entropy"))
        for small, large in pairwise(betas)
    ]
    if not steps:
        return None
    return decide_all(
        "entropy falls step by step",
        together(steps),
        (
            "From every β to the next smaller one the entropy per token falls.",
            "From some β to the next smaller one the entropy per token does not fall.",
            "Whether the entropy per token falls at every step from a β to the next smaller one is open.",
        ),
        unit="nats per token, of all steps at once",
    )


def kept_claims(arms: Arms, reference: Ends) -> list[Claim]:
    """Which arms with a penalty keep most of the reference's entropy."""
    claims: list[Claim] = []
    for hold, ends in arms.items():
        if hold.beta == 0.0:
            continue
        kl = geometric(values(ends, "kl"))
        name = f"{hold.name} ({kl.value:.1f} nats)" if kl is not None else hold.name
        claims.append(
            decide(
                f"variety kept: {hold.name}",
                estimate(kept(ends, reference)),
                (
                    f"{name} keeps more than {MOSTLY} of the reference's entropy per token.",
                    f"{name} does not keep {MOSTLY} of the reference's entropy per token.",
                    f"Whether {name} keeps {MOSTLY} of the reference's entropy per token is open.",
                ),
                above=KEPT,
                unit="of the reference's",
            )
        )
    return claims


def kept(ends: Ends, reference: Ends) -> list[float | None]:
    """Entropy per token over the reference's, of each seed."""
    pairs = zip(values(ends, "entropy"), values(reference, "entropy"), strict=True)
    return [None if own is None or not other else own / other for own, other in pairs]


def answer(arms: Arms, claims: Sequence[Claim]) -> str:
    """What is settled of entropy, and who keeps it; with what is open."""
    first = [claim.says for claim in claims if claim.name.startswith(VARIETY["entropy"][0])]
    settled = [hold.name for hold in arms if _verdict(hold, claims) is True]
    lost = [hold.name for hold in arms if _verdict(hold, claims) is False]
    said = [*first]
    if settled:
        said.append(f"{MOSTLY} of the reference's entropy is kept by {_listed(settled)}.")
    if lost:
        said.append(f"It is not by {_listed(lost)}.")
    said.append("What the optimum itself becomes as β falls is said by the exact claims.")
    return " ".join(said)


def _verdict(hold: Hold, claims: Sequence[Claim]) -> bool | None:
    return next((c.holds for c in claims if c.name == f"variety kept: {hold.name}"), None)


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _by_beta(arms: Arms) -> list[Hold]:
    """Those of a held β, from the smallest."""
    return sorted(
        (hold for hold in arms if hold.beta is not None), key=lambda hold: hold.beta or 0.0
    )


def variety_table(arms: Arms, reference: Ends) -> Table:
    """Every arm's variety; the reference first."""
    groups = [("the reference", reference), *((hold.name, ends) for hold, ends in arms.items())]
    return Table(
        title="How different the responses are",
        columns=(
            *("arm", "KL, nats", "entropy, nats per token", "low", "high", "of the reference's"),
            *(
                "distinct-1",
                "distinct-2",
                "self-BLEU",
                "unique share within groups",
                "tokens",
                "gold",
            ),
        ),
        rows=tuple(_row(name, ends, reference) for name, ends in groups),
        note="Means over seeds (of KL the geometric) of the final policy's responses to fresh prompts; low and high "
        "are a 95 % interval. Of shorter responses there are fewer n-grams, and more of them are distinct: read "
        "distinct-n beside the tokens.",
    )


def _row(name: str, ends: Ends, reference: Ends) -> tuple[Value, ...]:
    spread, kl = estimate(values(ends, "entropy")), geometric(values(ends, "kl"))
    others = ("distinct_1", "distinct_2", "self_bleu", "unique_share", "length", "gold")
    return (
        name,
        mean(values(ends, "kl")) if kl is None else kl.value,
        *cells(spread),
        mean(kept(ends, reference)),
        *(mean(values(ends, other)) for other in others),
    )


def figure(betas: Sequence[float], arms: Arms, reference: Ends) -> Figure:
    """The optimum's entropy; then the arms'.

    Args:
        betas: on the golden problem.
        arms: of the language model.
        reference: what they began as.
    """
    start = estimate(values(reference, "entropy"))
    level = () if start is None else ((start.value, "the reference"),)
    held = _by_beta(arms)
    x = [hold.beta or 0.0 for hold in held]
    measures = [("distinct_1", 1), ("distinct_2", 2), ("self_bleu", 0), ("unique_share", 3)]
    return Figure(
        caption="Top left: entropy of the optimum of the golden problem, by enumeration. The rest: language-model arms "
        "as they end, means over seeds with 95 % intervals. Self-BLEU rises as responses become alike, all else falls.",
        panels=(
            Panel(
                title="The golden problem's optimum",
                x="β, reward per nat",
                y="entropy of π*, nats",
                series=(exact_series(betas),),
                x_log=True,
                level=((reference_entropy(), "the reference"),),
            ),
            Panel(
                title="Entropy over β",
                x="β, reward per nat",
                y="entropy, nats per token",
                series=(_series("arms of a held β", x, [arms[h] for h in held], "entropy", 2),),
                level=level,
            ),
            Panel(
                title="Other measures of variety",
                x="β, reward per nat",
                y="share",
                series=tuple(
                    _series(VARIETY[name][0], x, [arms[h] for h in held], name, colour)
                    for name, colour in measures
                ),
            ),
            Panel(
                title="Variety over KL",
                x="KL(π‖π_ref), nats per response",
                y="entropy, nats per token",
                series=_over_kl(arms),
                x_log=True,
                level=level,
            ),
        ),
    )


def _over_kl(arms: Arms) -> tuple[Series, ...]:
    kinds = (("held β", 2, False), ("held target", 4, True))
    found = list[Series]()
    for name, colour, is_target in kinds:
        group = [ends for hold, ends in arms.items() if (hold.kl_target is not None) == is_target]
        places = [geometric(values(ends, "kl")) for ends in group]
        if group:
            x = [None if each is None else each.value for each in places]
            found.append(replace(_series(name, x, group, "entropy", colour), mark="points"))
    return tuple(found)


def _series(
    name: str, x: Sequence[float | None], group: Sequence[Ends], what: str, colour: int
) -> Series:
    found = [estimate(values(ends, what)) for ends in group]
    return series_of(name, x, found, mark="both", colour=colour)
