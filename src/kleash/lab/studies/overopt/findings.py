"""What the arms of the over-optimisation study show, in claims, tables and a figure."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kleash.lab.arms.outcomes import Arms, band, best_of_n, peak_values
from kleash.lab.studies.overopt.fits import fits_table, form_series
from kleash.lab.study.curves import at, peaks, rest_above
from kleash.lab.study.findings import (
    Claim,
    Figure,
    Findings,
    Panel,
    Table,
    Value,
    decide,
)
from kleash.lab.study.many import together
from kleash.lab.study.statistics import Estimate, differences, estimate

Kind = tuple[int, int]
GOLD_RISES, GOLD_FALLS, EQUAL_KL = "gold rises", "gold ends below its peak", "gold at equal KL"
"""Names of claims that the answer is made of."""
BEYOND = 1.5
"""How much further the arm without a penalty is drawn than what it is compared with."""


def conclude(
    free: Mapping[Kind, Arms],
    held: Mapping[float, Arms],
    pool: Mapping[str, Any],
    *,
    names: Mapping[Kind, str],
    accuracy: Mapping[Kind, Sequence[float | None]],
) -> Findings:
    """The findings.

    Args:
        free: arms without a penalty, by kind of proxy; the first kind is what all else is compared with.
        held: arms with one, by β, of that kind.
        pool: what `draw_pool` gives, with a reward a seed.
        names: of the kinds.
        accuracy: of the proxies on held-out pairs, by kind and seed.
    """
    first = next(iter(free))
    # Pool and arms are asked the same prompts, so that this is where the arms' gold begins.
    floor = fmean(score for row in pool["gold"] for score in row)
    chosen = best_of_n(pool)
    claims = [
        *_turns(free[first], floor),
        *_equal_kl(free[first], held),
        *_other_kinds(free, names, first),
        _efficiency(free[first], chosen),
    ]
    paths = {f"trained, {names[kind]}": arms.gold for kind, arms in free.items()}
    fits = fits_table({**paths, "best-of-n": chosen.gold}, floor)
    return Findings(
        answer=_answer(claims),
        claims=tuple(claims),
        tables=(_table(free, held, names, accuracy), fits),
        figure=_figure(free[first], held, chosen, floor),
        limits=(
            "One family of models of a few million parameters, film-review sentences, a gold model that is itself a "
            "reward model: what peaks where is of this setting.",
            "A seed draws its own preference pairs, fits its own proxy and trains its own policy: intervals are of "
            "all three together. They share the pool of the reference's responses that best-of-n chooses from.",
            "Along an arm responses are to the prompts of its steps, of the whole file; ends, the reference's gold and "
            "best-of-n are of those that are examined: the same prompts only where that is all of the file.",
            "Gold and proxy along an arm are means over the responses of a step, smoothed over five steps; what it "
            "ends as is measured on fresh responses. At equal KL an arm with a penalty is taken over the last third of "
            "its steps, where it may not be at rest yet.",
        ),
    )


def _turns(arms: Arms, floor: float) -> list[Claim]:
    """Whether gold rises over the reference's and falls while the proxy goes on rising."""
    found = peaks(arms.gold)
    peak = [None if each is None else each.value for each in found]
    fall = estimate(differences(peak, [each.gold for each in arms.ends]))
    there = [
        None if each is None else at(proxy, each.d)
        for each, proxy in zip(found, arms.proxy, strict=True)
    ]
    rise = estimate(differences([each.proxy for each in arms.ends], there))
    first = estimate(differences(peak, [floor] * len(peak)))
    return [
        decide(
            GOLD_RISES,
            first,
            (
                "Without a penalty the gold reward at first rises.",
                "Without a penalty the gold reward does not rise, even at first.",
                "Whether the gold reward rises at first without a penalty is open.",
            ),
            unit="gold reward",
        ),
        decide(
            GOLD_FALLS,
            fall,
            (
                "Without a penalty the gold reward ends below where it was highest.",
                "Without a penalty the gold reward does not end below the place where it was highest.",
                "Whether the gold reward ends below where it was highest is open.",
            ),
            unit="gold reward",
        ),
        decide(
            "the proxy goes on rising",
            rise,
            (
                "From there on the proxy reward still rises: by its own reward the policy gets better.",
                "The proxy reward does not rise after the gold peak.",
                "Whether the proxy reward rises after the gold peak is open.",
            ),
            unit="proxy reward",
        ),
    ]


def _equal_kl(free: Arms, held: Mapping[float, Arms]) -> list[Claim]:
    """What arms with a penalty are in the end, against what those without were at that KL: more than stopping early?"""
    claims: list[Claim] = []
    for beta, arms in held.items():
        rest = fmean(end.kl for end in arms.ends)
        place = f"Where β = {beta:g} comes to, near {rest:.2g} nats,"
        for name, own, other in (
            ("gold", arms.gold, free.gold),
            ("proxy", arms.proxy, free.proxy),
        ):
            claims.append(
                decide(
                    f"{name} at equal KL, β = {beta:g}",
                    estimate([rest_above(a, b) for a, b in zip(own, other, strict=True)]),
                    (
                        f"{place} it has more {name} reward than the arm without a penalty had when it came by.",
                        f"{place} it has no more {name} reward than the arm without a penalty had when it came by.",
                        f"{place} whether it has another {name} reward than stopping the arm without a penalty at "
                        "that KL is open.",
                    ),
                    unit=f"{name} reward",
                )
            )
    return claims


def _other_kinds(free: Mapping[Kind, Arms], names: Mapping[Kind, str], first: Kind) -> list[Claim]:
    """Whether other proxies have a higher gold peak; all of them are looked at together."""
    base = peak_values(free[first])
    others = [kind for kind in free if kind != first]
    gains = together([differences(peak_values(free[kind]), base) for kind in others])
    return [
        decide(
            f"a higher peak: {names[kind]}",
            gain,
            (
                f"The gold peak is higher with {names[kind]} than with {names[first]}.",
                f"The gold peak is no higher with {names[kind]} than with {names[first]}.",
                f"Whether {names[kind]} moves the gold peak from that of {names[first]} is open.",
            ),
            unit="gold reward",
        )
        for kind, gain in zip(others, gains, strict=True)
    ]


def _efficiency(free: Arms, chosen: Arms) -> Claim:
    """Best-of-n against a trained policy, at the largest KL that both come to in every seed."""
    reach = min(max(each.d) for each in (*chosen.gold, *free.gold))
    gains = differences(
        [at(each, reach) for each in chosen.gold], [at(each, reach) for each in free.gold]
    )
    return decide(
        "best-of-n spends KL better",
        estimate(gains),
        (
            f"At {reach**2:.1f} nats best-of-n has more gold reward than the trained policy.",
            f"At {reach**2:.1f} nats best-of-n has no more gold reward than the trained policy.",
            f"Whether best-of-n has more gold reward at {reach**2:.1f} nats than the trained policy is open.",
        ),
        unit="gold reward",
    )


def _answer(claims: Sequence[Claim]) -> str:
    """Whether gold rises and falls, and how arms with a penalty compare: what is open is said to be."""
    holds = {claim.name: claim.holds for claim in claims}
    said = [claim.says for claim in claims[:3]]
    if holds[GOLD_RISES] and holds[GOLD_FALLS]:
        said.append("The policy is over-optimised.")
    return " ".join([*said, *(claim.says for claim in claims if claim.name.startswith(EQUAL_KL))])


def _table(
    free: Mapping[Kind, Arms],
    held: Mapping[float, Arms],
    names: Mapping[Kind, str],
    accuracy: Mapping[Kind, Sequence[float | None]],
) -> Table:
    first = next(iter(free))
    rows = [_row(names[kind], 0.0, arms, accuracy[kind]) for kind, arms in free.items()]
    rows += [_row(names[first], beta, arms, accuracy[first]) for beta, arms in held.items()]
    return Table(
        title="Where gold peaks, and where arms end",
        columns=(
            "proxy",
            "β",
            "its accuracy",
            "gold at its peak",
            "KL there, nats",
            "gold at the end",
            "proxy at the end",
            "KL at the end, nats",
        ),
        rows=tuple(rows),
        note="Means over seeds. A peak's place is read off the other seeds, so that its value is not the largest of "
        "noisy ones, and a seed that never comes there is left out; ends are of fresh responses of the trained policy; "
        "accuracy is on held-out pairs with their noisy labels.",
    )


def _row(name: str, beta: float, arms: Arms, accuracy: Sequence[float | None]) -> tuple[Value, ...]:
    found = [each for each in peaks(arms.gold) if each is not None]
    means: list[Estimate | None] = [
        estimate(list(accuracy)),
        estimate([each.value for each in found]),
        estimate([each.d**2 for each in found]),
        estimate([each.gold for each in arms.ends]),
        estimate([each.proxy for each in arms.ends]),
        estimate([each.kl for each in arms.ends]),
    ]
    return (name, beta, *(None if each is None else each.value for each in means))


def _figure(free: Arms, held: Mapping[float, Arms], chosen: Arms, floor: float) -> Figure:
    """Gold and proxy of the free arm; gold with and without a penalty, and by best-of-n, as far as these come."""
    left = [
        band("proxy, no penalty", free.proxy, 1, "line"),
        band("gold, no penalty", free.gold, 2, "line"),
        form_series(free.gold, floor),
    ]
    others = [
        band(f"β = {beta:g}", arms.gold, colour, "line")
        for (beta, arms), colour in zip(held.items(), (0, 4, 3, 1) * len(held), strict=False)
    ]
    others.append(band("best-of-n", chosen.gold, 5, "dashed"))
    reach = BEYOND * max(each.x[-1] or 0.0 for each in others if each.x)
    right = [band("no penalty", free.gold, 2, "line", reach), *others]
    x = "√KL(π‖π_ref), √nats per response"
    return Figure(
        caption="Left: proxy and gold reward of policies trained on the proxy without a penalty, with the form "
        "d(α − β log d) fitted to the mean gold reward of the first 60 % of KL. Right: gold reward at equal KL, with "
        "a penalty, without, and by best-of-n. Bands are 95 % intervals over seeds, where three and more of them come.",
        panels=(
            Panel(title="Proxy and gold without a penalty", x=x, y="reward", series=tuple(left)),
            Panel(title="Gold at equal KL", x=x, y="gold reward", series=tuple(right)),
        ),
    )
