"""Has strace fail each system call by which a small run writes: with EIO, ENOSPC, EDQUOT, EINTR, and by kill -9.

    python benchmarks/syscalls.py [--every 5] [--seed 0]

After each, what the record acknowledged must be there, the record must verify, and going on must end in the run that
nothing happened to, to the last bit. Needs strace; where there is none it says so.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
CALLS = [
    "write",
    "fsync",
    "fdatasync",
    "ftruncate",
    "rename",
    "mkdir",
    "unlink",
    "unlinkat",
    "rmdir",
]
HOWS = ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EINTR", "signal=KILL")


class Injector:
    """Forks runs, and has strace hold each from its first call on.

    Args:
        directory: for the runs.
    """

    def __init__(self, directory: Path) -> None:
        from tests.train.kill import Killer, fork

        self.killer, self.fork = Killer(directory, 0), fork
        self.directory, self.log = directory, directory / "strace.txt"

    def trace(self, run: Path, *options: str) -> int:
        """One life of a run under strace; its exit status."""
        child = self.fork(self.killer.settings, run, self.killer.log, is_stopped=True)
        os.waitpid(child, os.WUNTRACED)
        command = ["strace", "-f", "-y", "-o", str(self.log), "-p", str(child), *options]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        tracer.stderr.readline()  # that it is attached
        os.kill(child, signal.SIGCONT)
        status = os.waitpid(child, 0)[1]
        tracer.wait()
        tracer.stderr.close()
        return status

    def count(self) -> Counter[str]:
        """How often a run makes each call."""
        self.trace(self.directory / "counted", "-e", f"trace={','.join(CALLS)}")
        return Counter(re.findall(r"^\d+ +(\w+)\(", self.log.read_text(), re.MULTILINE))

    def fail(self, call: str, number: int, how: str) -> str:
        """Has one call fail; what is wrong with what came of it, empty where nothing is."""
        from kleash.errors import InputError
        from kleash.replay import verify_run
        from tests.train.kill import SHARED
        from tests.train.small import remains

        run = self.directory / "run"
        shutil.rmtree(run, ignore_errors=True)
        SHARED.acknowledged = 0
        self.trace(run, "-e", f"trace={call}", "-e", f"inject={call}:{how}:when={number}")
        try:
            found = verify_run(run)
        except InputError:  # before its first entry
            if SHARED.acknowledged:
                return "all is lost"
        else:
            if found.entries < SHARED.acknowledged:
                return f"{found.entries} entries of {SHARED.acknowledged}"
            if found.entries and not found.ok:
                return str(found.problems)
            if found.status == "finished":
                return "" if remains(run) == self.killer.expected else "not the same"
        status = os.waitpid(self.fork(self.killer.settings, run, self.killer.log), 0)[1]
        if status:
            return f"can't go on: {status}"
        return "" if remains(run) == self.killer.expected else "not the same"


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=5, help="of so many calls, one fails")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("there is no strace here: install it (Debian's package is strace)")
    sys.path.insert(0, str(ROOT))
    started, wrong, done = time.perf_counter(), list[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        injector = Injector(Path(directory).resolve())
        counted = injector.count()
        for call, calls in counted.items():
            for number in range(1 + arguments.seed % arguments.every, calls + 1, arguments.every):
                how = HOWS[(number // arguments.every) % len(HOWS)]
                done[f"{call} {how}"] += 1
                if what := injector.fail(call, number, how):
                    wrong.append(f"{call} {number} {how}: {what}")
    report = {
        "calls": dict(counted),
        "injections": dict(done),
        "total": sum(done.values()),
        "wrong": wrong,
        "seconds": round(time.perf_counter() - started, 1),
    }
    json.dump(report, sys.stdout, indent=2)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
