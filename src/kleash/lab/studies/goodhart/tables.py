"""What light and heavy tails make of a leash: all that was made, in tables and a figure."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kleash.lab.study.findings import Figure, Panel, Series, Table, Value, percent
from kleash.lab.study.statistics import Estimate, cells, estimate, exact_share
from kleash.lab.study.work import Result
from kleash.lab.tailed_mdp import Worth
from kleash.lab.tails import Law, gaussian_best_of_n

NAMES = {"normal": "normal", "t5": "t₅", "t3": "t₃", "t2": "t₂", "cauchy": "Cauchy"}
LAWS: tuple[Law, ...] = ("kl", "clipped", "chi_squared")
TOLD: dict[str, str] = {"kl": "KL", "clipped": "KL, proxy clipped", "chi_squared": "KL and χ²"}
ALARMS = {"hill": "Hill's index", "largest_weight": "The largest weight"}
LEVEL = 0.999
"""Of an alarm's statistic on normal errors: its threshold."""


class Made(NamedTuple):
    """All that was made."""

    kls: Sequence[float]
    gaussian_kls: Sequence[float]
    counts: Sequence[int]
    clip: float
    chi_squared_size: int
    gaussian: Mapping[float, Result]
    """By s."""
    tilts: Mapping[tuple[str, int], Result]
    """By error and log₂ of the pool's size."""
    choices: Mapping[str, Result]
    watched: Mapping[tuple[str, int], Result]
    trained: Mapping[Law, Sequence[Result]]
    optima: Mapping[Law, Worth]

    def values(self, error: str, size: int, law: Law, kl: float) -> list[float | None]:
        """E[V], one a pool."""
        place = list(self.kls).index(kl)
        return [row[place] for row in self.tilts[error, size][law]]

    @property
    def sizes(self) -> list[int]:
        """Of pools, log₂, from small to large."""
        return sorted({size for _, size in self.tilts})


class Alarm(NamedTuple):
    """How often a statistic of some scores is over its threshold."""

    threshold: float
    flagged: dict[str, Estimate]
    """By error."""


def alarm_of(made: Made, statistic: str, scores: int) -> Alarm:
    """The threshold is a quantile of one set of normal samples; all are tried against it."""
    calibration = sorted(made.watched["calibration", scores][statistic])
    threshold = calibration[math.ceil(LEVEL * len(calibration)) - 1]
    flagged: dict[str, Estimate] = {}
    for (error, count), result in made.watched.items():
        if count == scores and error != "calibration":
            hits = sum(value > threshold for value in result[statistic])
            flagged[error] = exact_share(hits, len(result[statistic]), of="samples")
    return Alarm(threshold, flagged)


def over_pools(values: Sequence[float | None]) -> Estimate | None:
    """The mean over pools."""
    return estimate(values, of="pools")


def tilt_table(made: Made) -> Table:
    """E[V] at each KL."""
    rows: list[tuple[Value, ...]] = []
    for (error, size), result in made.tilts.items():
        for law in LAWS[: len(result)]:
            found = [over_pools(made.values(error, size, law, kl)) for kl in made.kls]
            rows.append((NAMES[error], size, TOLD[law], *map(_value, found)))
    return Table(
        title="Gold reward at equal KL",
        columns=("error", "log₂ N", "under", *(f"E[V] at {kl:g} nats" for kl in made.kls)),
        rows=tuple(rows),
        note="Means over pools of N outcomes, each used twice, the second time with V turned round. V ~ N(0, 1). The "
        f"proxy is clipped to ±{made.clip:g}; where its tilts do not come to a KL, the end of them is given.",
    )


def choice_table(made: Made) -> Table:
    """E[V] of best-of-n."""
    rows = [
        (
            NAMES[error],
            *(_value(over_pools(column)) for column in zip(*result["gold"], strict=True)),
        )
        for error, result in made.choices.items()
    ]
    exact = ("normal, closed form", *(gaussian_best_of_n(n, 1.0) for n in made.counts))
    return Table(
        title="Gold reward of best-of-n",
        columns=("error", *(f"n = {n:,}" for n in made.counts)),
        rows=(exact, *rows),
    )


def alarm_table(made: Made) -> Table:
    """How often each alarm sounds."""
    rows: list[tuple[Value, ...]] = []
    errors = [error for error in NAMES if any(kind == error for kind, _ in made.watched)]
    for scores in sorted({count for _, count in made.watched}):
        for statistic, name in ALARMS.items():
            found = alarm_of(made, statistic, scores)
            shares = [found.flagged[error].value for error in errors]
            rows.append((name, scores, found.threshold, *shares))
    return Table(
        title="Alarms",
        columns=("statistic", "scores", "threshold", *(f"flagged, {NAMES[e]}" for e in errors)),
        rows=tuple(rows),
        note=f"Shares of samples of the reference's proxy scores over the threshold, the {percent(LEVEL, 1)} quantile "
        "of other samples with normal errors: the share flagged of normal ones is the rate of false alarms. "
        "Best of 16, where E[V] under t₃ errors turns, sees 1,024 scores with 64 prompts and 4,096 with 256.",
    )


def trained_table(made: Made) -> Table:
    """What is trained, and the optimum."""
    rows: list[tuple[Value, ...]] = []
    for law, runs in made.trained.items():
        best = made.optima[law]
        for field in Worth._fields:
            found = estimate([run[field] for run in runs])
            rows.append((TOLD[law], field, getattr(best, field), *cells(found)))
    return Table(
        title="In training, at equal β",
        columns=("penalty", "figure", "optimum", "trained", "low", "high"),
        rows=tuple(rows),
        note="RLOO on a problem of 64 responses with t₂ errors, by the code of kleash train with reward.clip, or with "
        "penalty.chi_squared = 1. Gold and proxy reward and KL(π‖π_ref) in nats by enumeration; means over seeds.",
    )


def _value(found: Estimate | None) -> float | None:
    return None if found is None else found.value


def figure(made: Made) -> Figure:
    """E[V] over KL, a panel an error."""
    first, last = made.sizes[0], made.sizes[-1]
    errors = list(dict.fromkeys(error for error, _ in made.tilts))
    drawn: tuple[tuple[str, int, Law, int], ...] = (
        (f"KL, N = 2^{first}", first, "kl", 5),
        (f"KL, N = 2^{last}", last, "kl", 2),
        (f"KL, proxy clipped to ±{made.clip:g}", last, "clipped", 0),
        (f"KL and χ², N = 2^{made.chi_squared_size}", made.chi_squared_size, "chi_squared", 3),
    )
    panels = tuple(
        Panel(
            title=f"{NAMES[error]} errors",
            x="KL(π‖π_ref), nats",
            y="gold reward, E[V]",
            series=tuple(
                _series(made, error, name, size, law, colour) for name, size, law, colour in drawn
            ),
        )
        for error in errors
    )
    return Figure(
        caption="Gold reward of what a proxy with an independent error selects, over the KL that is spent, for errors "
        "of four kinds of tail. Bands are 95 % intervals over pools. Under a heavy tail the KL alone buys less the "
        "larger the pool; a bounded proxy buys something whatever the tail.",
        panels=panels,
    )


def _series(made: Made, error: str, name: str, size: int, law: Law, colour: int) -> Series:
    found = [over_pools(made.values(error, size, law, kl)) for kl in made.kls]
    return Series(
        name=name,
        x=(0.0, *made.kls),
        y=(0.0, *map(_value, found)),
        low=(0.0, *(None if e is None else e.low for e in found)),
        high=(0.0, *(None if e is None else e.high for e in found)),
        mark="dashed" if colour == 5 else "line",
        colour=colour,
    )
