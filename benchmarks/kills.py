"""Kills a small run, and what goes on with it, a thousand times with `kill -9`, and reports what was lost: nothing.

    python benchmarks/kills.py [--kills 1000] [--seed 0]

Each run is killed up to twelve times, then left to end, and compared with one that never was: weights, optimiser,
random streams, files and record, to the last bit. The instants are random, half of them in a phase that is drawn first.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "tests.train.kill", directory]
        command += ["--kills", str(arguments.kills), "--seed", str(arguments.seed)]
        sys.exit(subprocess.run(command, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
