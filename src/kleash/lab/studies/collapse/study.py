"""What becomes of the variety of responses as β goes to 0: in closed form, and of the arms of the sweep over β."""

from typing import Any

from pydantic import Field

from kleash.lab.arms.checks import Distinct, Positive
from kleash.lab.arms.settings import ArmSettings
from kleash.lab.arms.sweep import (
    QUICK_ARMS,
    SweepConfig,
    arms,
    make_arms,
    make_proxies,
    proxies,
)
from kleash.lab.arms.untrained import examine_untrained
from kleash.lab.studies.collapse.exact import exact_claims, exact_table
from kleash.lab.studies.collapse.findings import (
    answer,
    figure,
    kept_claims,
    lost_claims,
    monotone_claim,
    variety_table,
)
from kleash.lab.study.cost import seconds_of, seconds_of_untrained
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Piece, Work


class Config(SweepConfig):
    """The study; its arms are those of `beta-sweep`."""

    golden_betas: Distinct[Positive] = Field(
        default=(2.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001, 0.0001), min_length=2
    )
    """Of the optima on the golden problem; the smallest is to be a point mass."""


QUICK: dict[str, Any] = QUICK_ARMS


def untrained(config: Config) -> list[ArmSettings]:
    """What every seed's arms begin as: the reference, by that seed's proxy and random numbers."""
    return next(iter(arms(config).values()))


def cost(config: Config) -> float:
    """Seconds of one core."""
    trained = [arm for group in arms(config).values() for arm in group]
    return seconds_of_untrained(untrained(config)) + seconds_of([*proxies(config), *trained])


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    make_proxies(config, work)
    reference = work.do(
        Piece(f"the reference, seed {each.seed}", examine_untrained, each)
        for each in untrained(config)
    )
    ends = {
        hold: [each["end"] for each in results] for hold, results in make_arms(config, work).items()
    }
    monotone = monotone_claim(ends)
    found = [
        *lost_claims(ends),
        *([] if monotone is None else [monotone]),
        *kept_claims(ends, reference),
    ]
    return Findings(
        answer=answer(ends, found),
        claims=(*exact_claims(config.golden_betas), *found),
        tables=(variety_table(ends, reference), exact_table(config.golden_betas)),
        figure=figure(config.golden_betas, ends, reference),
        limits=(
            "An arm is taken where its last step leaves it: of a small β that is more a run stopped early than the "
            "optimum of its β, and longer runs lose more.",
            "That variety is lost by KL and by what the reward prefers is not told apart: a reward of other taste "
            "loses another variety at the same KL.",
            "Variety here is of words and of next tokens. Responses may differ in words and say the same.",
        ),
    )
