"""Feeds mutated documents to what reads them, and prints the first that is neither read nor refused in words.

    python tools/fuzz.py TARGET [--seconds 60] [--seed 0] [--plain]
    python tools/fuzz.py all

The targets, and what must hold of them, are in tests/fuzzing.py. With atheris installed (`pip install atheris`)
coverage guides the mutations; without it, or with --plain, they are drawn by a seeded generator from valid documents
and from what was taken. Ends with 1 at a finding: the document is printed as Python bytes, for a test.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
LONGEST = 10
"""Seconds that one document may take."""
MOST_MEMORY = 4096
"""MiB that the process may come to."""
LARGEST = 1 << 14
"""Bytes of a document."""
CORPUS = 2000
"""Documents to mutate from."""

Check = Callable[[bytes], bool]


class Count:
    """Documents tried, and how many were taken."""

    def __init__(self, name: str, check: Check) -> None:
        self.name, self.check = name, check
        self.tried = self.taken = 0
        self.began = time.monotonic()

    def __call__(self, data: bytes) -> bool:
        """Tries one; prints it where it is a finding."""
        try:
            taken = self.check(data)
        except BaseException:
            print(f"{self.name}: a finding: {data[:4000]!r}", flush=True)
            raise
        self.tried += 1
        self.taken += taken
        return taken

    def report(self, how: str) -> None:
        """Prints what was done."""
        seconds = time.monotonic() - self.began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        done = f"{self.tried} documents in {seconds:.0f} s, {self.taken} taken"
        print(f"{self.name}: {done}, no finding; {how}, {peak} MiB at most", flush=True)


def run_plain(
    count: Count, seeds: Sequence[bytes], mutate: Callable[..., bytes], seconds: int, seed: int
) -> None:
    """Draws mutations of a corpus, which grows by what was taken."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"a document took more than {LONGEST} s")

    signal.signal(signal.SIGALRM, too_long)
    draw, corpus = random.Random(seed), list(seeds)
    while time.monotonic() - count.began < seconds:
        data = mutate(draw.choice(corpus), draw)[:LARGEST]
        signal.alarm(LONGEST)
        taken = count(data)
        signal.alarm(0)
        if taken and data not in seeds:
            corpus = [*corpus[-CORPUS:], data]
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MOST_MEMORY * 1024:
        sys.exit(f"{count.name}: a finding: more than {MOST_MEMORY} MiB were used")
    count.report("seeded mutations")


def run_atheris(
    count: Count, seeds: Sequence[bytes], mutate: Callable[..., bytes], seconds: int, seed: int
) -> None:
    """Lets libFuzzer draw them, by coverage, from the same seeds; it ends the process."""
    atheris: Any = import_module("atheris")

    def mutator(data: bytes, largest: int, number: int) -> bytes:
        if number % 2:
            return atheris.Mutate(data, largest)
        return mutate(data, random.Random(number))[:largest]

    corpus = Path(tempfile.mkdtemp())

    def once(data: bytes) -> None:
        count(data)
        if time.monotonic() - count.began > seconds:
            count.report("guided by atheris")
            shutil.rmtree(corpus)
            os._exit(0)  # an exception, SystemExit too, would be a finding

    for number, document in enumerate(seeds):
        (corpus / str(number)).write_bytes(document)
    options = [f"-timeout={LONGEST}", f"-rss_limit_mb={MOST_MEMORY}", f"-max_len={LARGEST}"]
    options += [f"-seed={seed + 1}", "-verbosity=0", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], once, custom_mutator=mutator)
    atheris.Fuzz()


def fuzzing(plain: bool) -> Any:
    """The targets, read so that atheris sees what is run of kleash."""
    sys.path.insert(0, str(ROOT))
    if plain:
        return import_module("tests.fuzzing")
    with import_module("atheris").instrument_imports(include=["kleash"]):
        return import_module("tests.fuzzing")


def main() -> None:
    """Fuzzes one target, or each of them in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    arguments = parser.parse_args()
    if not arguments.plain and find_spec("atheris") is None:
        print("atheris is not installed: the mutations are drawn without it", file=sys.stderr)
        arguments.plain = True
    module = fuzzing(arguments.plain)
    if arguments.target == "all":
        rest = [argument for argument in sys.argv[1:] if argument != "all"]
        commands = [[sys.executable, __file__, name, *rest] for name in module.TARGETS]
        sys.exit(max(subprocess.run(command).returncode for command in commands))
    if arguments.target not in module.TARGETS:
        sys.exit(f"no target {arguments.target!r}; there are all, {', '.join(module.TARGETS)}")
    target = module.TARGETS[arguments.target]()
    run = run_plain if arguments.plain else run_atheris
    count = Count(arguments.target, target.check)
    run(count, target.seeds, module.mutate, arguments.seconds, arguments.seed)


if __name__ == "__main__":
    main()
