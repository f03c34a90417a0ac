"""Mutated documents are read or refused in words: a little of what tools/fuzz.py does for as long as it is let."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzzing

TOOL = Path(__file__).parents[1] / "tools" / "fuzz.py"
LONGEST = 10
"""Seconds for one document."""


@pytest.fixture(scope="module", params=sorted(fuzzing.TARGETS))
def target(request: pytest.FixtureRequest) -> fuzzing.Target:
    return fuzzing.TARGETS[request.param]()


@pytest.fixture(autouse=True)
def _never_a_hang() -> Iterator[None]:
    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"a document took more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def timed(check: Callable[[bytes], bool], data: bytes) -> bool:
    signal.alarm(LONGEST)
    taken = check(data)
    signal.alarm(0)
    return taken


def test_what_it_begins_from_is_valid(target: fuzzing.Target) -> None:
    """But for the targets whose documents say what is edited: there the first is no edit."""
    assert timed(target.check, target.seeds[0])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), at=st.integers(0, 99))
def test_a_mutation_of_it_is_read_or_refused(target: fuzzing.Target, seed: int, at: int) -> None:
    data = target.seeds[at % len(target.seeds)]
    timed(target.check, fuzzing.mutate(data, random.Random(seed)))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(target: fuzzing.Target, data: bytes) -> None:
    timed(target.check, data)


def test_a_law_that_is_broken_is_found() -> None:
    """Of a parser that takes what it should not."""
    whole = fuzzing.vkey().seeds[0]

    def check(data: bytes) -> bool:
        fuzzing.need(data == whole, "nothing else is taken")
        return True

    assert check(whole)
    other = fuzzing.mutate(whole, random.Random(0))
    with pytest.raises(fuzzing.LawError, match="nothing else is taken"):
        check(other)


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tool_says_what_it_did_and_which_targets_there_are() -> None:
    done = fuzz("vkey", "--seconds", "1", "--plain")
    assert done.returncode == 0, done.stderr
    assert "no finding; seeded mutations" in done.stdout
    missing = fuzz("nothing", "--plain")
    assert missing.returncode == 1
    assert "there are all, entry, segment" in missing.stderr
