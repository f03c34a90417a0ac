"""How often the intervals of `kleash compare` hold the truth, on pairs of tiny models where every response is summed.

Each repetition draws prompts from a population of 512, and responses from both models; the truth is the mean over the
population of the KL by brute force. With --precision rounds are added until the interval is so narrow, which is a
reason to look twice. Takes minutes: OMP_NUM_THREADS=1 python benchmarks/compare_coverage.py
"""

import argparse
import tempfile
from pathlib import Path

from kleash.audit.estimate import measure
from tests.audit.test_rounds import Known


def main() -> None:
    """Prints the share that holds the truth, by figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=30, help="of each pair")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--precision", type=float, help="nats; None: one round")
    parser.add_argument("--first", type=int, default=100, help="seed of the first pair")
    given = parser.parse_args()
    held = dict.fromkeys(("reverse", "forward", "js"), 0)
    rounds, below = 0, 0
    for pair in range(given.first, given.first + given.pairs):
        with tempfile.TemporaryDirectory() as directory:
            known = Known(Path(directory), pair)
        for repetition in range(given.repetitions):
            seed = 1000 * pair + repetition
            measured = known.sample(
                given.prompts, seed, samples=given.samples, precision=given.precision
            )
            drift = measure(measured.policy, measured.reference, "reference")
            rounds += measured.rounds
            for name in held:
                each, truth = getattr(drift, name), float(getattr(known, name).mean())
                held[name] += each.low <= truth <= each.high
                below += name == "reverse" and truth > each.high
    count = given.pairs * given.repetitions
    print(f"{count} comparisons, {given.prompts} prompts, {rounds / count:.2f} rounds each")
    for name, hits in held.items():
        print(f"{name}: {hits} of {count}, {hits / count:.1%}")
    print(f"reverse, truth above the upper end: {below} of {count}")


if __name__ == "__main__":
    main()
