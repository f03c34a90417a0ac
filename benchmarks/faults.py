"""What a guard finds of a run that goes wrong, by what, and how soon: each fault on some seeds, and as many sound runs.

    OMP_NUM_THREADS=1 python benchmarks/faults.py [--seeds 20] [--first 0] [--processes 2] [--json table.json]

A small model learns for 50 updates; then a fault begins. One guard for all of them, planned from sound runs of other
seeds (`tests/train/faulty.py` has both). Updates count from the fault on, 1 being the first: the median and the worst
of those found. `refused`: nothing of that update was applied. What was `shortened` was brought within all limits, and
where an alarm rang it was within them.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.train.faulty import FAULTS, LONG, WARM, Result, of_seed, settings
from tests.train.small import in_memory


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What a guard finds, and how soon.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="of the seeds")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    done: list[Result] = []
    seeds = range(asked.first, asked.first + asked.seeds)
    with in_memory() as place, get_context("spawn").Pool(asked.processes) as pool:
        settings(place / "given", 0)  # writes the model once
        work = partial(of_seed, place / "given", names=asked.faults)
        for result in pool.imap(work, seeds):
            done.append(result)
            print(f"{len(done)} of {len(seeds)}", file=sys.stderr, flush=True)
            if asked.json is not None:
                asked.json.write_text(json.dumps(table(done), indent=1) + "\n", encoding="utf-8")
    show(table(done))


def table(done: list[Result]) -> dict[str, Any]:
    """What was found, by fault, and of sound runs."""
    names = list(done[0].first)
    return {
        "seeds": [result.seed for result in done],
        "updates": len(done) * (WARM + LONG),
        "sound": [sign._asdict() for result in done for sign in result.false],
        "faults": {n: [x and x._asdict() for x in (r.first[n] for r in done)] for n in names},
    }


def show(found: dict[str, Any]) -> None:
    """Prints it."""
    print("| fault | found | median | worst | refused | by |")
    print("|---" * 6 + "|")
    for name, signs in found["faults"].items():
        print("| " + " | ".join((name, *cells(signs))) + " |")
    false, seeds = found["sound"], found["seeds"]
    alarms = sum(sign["is_alarm"] for sign in false)
    print(f"\n{len(seeds)} sound runs, {found['updates']:,} updates: ", end="")
    print(f"{len(false) - alarms} refused or shortened, {alarms} alarms")
    print(Counter(sign["by"] for sign in false).most_common() or "")


def cells(signs: list[dict[str, Any] | None]) -> tuple[str, ...]:
    """Of a fault: how many were found, when, and by what."""
    found = [sign for sign in signs if sign is not None]
    delays = [sign["after"] for sign in found]
    by = Counter(sign["by"] for sign in found).most_common()
    return (
        f"{len(found)} of {len(signs)}",
        f"{statistics.median(delays):g}" if found else "–",
        f"{max(delays)}" if found else "–",
        str(sum(not sign["is_kept"] for sign in found)),
        ", ".join(f"{which} {count}" for which, count in by) or "–",
    )


if __name__ == "__main__":
    main()
