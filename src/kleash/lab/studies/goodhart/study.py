"""Light and heavy tails: Kwa, Thomas and Garriga-Alonso 2024 (arXiv 2407.14503), "Catastrophic Goodhart".

Numbers alone: a gold reward, a proxy with an independent error of a light or a heavy tail, and what tilting, clipping,
χ² beside the KL, and best-of-n make of pools of them. Then the same in training, on a problem that can be enumerated.
"""

import math
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

from kleash.lab.arms.checks import Positive, Rising, Several
from kleash.lab.arms.settings import FROZEN
from kleash.lab.studies.goodhart.findings import conclude
from kleash.lab.studies.goodhart.pieces import (
    ChoiceSettings,
    TailedSettings,
    TiltSettings,
    WatchSettings,
    choose_best,
    tilt_pools,
    train_tailed,
    watch_tails,
)
from kleash.lab.studies.goodhart.tables import LAWS, Made
from kleash.lab.study.findings import Findings
from kleash.lab.study.work import Piece, Work
from kleash.lab.tailed_mdp import Worth, best, tailed
from kleash.lab.tails import NEARLY, Law

ERRORS = ("normal", "t5", "t2", "cauchy")
CHOSEN = ("normal", "t3", "cauchy")
"""Errors under best-of-n."""
WATCHED = ("normal", "t5", "t3", "t2", "cauchy")
GAUSSIAN_KLS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The last is beyond what a pool of 2^18 shows."""
CALIBRATION = 1
"""Seed of the normal samples that thresholds are set on; they are tried on others."""
TILT, CHI, CHOICE, SCORE, STEP = 4.5e-7, 1.2e-5, 2e-6, 3e-7, 0.025
"""Seconds of one core: an outcome at a KL under the tilt, and under χ²; one that is chosen from; a score that is
watched; a step of training."""


FEWEST = 16
"""Scores that a tail can be seen in."""
LogSize = Annotated[int, Field(gt=0, le=26)]
"""log₂ of a pool's size; 2^26 outcomes are a few gigabytes."""


class Config(BaseModel):
    """The study."""

    model_config = FROZEN

    kls: Rising[Positive] = (0.1, 0.5, 1.0, 2.0, 3.0)
    """Nats; 1 is among them."""
    sizes: Rising[LogSize] = Field(default=(12, 15, 18), min_length=2)
    """Of pools, log₂, from small to large."""
    pools: int = Field(default=24, gt=1)
    """Of each size."""
    chi_squared_size: int = 15
    """Of the pools that χ² is asked of, log₂; one of `sizes`."""
    scales: Several[Positive] = (1.0, 2.0)
    """s of the normal errors whose closed form is held against pools of the largest size."""
    counts: Rising[Annotated[int, Field(gt=0)]] = (4, 16, 64, 256, 1024, 4096)
    """n of best-of-n."""
    choice_size: LogSize = 17
    """Of the pools that best-of-n chooses from, log₂."""
    clip: Positive = 3.0
    """The proxy is clipped to this on both sides."""
    watched: Several[Annotated[int, Field(ge=FEWEST)]] = (1024, 4096)
    """Proxy scores that an alarm sees: best-of-16's for 64 prompts, and for 256."""
    samples: int = Field(default=4000, gt=1)
    """Of each kind that an alarm is tried on."""
    beta: Positive = 1.0
    """Of what is trained."""
    steps: int = Field(default=300, gt=0)
    seeds: int = Field(default=5, gt=1)

    @model_validator(mode="after")
    def _holds_what_is_looked_at(self) -> Self:
        """What the claims and closed forms are of."""
        if 1.0 not in self.kls:
            raise ValueError("kls with 1.0 among them: errors are compared at 1 nat")
        smallest, largest = (NEARLY * self.sizes[i] * math.log(2) for i in (0, -1))
        if self.kls[-1] >= smallest:
            raise ValueError(
                f"kls of less than {smallest:.2f} nats: no tilt of the smallest pool, of 2^{self.sizes[0]} "
                "outcomes, is further away"
            )
        if GAUSSIAN_KLS[-1] >= largest:
            raise ValueError(
                f"sizes up to 12 or more: the closed form is looked at up to {GAUSSIAN_KLS[-1]:g} nats, which "
                "takes a pool of 2^12"
            )
        if self.chi_squared_size not in self.sizes:
            raise ValueError(f"chi_squared_size among sizes: {', '.join(map(str, self.sizes))}")
        if not self.counts or 16 not in self.counts[1:-1]:
            raise ValueError(
                "counts with 16 among them, and a smaller and a larger one to hold it against"
            )
        if self.counts[-1] > 2**self.choice_size:
            raise ValueError(
                f"counts of at most {2**self.choice_size}, the outcomes that choice_size = {self.choice_size} "
                "leaves to choose from"
            )
        return self


QUICK: dict[str, Any] = {
    "pools": 8,
    "chi_squared_size": 12,
    "scales": [1.0],
    "samples": 2000,
    "steps": 150,
    "seeds": 3,
}


class Plan(NamedTuple):
    """Every piece of the study."""

    gaussian: dict[float, TiltSettings]
    """By s."""
    tilts: dict[tuple[str, int], TiltSettings]
    """By error and size."""
    choices: dict[str, ChoiceSettings]
    watched: dict[tuple[str, int], WatchSettings]
    """By error, or `calibration`, and number of scores."""
    trained: dict[Law, list[TailedSettings]]
    """One a seed."""


def plan(config: Config) -> Plan:
    """What is to be made."""

    def laws(size: int) -> tuple[Law, ...]:
        return LAWS if size == config.chi_squared_size else LAWS[:2]

    gaussian = {
        scale: TiltSettings(
            error="normal",
            scale=scale,
            log2_size=config.sizes[-1],
            pools=config.pools,
            kls=GAUSSIAN_KLS,
            laws=LAWS[:1],
        )
        for scale in config.scales
    }
    tilts = {
        (error, size): TiltSettings(
            error=error,
            log2_size=size,
            pools=config.pools,
            kls=config.kls,
            laws=laws(size),
            clip=config.clip,
        )
        for error in ERRORS
        for size in config.sizes
    }
    choices = {
        error: ChoiceSettings(
            error=error,
            log2_size=config.choice_size,
            pools=config.pools,
            counts=config.counts,
        )
        for error in CHOSEN
    }
    kinds = [("calibration", "normal", CALIBRATION), *((error, error, 0) for error in WATCHED)]
    watched = {
        (kind, scores): WatchSettings(error=error, scores=scores, samples=config.samples, seed=seed)
        for kind, error, seed in kinds
        for scores in config.watched
    }
    trained: dict[Law, list[TailedSettings]] = {
        law: [
            TailedSettings(
                law=law, beta=config.beta, clip=config.clip, steps=config.steps, seed=seed
            )
            for seed in range(config.seeds)
        ]
        for law in LAWS
    }
    return Plan(gaussian, tilts, choices, watched, trained)


def cost(config: Config) -> float:
    """Seconds of one core."""
    made = plan(config)
    tilts = [*made.gaussian.values(), *made.tilts.values()]
    seconds = sum(
        2 * each.pools * 2**each.log2_size * len(each.kls) * (CHI if law == LAWS[2] else TILT)
        for each in tilts
        for law in each.laws
    )
    seconds += sum(2 * e.pools * 2**e.log2_size * CHOICE for e in made.choices.values())
    seconds += sum(each.samples * each.scores * SCORE for each in made.watched.values())
    return seconds + len(LAWS) * config.seeds * config.steps * STEP


def run(config: Config, work: Work) -> Findings:
    """Makes the pieces, and says what they show."""
    made = plan(config)
    gaussian = work.do(
        Piece(f"normal errors, s = {scale:g}", tilt_pools, each)
        for scale, each in made.gaussian.items()
    )
    tilts = work.do(
        Piece(f"{error}, 2^{size}", tilt_pools, each) for (error, size), each in made.tilts.items()
    )
    choices = work.do(
        Piece(f"best-of-n, {error}", choose_best, each) for error, each in made.choices.items()
    )
    watched = work.do(
        Piece(f"{kind}, {scores} scores", watch_tails, each)
        for (kind, scores), each in made.watched.items()
    )
    runs = iter(
        work.do(
            Piece(f"trained, {law}, seed {each.seed}", train_tailed, each)
            for law, group in made.trained.items()
            for each in group
        )
    )
    problem = tailed()
    optima: dict[Law, Worth] = {
        "kl": best(problem, config.beta, clip=None, chi_squared=0.0),
        "clipped": best(problem, config.beta, clip=config.clip, chi_squared=0.0),
        "chi_squared": best(problem, config.beta, clip=None, chi_squared=1.0),
    }
    return conclude(
        Made(
            kls=config.kls,
            gaussian_kls=GAUSSIAN_KLS,
            counts=config.counts,
            clip=config.clip,
            chi_squared_size=config.chi_squared_size,
            gaussian=dict(zip(made.gaussian, gaussian, strict=True)),
            tilts=dict(zip(made.tilts, tilts, strict=True)),
            choices=dict(zip(made.choices, choices, strict=True)),
            watched=dict(zip(made.watched, watched, strict=True)),
            trained={law: [next(runs) for _ in group] for law, group in made.trained.items()},
            optima=optima,
        )
    )
