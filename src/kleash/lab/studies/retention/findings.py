"""What a penalty and a pretraining loss keep, by how much less likely the reference's own texts have become."""

from collections.abc import Mapping, Sequence
from typing import Any

from kleash.lab.study.findings import Claim, Figure, Findings, Panel, Series, Table, decide
from kleash.lab.study.statistics import Estimate, differences, estimate, least_squares, mean

FREE = "β = 0"
End = Mapping[str, Any]
Ends = Mapping[str, Sequence[End]]
"""The examinations of each arm's seeds, by its name."""


def conclude(ends: Ends) -> Findings:
    """The findings.

    Args:
        ends: by name: `β = 0`, then other `β = …` from small to large, then `γ = …`.
    """
    betas = [name for name in ends if name.startswith("β") and name != FREE]
    coefs = [name for name in ends if name.startswith("γ")]
    claims = [
        *(claim(ends, name) for name in (*betas, *coefs) for claim in (_keeps, _learns)),
        *([_repairs(ends, betas[0], betas[-1])] if len(betas) > 1 else []),
        *(_cheaper(ends, name, betas) for name in coefs if betas),
    ]
    return Findings(
        answer=" ".join(
            [_lost(ends), *(claim.says for claim in claims[: 2 * (len(betas) + len(coefs)) : 2])]
        ),
        claims=tuple(claims),
        tables=(_table(ends),),
        figure=_figure(ends, betas, coefs),
        limits=(
            "Both halves of the prompts open film reviews: the other half is another task only in that the policy "
            "never answers it. Of tasks that are further away nothing is said.",
            "What is measured is KL(π_ref‖π) per token on the reference's own answers, not what people wrote. It is "
            "above 0 of any policy that has changed at all: that something is lost is no finding, how much is.",
            "Arms differ in what they learnt, too, and an arm that learnt nothing keeps everything. Whether the free "
            "arm lost as little when it had learnt as little is not measured: texts are asked about at the end alone.",
        ),
    )


def values(ends: Ends, name: str, field: str) -> list[float | None]:
    """One figure of every seed of an arm."""
    return [each.get(field) for each in ends[name]]


def kept_share(ends: Ends, name: str) -> list[float | None]:
    """What an arm loses of the other texts, over what the one without a penalty loses, seed by seed."""
    return [
        None if own is None or not free else own / free
        for own, free in zip(
            values(ends, name, "lost_other"), values(ends, FREE, "lost_other"), strict=True
        )
    ]


def ended(end: End, began: End) -> End:
    """The examination of a run, with the proxy reward that it gained over the reference's of the same prompts."""
    return {**end, "gain": end["reward"] - began["reward"]}


def learnt_share(ends: Ends, name: str) -> list[float | None]:
    """The proxy reward that an arm gained, over what the one without a penalty gained, seed by seed."""
    return [
        None if own is None or free is None or free <= 0 else own / free
        for own, free in zip(values(ends, name, "gain"), values(ends, FREE, "gain"), strict=True)
    ]


def _lost(ends: Ends) -> str:
    """A measurement, and no claim: a KL can't be below 0."""
    lost, gained = (estimate(values(ends, FREE, field)) for field in ("lost_other", "gain"))
    return (
        f"Without a penalty texts that the policy was not trained to change become {_told(lost)} nats per token less "
        f"likely, while it gains {_told(gained)} of proxy reward."
    )


def _what(name: str) -> str:
    return f"A penalty of {name}" if name.startswith("β") else f"A pretraining loss of {name}"


def _learns(ends: Ends, name: str) -> Claim:
    """Whether an arm gains more than half of what the free one gains."""
    return decide(
        f"{name} learns more than half",
        estimate(learnt_share(ends, name)),
        (
            f"{_what(name)} lets more than half of the proxy reward be gained that is gained without.",
            f"{_what(name)} lets no more than half of the proxy reward be gained that is gained without.",
            f"Whether {name} lets half of the proxy reward be gained that is gained without is not settled.",
        ),
        above=0.5,
        unit="of what is gained without",
    )


def _keeps(ends: Ends, name: str) -> Claim:
    """Whether an arm loses less than half of what the free one loses; and what it learnt meanwhile."""
    kept = estimate([None if x is None else 1 - x for x in kept_share(ends, name)])
    gained = estimate(values(ends, name, "gain"))
    sure = gained is not None and gained.is_above(0.0)
    what, learnt = _what(name), f"it gained {_told(gained)} of proxy reward"
    learnt += "" if sure else ", and may have learnt nothing"
    return decide(
        f"{name} keeps more than half",
        kept,
        (
            f"{what} keeps more than half of what is lost without; {learnt}.",
            f"{what} keeps less than half of what is lost without; {learnt}.",
            f"{what} may keep more than half of what is lost without, or less: that is not settled; {learnt}.",
        ),
        above=0.5,
        unit="of what is lost without",
    )


def _repairs(ends: Ends, small: str, large: str) -> Claim:
    less = differences(values(ends, small, "lost_other"), values(ends, large, "lost_other"))
    return decide(
        f"{large} over {small}",
        estimate(less),
        (
            f"With {large} less is lost than with {small}.",
            f"With {large} no less is lost than with {small}.",
            f"Whether less is lost with {large} than with {small} is not settled.",
        ),
        unit="nats per token",
    )


def _cheaper(ends: Ends, name: str, betas: Sequence[str]) -> Claim:
    """Whether a pretraining loss keeps more than the penalty whose arm gains about as much reward."""
    gained = {each: estimate(values(ends, each, "gain")) for each in (name, *betas)}
    own = gained[name]
    known = {each: found for each in betas if (found := gained[each]) is not None}
    if own is None or not known:
        return decide(f"{name} at equal reward", None, ("", "", "It could not be compared."))
    near = min(known, key=lambda each: abs(known[each].value - own.value))
    less = differences(values(ends, near, "lost_other"), values(ends, name, "lost_other"))
    apart = estimate(differences(values(ends, name, "gain"), values(ends, near, "gain")))
    beside = f"{near} is the penalty whose gain is nearest, {_told(apart)} apart"
    return decide(
        f"{name} against {near}",
        estimate(less),
        (
            f"{name} loses less of the other texts than {near}; {beside}.",
            f"{name} loses no less of the other texts than {near}; {beside}.",
            f"Whether {name} loses less of the other texts than {near} is not settled; {beside}.",
        ),
        unit="nats per token",
    )


def _told(found: Estimate | None) -> str:
    if found is None:
        return "an unknown amount"
    ends = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}{ends}".replace("-", "−")


def _table(ends: Ends) -> Table:
    fields = ("kl", "gain", "reward", "gold", "lost_task", "lost_other")
    rows = [
        (
            name,
            *(mean(values(ends, name, field)) for field in fields),
            mean(kept_share(ends, name)),
            mean(learnt_share(ends, name)),
        )
        for name in ends
    ]
    return Table(
        title="What is learnt, and what is lost",
        columns=(
            *("arm", "KL(π‖π_ref), nats", "proxy gain", "proxy reward", "gold reward"),
            "lost on the task, nats per token",
            "lost beside it, nats per token",
            *("of what is lost without", "of what is gained without"),
        ),
        rows=tuple(rows),
        note="Means over seeds. Lost: KL(π_ref‖π) per token on the reference's answers to the prompts that are trained "
        "on, and to the others.",
    )


def _figure(ends: Ends, betas: Sequence[str], coefs: Sequence[str]) -> Figure:
    kinds = {"no penalty": [FREE], "KL penalty": list(betas), "pretraining loss": list(coefs)}
    left = [_scatter(kind, ends, names, "kl", i) for i, (kind, names) in enumerate(kinds.items())]
    right = [
        _scatter(kind, ends, names, "gain", i) for i, (kind, names) in enumerate(kinds.items())
    ]
    line = _line(ends)
    y = "lost beside the task, nats per token"
    return Figure(
        caption="How much less likely the reference's answers to prompts beside the task have become: over the KL that "
        "the penalty is about, and over the proxy reward that was gained. A point is one seed of one arm; the line is "
        "a least-squares fit through 0 over all arms without a pretraining loss.",
        panels=(
            Panel(title="Over KL", x="KL(π‖π_ref), nats per response", y=y, series=(*left, *line)),
            Panel(title="Over what was gained", x="proxy reward gained", y=y, series=tuple(right)),
        ),
    )


def _scatter(kind: str, ends: Ends, names: Sequence[str], x: str, colour: int) -> Series:
    rows = [(each[x], each["lost_other"]) for name in names for each in ends[name]]
    return Series(
        name=kind,
        x=tuple(row[0] for row in rows),
        y=tuple(row[1] for row in rows),
        mark="points",
        colour=(2, 0, 3)[colour],
    )


def _line(ends: Ends) -> list[Series]:
    """lost ≈ c·KL, and how much of the spread that explains."""
    rows = [
        (each["kl"], each["lost_other"])
        for name in ends
        if name.startswith("β")
        for each in ends[name]
        if each["kl"] is not None and each["lost_other"] is not None
    ]
    fit = least_squares([[x for x, _ in rows]], [y for _, y in rows])
    if fit is None:
        return []
    most, share = max(x for x, _ in rows), fit.r_squared
    name = "fit" if share is None else f"fit, R² = {share:.2f}"
    return [
        Series(
            name=name, x=(0.0, most), y=(0.0, fit.coefficients[0] * most), mark="dashed", colour=5
        )
    ]
