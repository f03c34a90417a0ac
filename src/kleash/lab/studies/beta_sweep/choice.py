"""Which β or target of a sweep a person should take, and what to write for it."""

import math
from collections.abc import Sequence
from statistics import fmean

from kleash.lab.arms.sweep import Hold
from kleash.lab.studies.beta_sweep.findings import Arms, Ended
from kleash.lab.study.choice import Choice, choose, crossed
from kleash.lab.study.findings import Claim, Table, decide
from kleash.lab.study.statistics import Estimate, cells, differences, estimate, geometric


def chosen(arms: Arms) -> Choice:
    """The arm with the largest gold reward, without flattery."""
    return choose([[each.gold for each in group] for group in arms.values()])


def written(hold: Hold, kl: float) -> str:
    """The line of a configuration that holds what an arm came to.

    Args:
        hold: of the arm.
        kl: that it ended at, nats per response.

    Examples:
        >>> written(Hold(beta=0.1), 6.27)
        'rl.kl_target = 6.3'
        >>> written(Hold(beta=0.0), 80.0)  # it ended there on its way, and was held to nothing
        'rl.controller = "fixed", rl.kl_coef = 0'
    """
    if hold.beta == 0.0:
        return 'rl.controller = "fixed", rl.kl_coef = 0'
    target = float(f"{kl:.2g}") if hold.kl_target is None else hold.kl_target
    return f"rl.kl_target = {target:g}"


def choice_claims(arms: Arms, choice: Choice, floor: float) -> list[Claim]:
    """Whether one arm is the best, whether to train is better than not to, and whether a penalty is than none.

    Args:
        arms: at least two.
        choice: among them.
        floor: gold reward of the reference.
    """
    names = [hold.name for hold in arms]
    alone = len(choice.contenders) == 1
    rest = ", ".join(names[i] for i in choice.contenders)
    claims = [
        Claim(
            name="one arm has the largest gold reward",
            says=f"{names[choice.best]} has the largest gold reward of all arms."
            if alone
            else f"Which arm has the largest gold reward is open between {rest}.",
            holds=True if alone else None,
            estimate=choice.value,
            unit="gold reward",
        ),
        decide(
            "better than the reference",
            choice.value,
            (
                "The arm that other seeds choose has more gold reward than the untrained reference.",
                "The arm that other seeds choose has no more gold reward than the untrained reference.",
                "Whether any arm has more gold reward than the untrained reference is open.",
            ),
            above=floor,
            unit="gold reward",
        ),
    ]
    return [*claims, *_worth_a_penalty(arms)]


def _worth_a_penalty(arms: Arms) -> list[Claim]:
    """Whether the best arm with a penalty beats none; of these alone, lest the one without be compared with itself."""
    golds = {hold: [each.gold for each in group] for hold, group in arms.items()}
    held = [own for hold, own in golds.items() if hold.beta != 0.0]
    free = [own for hold, own in golds.items() if hold.beta == 0.0]
    return [
        decide(
            "a penalty is worth it",
            estimate(differences(crossed(held), list(own))),
            (
                "The arm with a penalty that other seeds choose has more gold reward than the one without.",
                "The arm with a penalty that other seeds choose has no more gold reward than the one without.",
                "Whether a penalty has more gold reward than none is open.",
            ),
            unit="gold reward",
        )
        for own in free
        if held
    ]


def answer(arms: Arms, choice: Choice) -> str:
    """What to write, what it is worth, and what else may be as good."""
    holds = list(arms)
    best = holds[choice.best]
    kl = kl_of(arms[best])
    others = [holds[i].name for i in choice.contenders if i != choice.best]
    said = f"Write {written(best, kl.value)}: {best.name}, which ended at {_nats(kl)}, has the largest mean gold reward"
    open_ = f", but it can't be told from {' or '.join(others)}: that is open." if others else "."
    return said + open_ + _worth(choice.value) + _measured_with(best, kl.value, arms)


def _measured_with(best: Hold, kl: float, arms: Arms) -> str:
    """That what is written is not what was run, where it isn't; and of what was run, what is nearest to it."""
    if not best.beta:
        return ""
    held = [hold for hold in arms if hold.kl_target is not None]
    nearest = min(held, key=lambda hold: abs(math.log((hold.kl_target or kl) / kl)), default=None)
    other = (
        " No target was."
        if nearest is None
        else f" Of the targets that were, {nearest.kl_target:g} nats is nearest, with a gold reward of "
        f"{fmean(each.gold for each in arms[nearest]):.2f}."
    )
    return (
        f" All of that was measured with {best.name} held: the target is the KL where that came to, and what a "
        f"controller that holds it is worth was not measured.{other}"
    )


def kl_of(group: Sequence[Ended]) -> Estimate:
    """Where the seeds of an arm end: their geometric mean, as they differ by factors."""
    found = geometric([each.kl for each in group])
    return found or Estimate(value=fmean(each.kl for each in group), n=len(group))


def _worth(value: Estimate | None) -> str:
    if value is None or value.low is None or value.high is None:
        return ""
    return f" Chosen on other seeds, the gold reward is {value.value:.2f} ({value.low:.2f} to {value.high:.2f})."


def _nats(kl: Estimate) -> str:
    if kl.low is None or kl.high is None:
        return f"{kl.value:.1f} nats"
    return f"{kl.value:.1f} nats ({kl.low:.1f} to {kl.high:.1f})"


def choice_table(arms: Arms, choice: Choice) -> Table:
    """Each arm against the choice, and what to write for it."""
    rows = [
        (
            hold.name,
            written(hold, kl_of(group).value),
            f"{hold.name} held" if hold.beta else "as written",
            fmean(each.gold for each in group),
            *cells(choice.lead[i]),
            "recommended"
            if i == choice.best
            else "may be the best"
            if i in choice.contenders
            else "not the best",
        )
        for i, (hold, group) in enumerate(arms.items())
    ]
    return Table(
        title="Which to take",
        columns=(
            "arm",
            "to write",
            "measured with",
            "gold",
            "gold below the choice",
            "low",
            "high",
            "verdict",
        ),
        rows=tuple(rows),
        note="For each seed the arm that is best on the other seeds is set against this arm on that seed, so that the "
        "winner of noisy means is not flattered. The best arm is among those not marked “not the best”, with a "
        "confidence of 90 % and more. The target beside a β that was held is the KL where that arm ended: a controller "
        "holds what the arm only came to, and is worth what was measured of the β only as far as the two are alike.",
    )
