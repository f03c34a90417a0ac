"""Makes every change of a kind to a small signed ledger, and reports which of them each of the two verifiers finds.

    python benchmarks/tamper.py [--every 1]

Every bit of every file flipped, every file cut to every shorter length, a byte put in at every place; every entry
dropped, repeated at every place, swapped with every other; every number of entries cut off. Then the ledger is cut back
to each older signed state, with that checkpoint for a head: of all changes the one that only a later checkpoint, kept
elsewhere, can show. Ends with 1 where one was missed.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.ledger import tamper


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="of bits and bytes, one in so many")
    arguments = parser.parse_args()
    tamper.sized(setattr)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        ledger = tamper.write_ledger(Path(directory) / "ledger")
        whole = tamper.contents_of(ledger)
        sizes = ", ".join(f"{name} {len(content)}" for name, content in whole.items())
        print(f"{len(tamper.lines_of(whole))} entries; bytes: {sizes}")
        tally, cuts = tamper.all_changes(ledger, arguments.every), tamper.all_cuts(ledger)
    print(f"{'':<18}{'made':>8}{'kleash verify':>16}{'verify_ledger.py':>18}")
    for kind, made in tally.made.items():
        print(f"{kind:<18}{made:>8}{tally.first[kind]:>16}{tally.second[kind]:>18}")
    total = tally.made.total(), tally.first.total(), tally.second.total()
    print(f"{'in all':<18}{total[0]:>8}{total[1]:>16}{total[2]:>18}")
    seen = [cut for cut in cuts if cut.size < cut.held]
    whole_size = max(cut.size for cut in cuts)
    beyond = [cut for cut in cuts if cut.held <= cut.size < whole_size]
    right = [sum(map(tamper.is_right, some)) for some in (seen, beyond)]
    print("\ncut back to an older signed state, with its checkpoint for a head:")
    print(f"  before the checkpoint in hand: {right[0]} of {len(seen)} said to be cut")
    print(f"  after it, or none is in hand: {right[1]} of {len(beyond)} cannot be seen")
    print(f"\n{time.monotonic() - began:.0f} s")
    wrong = [*tally.missed, *(str(cut) for cut in cuts if not tamper.is_right(cut))]
    sys.exit("\n".join(["not found:", *wrong]) if wrong else 0)


if __name__ == "__main__":
    main()
