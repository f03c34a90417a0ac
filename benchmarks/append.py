"""What an entry of the ledger costs until it is on the disk and signed, beside a plain write of its bytes and a sync.

    python benchmarks/append.py [DIRECTORY ...] [--entries 400]

Of each directory, the system's temporary one and /dev/shm if none is given: median and 99th percentile in milliseconds,
of `Ledger.append` with intents and updates in turn, and of `os.write` and `fdatasync` of the same lines in a file that
grows alike; both in turn, so that what else the disk does falls on both. A ratio is of the medians.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kleash.ledger import Ledger, SigningKey

UPDATE: dict[str, Any] = {
    "step": 1,
    "verdict": {"action": "accept", "reasons": []},
    "control": {"controller": "tilt", "kl_coef": 0.1, "memory": [0.123456789] * 40},
    "facts": {"finite": True, "grad_norm": 1.0, "tails": [0.123456789] * 20},
    "rollout_sha256": "a" * 64,
    "metrics_sha256": "b" * 64,
}
INTENT: dict[str, Any] = {"step": 1, "rollout_sha256": "a" * 64, "kl_coef": 0.1}


def measure(directory: Path, entries: int) -> dict[str, Any]:
    """The figures of one directory."""
    appended, written = list[float](), list[float]()
    with tempfile.TemporaryDirectory(dir=directory) as place:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        plain = os.open(Path(place) / "plain", flags, 0o600)
        with Ledger.create(Path(place) / "ledger", [SigningKey.generate()]) as ledger:
            for number in range(entries):
                type, body = ("update", UPDATE) if number % 2 else ("update.intent", INTENT)
                started = time.perf_counter()
                entry = ledger.append(type, body)
                appended.append(time.perf_counter() - started)
                line = entry.line + b"\n"
                started = time.perf_counter()
                os.write(plain, line)
                os.fdatasync(plain)
                written.append(time.perf_counter() - started)
        os.close(plain)
    return {
        "append": figures(appended),
        "write and fdatasync": figures(written),
        "ratio of medians": statistics.median(appended) / statistics.median(written),
    }


def figures(times: list[float]) -> dict[str, float]:
    """Median and tail, in milliseconds."""
    p99 = statistics.quantiles(times, n=100)[98]
    return {"median ms": 1000 * statistics.median(times), "p99 ms": 1000 * p99}


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="*")
    parser.add_argument("--entries", type=int, default=400)
    arguments = parser.parse_args()
    usual = [Path(tempfile.gettempdir()), Path("/dev/shm")]
    places = arguments.directories or [path for path in usual if path.is_dir()]
    report = {str(path): measure(path, arguments.entries) for path in places}
    json.dump(report, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
