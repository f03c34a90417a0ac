"""How often alarms are false, and how soon they are right: kleash's detector beside the rules in use.

    OMP_NUM_THREADS=1 python benchmarks/detectors.py [--updates 1000000 --runs 200 --seed 0 --json table.json]

A synthetic KL per update, of mean 0.01 nats (clipped at 20 times that) while all is well, in cells that differ in their
noise. The plan of kleash's detector: mean 1.25 times that, at most one false alarm in 10,000 updates. **The theorem
speaks where the mean, given the past, is within the plan.** So it is in the cells `iid`, `heavy tail` and `variance`,
and at their edge in `at the plan`, where the mean is 1.25 times 0.01. In `AR(1)` it is within the plan on average only:
what is there is measured.

Left: updates per false alarm; a cap's is an update that did cross it. Right: faults that begin under AR(1) noise after
500 updates; the median updates from the fault to the first alarm (0: the same), and the share found within 500 (a
spike: within 5). A rule that alarms every few updates finds everything.

`rolling 3 sigma` is rlwatch 0.5.1's KL rule with its defaults (window 100, 20 to warm up), written anew; `CUSUM` learns
mean and standard deviation of log KL from the first 200 updates of each run. river's are run where it is installed.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kleash.guard.detectors import CAP, FRACTIONS, DetectorPlan, observe, start_detector

try:
    from river import drift as river
except ImportError:
    river = None

Array = np.ndarray

MEAN, SIGMA = 0.01, 0.3
PLAN = DetectorPlan(bound=20 * MEAN, mean=1.25 * MEAN, mean_time=1e4)
CALIBRATION, QUIET, HORIZON, SPIKE = 200, 300, 500, 5


# Noise: readings [update, run].


def carried(
    generator: np.random.Generator, shape: tuple[int, int], sigma: float, carry: float
) -> Array:
    """log-noise of an AR(1) process, from its stationary distribution."""
    fresh = generator.normal(0.0, sigma, shape)
    noise = np.empty(shape)
    noise[0] = fresh[0]
    for t in range(1, len(noise)):
        noise[t] = carry * noise[t - 1] + math.sqrt(1.0 - carry * carry) * fresh[t]
    return noise


def lognormal(
    generator: np.random.Generator, shape: tuple[int, int], carry: float = 0.0, mean: float = MEAN
) -> Array:
    """30 % noise."""
    return mean * np.exp(carried(generator, shape, SIGMA, carry) - SIGMA * SIGMA / 2.0)


def heavy(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    """log-noise of Student's t, 3 degrees of freedom: no mean at all but for the clip."""

    def draw(source: np.random.Generator, size: Any) -> Array:
        return np.exp(SIGMA / math.sqrt(3.0) * source.standard_t(3, size))

    many, scale = draw(np.random.default_rng(1), 2_000_000), MEAN
    for _ in range(10):
        scale *= MEAN / np.minimum(scale * many, PLAN.bound).mean()
    return scale * draw(generator, shape)


def drifting(generator: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Noise of 15 % to 60 % and back in 500 updates; the mean stays."""
    turn = np.sin(2.0 * np.pi * np.arange(shape[0]) / 500.0)[:, None]
    sigma = SIGMA * 2.0**turn
    return MEAN * np.exp(sigma * generator.normal(size=shape) - sigma * sigma / 2.0)


CELLS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "iid": lognormal,
    "AR(1) 0.6": partial(lognormal, carry=0.6),
    "heavy tail": heavy,
    "variance": drifting,
    "at the plan": partial(lognormal, mean=1.25 * MEAN),
}

FAULTS: dict[str, Callable[[Array], Array]] = {
    "10x spike": lambda age: np.where(age == 0, 10.0, 1.0),
    "2x step": lambda age: np.where(age >= 0, 2.0, 1.0),
    "1.5x step": lambda age: np.where(age >= 0, 1.5, 1.0),
    "2 % ramp": lambda age: 1.02 ** np.maximum(age + 1, 0),
    "NaN": lambda age: np.where(age >= 0, np.nan, 1.0),
}
"""What the readings are multiplied by, at each age of the fault."""


# Rules: from readings [update, run] to alarms of the same shape.


def ours(readings: Array) -> Array:
    """`kleash.guard.observe` for many runs at once: the same operations in the same order."""
    fractions = np.array(FRACTIONS)[:, None]
    values = np.zeros((len(FRACTIONS), readings.shape[1]))
    alarms = np.zeros(readings.shape, dtype=bool)
    scores = np.minimum(np.maximum(readings, 0.0), PLAN.bound) / PLAN.bound
    scores = np.where(np.isfinite(readings), scores, 1.0)
    for t, score in enumerate(scores):
        excess = score / PLAN.share - 1.0
        values = np.minimum((values + 1.0) * (1.0 + fractions * excess), CAP * PLAN.mean_time)
        total = np.zeros(readings.shape[1])
        for value in values:
            total = total + value
        alarms[t] = total / len(FRACTIONS) >= PLAN.mean_time
        values[:, alarms[t]] = 0.0
    return alarms


def capped(readings: Array, factor: float = 4.0) -> Array:
    """With a cap on each update, which also refuses what is not a number."""
    return ours(readings) | ~(readings <= factor * MEAN)


def fixed(readings: Array) -> Array:
    """1.5 times the target, as in CleanRL's early stopping."""
    return readings > 1.5 * MEAN


def rolling(readings: Array, window: int = 100, warmup: int = 20, sigmas: float = 3.0) -> Array:
    """Above the mean of the readings before it by 3 of their standard deviations."""
    alarms = np.zeros(readings.shape, dtype=bool)
    for t in range(warmup - 1, len(readings)):
        past = readings[max(0, t - window + 1) : t]
        spread = np.maximum(past.std(axis=0), 1e-8)
        alarms[t] = (readings[t] - past.mean(axis=0)) / spread > sigmas
    return alarms


def cusum(readings: Array, slack: float = 0.5, limit: float = 12.0) -> Array:
    """Of log KL, in standard deviations of the run's start; NaN counts as 10 of them."""
    logs = np.log(readings)
    mean, spread = logs[:CALIBRATION].mean(axis=0), logs[:CALIBRATION].std(axis=0, ddof=1)
    scores = np.nan_to_num(np.clip((logs - mean) / spread, -10.0, 10.0), nan=10.0)
    alarms, total = np.zeros(readings.shape, dtype=bool), np.zeros(readings.shape[1])
    for t in range(CALIBRATION, len(readings)):
        total = np.maximum(0.0, total + scores[t] - slack)
        alarms[t] = total > limit
        total[alarms[t]] = 0.0
    return alarms


def of_river(name: str, readings: Array) -> Array:
    """One of river's detectors with its defaults, a run at a time."""
    alarms = np.zeros(readings.shape, dtype=bool)
    for run in range(readings.shape[1]):
        detector = getattr(river, name)()
        for t, value in enumerate(readings[:, run].tolist()):
            detector.update(value)
            alarms[t, run] = detector.drift_detected
    return alarms


RULES: dict[str, Callable[[Array], Array] | None] = {
    "kleash": ours,
    "kleash + cap 4x": capped,
    "fixed 1.5x": fixed,
    "rolling 3 sigma": rolling,
    "CUSUM k=.5 h=12": cusum,
    "river PageHinkley": partial(of_river, "PageHinkley") if river else None,
    "river ADWIN": partial(of_river, "ADWIN") if river else None,
}


def check_twin(seed: int) -> None:
    """That `ours` is `observe`: on a stream with a fault, a restart and NaN."""
    readings = heavy(np.random.default_rng(seed), (3000, 1))
    readings[500:] *= 1.4
    readings[2000:2003] = np.nan
    state, alarms = start_detector(PLAN), []
    for value in readings[:, 0].tolist():
        state = observe(state, PLAN, value)
        alarms.append(state.rings)
    if alarms != ours(readings)[:, 0].tolist() or not any(alarms):
        raise SystemExit("the fast twin of the detector is not its twin")


# The table.


class Row(NamedTuple):
    """What was measured of one rule."""

    rule: str
    alarms: dict[str, int] | None
    """False ones, by cell; None: the rule is not installed."""
    faults: dict[str, tuple[float | None, float]]
    """Median delay of those found, and the share found."""


def delay(alarms: Array, fault: str) -> tuple[float | None, float]:
    """Of the first alarm at the fault or after."""
    start = CALIBRATION + QUIET
    after = alarms[start : start + (SPIKE if fault == "10x spike" else HORIZON)]
    found = after.any(axis=0)
    return (float(np.median(after.argmax(axis=0)[found])) if found.any() else None), float(
        found.mean()
    )


def measure(name: str, updates: int, runs: int, seed: int) -> Row:
    """One rule in every cell and under every fault; the same readings for every rule."""
    rule = RULES[name]
    if rule is None:
        return Row(name, None, {})
    length, false = CALIBRATION + -(-updates // runs), {}
    for number, (cell, noise) in enumerate(CELLS.items()):
        readings = noise(np.random.default_rng([seed, number]), (length, runs))
        false[cell] = int(rule(readings)[CALIBRATION:].sum())
    shape = (CALIBRATION + QUIET + HORIZON, runs)
    readings = lognormal(np.random.default_rng([seed, 99]), shape, carry=0.6)
    age = np.arange(shape[0])[:, None] - CALIBRATION - QUIET
    with np.errstate(invalid="ignore"):
        faults = {
            fault: delay(rule(readings * change(age)), fault) for fault, change in FAULTS.items()
        }
    return Row(name, false, faults)


def show(row: Row, updates: int) -> None:
    """One line of the table."""
    if row.alarms is None:
        print(f"{row.rule:>18}  river is not installed")
        return
    times = [f"{updates / n:11,.0f}" if n else f"{'none':>11}" for n in row.alarms.values()]
    found = [
        f"{'-' if median is None else f'{median:.0f}'} ({share:.0%})".rjust(12)
        for median, share in row.faults.values()
    ]
    print(f"{row.rule:>18} {' '.join(times)} {' '.join(found)}", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="False alarms and delays of drift detectors.")
    parser.add_argument("--updates", type=int, default=1_000_000, help="clean ones, per cell")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    check_twin(a.seed)
    updates = a.runs * -(-a.updates // a.runs)
    print(f"{updates:,} clean updates a cell in {a.runs} runs: updates per false alarm | faults")
    heads = [f"{cell:>11}" for cell in CELLS] + [f"{fault:>12}" for fault in FAULTS]
    print(f"{'':>18} {' '.join(heads)}")
    rows = []
    for name in RULES:
        rows.append(measure(name, updates, a.runs, a.seed))
        show(rows[-1], updates)
    if a.json:
        table = {"updates": updates, "runs": a.runs, "rows": [row._asdict() for row in rows]}
        a.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
