"""Breaks every limit of the guard, and every number that can break, and counts what got through: nothing.

    python benchmarks/breaches.py [--units 10000] [--seeds 2] [--seed 0] [--json table.json]

Of the pure guard: so many breaches of one limit at a time (the next float over it, far over it, no possible number, not
measured), all else within its limit, and as many updates that are at their limits or within. Of the loop: runs of a
small model whose updates break a limit or whose numbers do, under every limit, shortened, refused and rolled back. What
was kept is measured again from the weights before and after, in double precision by plain torch; what was refused must
leave weights, value head, moments, random streams, order of prompts, rollouts, budget and β as they were, by digest.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.guard.injected import KINDS, TARGETS, Found, inject
from tests.train.breach import Outcome, cases, outcomes
from tests.train.small import in_memory


def show_units(found: Found) -> None:
    """A row for each measurement: breaches injected and accepted, by kind."""
    print("| measurement | " + " | ".join(KINDS) + " | accepted |")
    print("|---" * (len(KINDS) + 2) + "|")
    for name in TARGETS:
        counts = [str(found.injected[name, kind] or "–") for kind in KINDS]
        accepted = sum(found.accepted[name, kind] for kind in KINDS)
        print(f"| {name} | {' | '.join(counts)} | {accepted} |")
    total, got = sum(found.injected.values()), sum(found.accepted.values())
    print(f"\n{got} of {total:,} breaches accepted; {found.refused} of {found.within:,} that were")
    print("at their limits or within refused\n", flush=True)


def show(outcome: Outcome) -> None:
    """A row for a run."""
    case, nearest = outcome.case, outcome.nearest
    actions = ", ".join(f"{count} {name}" for name, count in outcome.actions.items())
    share = "–" if nearest is None else f"{nearest:.4f}"
    wrong = "; ".join(outcome.faults) or "–"
    row = (case.what, case.mode, case.algorithm, case.seed, outcome.breaches, actions, share, wrong)
    print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main() -> None:
    """Prints both tables; ends with 1 where something got through."""
    parser = argparse.ArgumentParser(description="What gets past the guard.")
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=2, help="of the runs")
    parser.add_argument("--seed", type=int, default=0, help="of what is shown to the pure guard")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    units = inject(asked.units, asked.seed)
    show_units(units)
    print("| broken | how | algorithm | seed | breaches | verdicts | nearest kept | wrong |")
    print("|---" * 8 + "|", flush=True)
    done: list[Outcome] = []
    with in_memory() as place:
        for outcome in outcomes(place, list(cases(asked.seeds))):
            show(outcome)
            done.append(outcome)
    breaches, wrong = sum(x.breaches for x in done), sum(len(x.faults) for x in done)
    verdicts = sum((Counter(x.actions) for x in done), Counter[str]())
    print(
        f"\n{breaches} breaches in {len(done)} runs, {wrong} of them wrongly treated: {dict(verdicts)}"
    )
    if asked.json is not None:
        table: dict[str, Any] = {
            "units": {
                "injected": sum(units.injected.values()),
                "accepted": sum(units.accepted.values()),
                "within": units.within,
                "refused": units.refused,
            },
            "loop": {
                "runs": len(done),
                "breaches": breaches,
                "wrong": wrong,
                "verdicts": verdicts,
                "rows": [{**x._asdict(), "case": x.case._asdict()} for x in done],
            },
        }
        asked.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(wrong or units.accepted or units.refused))


if __name__ == "__main__":
    main()
