"""`kill -9` at random instants of a small run, and of going on with it, until it is the run that was never killed.

    python -m tests.train.kill DIRECTORY [--kills 200] [--seed 0]

A server that has imported everything forks a child a life, so that a life costs what the run itself does. Where a child
is, and the last entry that it was acknowledged, it writes to memory that it shares with the server: what is there when
it is killed stays. Half of the instants are random in time, half in a phase that is drawn first.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import kleash.train.directory as directory_module
import kleash.train.loop as loop_module
import kleash.train.run as run_module
from kleash.ledger import Ledger, read
from kleash.replay import verify_run
from kleash.train.config import RunConfig
from kleash.train.progress import Progress
from tests.train.small import count_a, remains, small_settings

PHASES = (
    "loading",
    "sampling",
    "reward",
    "update",
    "ledger",
    "files",
    "checkpoint",
    "recovery",
    "ending",
    "between",
)
"""Where a run can be killed; `between`: at anything else."""


class Shared:
    """What a child leaves, however it ends: its phase, and how many entries it was acknowledged."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    @property
    def phase(self) -> str:
        return PHASES[self._memory[0]]

    @phase.setter
    def phase(self, name: str) -> None:
        self._memory[0] = PHASES.index(name)

    @property
    def acknowledged(self) -> int:
        return struct.unpack_from("q", self._memory, 8)[0]

    @acknowledged.setter
    def acknowledged(self, entries: int) -> None:
        struct.pack_into("q", self._memory, 8, entries)


SHARED = Shared()


@contextmanager
def in_phase(name: str) -> Generator[None]:
    """Says where the child is."""
    before, SHARED.phase = SHARED.phase, name
    try:
        yield
    finally:
        SHARED.phase = before


def marked(owner: Any, name: str, phase: str) -> None:
    """Has a function of ours say that it is at work."""
    real: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        with in_phase(phase):
            return real(*arguments, **options)

    setattr(owner, name, call)


def acknowledging() -> None:
    """Has the ledger's writer note each entry once `append` has returned it."""
    real = Ledger.append

    def append(self: Ledger, type: str, body: Any) -> Any:
        with in_phase("ledger"):
            entry = real(self, type, body)
            SHARED.acknowledged = max(SHARED.acknowledged, entry.seq + 1)
            return entry

    Ledger.append = append  # pyright: ignore[reportAttributeAccessIssue]


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """Draws from the process's streams too, and takes as long as anything else."""
    with in_phase("reward"):
        time.sleep(0.004)
        noise = [random.random() for _ in responses]
        return [a + z for a, z in zip(count_a(prompts, responses), noise, strict=True)]


def live(settings: dict[str, Any], run: Path) -> None:
    """A child's whole life."""
    sys.modules["tests.train.kill"] = sys.modules[__name__]
    SHARED.phase = "between"
    marked(run_module, "prepare", "loading")
    marked(run_module, "find_earlier", "recovery")
    marked(run_module, "restore", "recovery")
    marked(Progress, "next_rollout", "sampling")
    marked(loop_module, "propose_update", "update")
    marked(directory_module.RunDirectory, "write", "files")
    marked(directory_module.RunDirectory, "checkpoint", "checkpoint")
    marked(directory_module.RunDirectory, "_end", "ending")
    acknowledging()
    config = RunConfig.model_validate(settings)
    for _ in run_module.train(config, run, skip_self_test=True, resume=True):
        pass


def fork(settings: dict[str, Any], run: Path, log: Path, *, is_stopped: bool = False) -> int:
    """Starts a child, or has it wait for SIGCONT first; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if is_stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        live(settings, run)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def has_ended(child: int) -> int | None:
    """The exit status of a child that has ended."""
    number, status = os.waitpid(child, os.WNOHANG)
    return status if number else None


@dataclass
class Report:
    """What came of it."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter[str])
    lost: list[str] = field(default_factory=list[str])
    """Entries that were acknowledged and are not there."""
    different: list[str] = field(default_factory=list[str])
    """Runs that are not, to the last bit, the one that was never killed."""
    stuck: list[str] = field(default_factory=list[str])
    """Runs that could not be gone on with, or did not verify: somebody would have had to mend them."""

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "kills": sum(self.kills.values()),
            "phases": {phase: self.kills[phase] for phase in PHASES},
            "lost": self.lost,
            "different": self.different,
            "stuck": self.stuck,
        }


class Killer:
    """Kills runs, and looks at what is left.

    Args:
        directory: for the runs.
        seed: of the instants.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.random, self.report = directory, random.Random(seed), Report()
        directory.mkdir(parents=True, exist_ok=True)
        tqdm.monitor_interval = 0  # or it starts a thread
        self.settings = small_settings(directory, "tests.train.kill:reward", checkpoint_every=2)
        self.log = directory / "log.txt"
        self.phases: list[str] = []
        run_module.prepare(RunConfig.model_validate(self.settings))  # imports what is left to
        assert threading.active_count() == 1, "only the thread that forks is in a child"
        assert self._wait(fork(self.settings, directory / "whole", self.log)) == 0
        started = time.perf_counter()
        assert self._wait(fork(self.settings, directory / "again", self.log)) == 0
        self.seconds = time.perf_counter() - started
        self.expected = remains(directory / "whole")

    def one_run(self, lives: int) -> None:
        """A run that is killed so many times, then left to end."""
        run = self.directory / f"run-{self.report.runs}"
        self.report.runs += 1
        SHARED.acknowledged = 0
        for _ in range(lives):
            if not self._kill(run) or self._has_finished(run):
                break
        else:
            if status := self._wait(fork(self.settings, run, self.log)):
                self.report.stuck.append(f"{run.name}: ended with {status}")
                return
        self._compare(run)

    def _kill(self, run: Path) -> bool:
        """One life; False where it was over before the kill."""
        SHARED.phase = "between"
        child = fork(self.settings, run, self.log)
        started, phase = time.perf_counter(), None
        if self.random.random() < 0.5:
            wait = self.random.uniform(0, 1.1 * self.seconds)
        else:
            phase, wait = self._next_phase(), self.random.uniform(0, 0.5 * self.seconds)
        status = None
        while time.perf_counter() - started < wait and status is None:
            status = has_ended(child)
            time.sleep(0.0005)
        if phase is not None and status is None:
            while SHARED.phase != phase and status is None:
                status = has_ended(child)
                time.sleep(0.0001)
            time.sleep(self.random.choice([0, 0.0005, 0.002, 0.005]))
        if status is None:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            self.report.kills[SHARED.phase] += 1
            return True
        if status:
            self.report.stuck.append(f"{run.name}: ended with {status}")
        return False

    def _next_phase(self) -> str:
        """Each once, in an order that is drawn, before any comes again."""
        if not self.phases:
            self.phases = self.random.sample(PHASES[:-1], len(PHASES) - 1)
        return self.phases.pop()

    def _has_finished(self, run: Path) -> bool:
        """Whether a kill came after the end; what it left is all that was acknowledged, and nothing wrong."""
        if not SHARED.acknowledged:
            return False
        found = verify_run(run)
        if not found.ok:
            self.report.stuck.append(f"{run.name}: {found.problems}")
        if found.entries < SHARED.acknowledged:
            self.report.lost.append(f"{run.name}: {found.entries} of {SHARED.acknowledged}")
        return found.status == "finished"

    def _compare(self, run: Path) -> None:
        found = verify_run(run)
        if not found.ok or found.status != "finished":
            self.report.stuck.append(f"{run.name}: {found.status} {found.problems}")
            return
        if len(read(run / "ledger")) < SHARED.acknowledged:
            self.report.lost.append(f"{run.name}: at the end")
        left = remains(run)
        differing = [n for n in {*left, *self.expected} if left.get(n) != self.expected.get(n)]
        if differing:
            self.report.different.append(f"{run.name}: {', '.join(sorted(differing))}")
        elif not self.report.stuck:
            shutil.rmtree(run)

    def _wait(self, child: int) -> int:
        return os.waitpid(child, 0)[1]


def kill(directory: Path, kills: int, seed: int) -> Report:
    """Kills until there were so many."""
    killer = Killer(directory, seed)
    while sum(killer.report.kills.values()) < kills:
        killer.one_run(lives=killer.random.randint(1, 12))
    return killer.report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    report = kill(arguments.directory.resolve(), arguments.kills, arguments.seed)
    seconds = round(time.perf_counter() - started, 1)
    json.dump({**report.to_json(), "seconds": seconds}, sys.stdout, indent=2)
    sys.exit(bool(report.lost or report.different or report.stuck))


if __name__ == "__main__":
    main()
