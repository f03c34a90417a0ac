"""The power is lost at any moment: nothing acknowledged is gone, and nothing wrong is taken for right."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kleash.errors import InputError, KleashError
from kleash.ledger import Entry, open_signing_key, read
from kleash.replay import verify_run
from kleash.train.checkpoint import find_usable
from kleash.train.config import RunConfig
from kleash.train.resume import Earlier, find_earlier
from kleash.train.run import train
from tests.train.power import Op, Trace, traced
from tests.train.small import in_memory, remains, small_settings


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with in_memory() as directory:
        yield directory


@pytest.fixture(scope="module")
def config(place: Path) -> RunConfig:
    settings: dict[str, Any] = small_settings(
        place, steps=4, checkpoint_every=1, num_samples=1, sample_every=2
    )
    return RunConfig.model_validate(settings)


@pytest.fixture(scope="module", params=["a run", pytest.param("going on", marks=pytest.mark.slow)])
def trace(request: pytest.FixtureRequest, place: Path, config: RunConfig) -> Trace:
    """Of a whole run, its directory's own making included; or of going on with one, its newest checkpoint damaged."""
    root = place / request.param
    root.mkdir()
    if request.param == "going on":
        steps = train(config, place / "live", skip_self_test=True)
        for _ in range(3):
            next(steps)
        shutil.copytree(place / "live", root / "run")
        steps.close()
        (root / "run/checkpoints/step-000003/state.json").write_bytes(b"{}")
    with traced(root) as trace:
        assert list(train(config, root / "run", skip_self_test=True, resume=True))
    return trace


def found_at(run: Path) -> Earlier | None:
    """What there is of a run, its ledger closed again; None where nothing is."""
    earlier = find_earlier(run, [open_signing_key()])
    if earlier is not None and earlier.ledger is not None:
        earlier.ledger.close()
    return earlier


def problem(run: Path, acknowledged: int, entries: list[Entry]) -> str:
    """What is wrong with a state; empty where nothing is."""
    try:
        earlier = found_at(run)
    except KleashError as error:
        if "has finished" not in str(error):
            return f"can't go on: {error}"
        found = verify_run(run)
        is_whole = found.ok and found.status == "finished" and found.entries == len(entries)
        return "" if is_whole else f"finished, and not whole: {found.problems}"
    if earlier is None:
        return "all is lost" if acknowledged else ""
    there, newest = [e.leaf for e in earlier.entries], [x.step for x in earlier.saved][-2:]
    usable = find_usable(run, earlier.saved).newest
    problems = verify_run(run).problems if there else ()
    wrong = {
        "entries that nobody wrote": there != [e.leaf for e in entries[: len(there)]],
        f"{len(there)} entries of {acknowledged} acknowledged": len(there) < acknowledged,
        f"none of the checkpoints {newest} is usable": bool(newest)
        and (usable is None or usable.step not in newest),
        str(problems): any("step-000003" not in p.where for p in problems),
    }
    return "; ".join(what for what, is_so in wrong.items() if is_so)


def check(trace: Trace, config: RunConfig, per_point: int, go_on_every: int, place: Path) -> int:
    """Recovers every state, and goes on with some to the end; how many there were."""
    entries, wrong = read(trace.root / "run/ledger"), Counter[str]()
    whole, number = remains(trace.root / "run"), 0
    for number, (image, acknowledged) in enumerate(trace.states(0, per_point), 1):
        (root := place / "state").mkdir()
        image.write(root)
        run = root / "run"
        what = problem(run, acknowledged, entries)
        if not what and number % go_on_every == 0:
            with suppress(InputError):  # it has finished
                list(train(config, run, skip_self_test=True, resume=True))
            left = remains(run)
            what = ", ".join(sorted(n for n in {*left, *whole} if left.get(n) != whole.get(n)))
        wrong.update([what] if what else [])
        shutil.rmtree(root)
    assert not wrong, wrong.most_common(5)
    return number


def test_a_loss_of_power_loses_nothing_that_was_acknowledged(
    trace: Trace, config: RunConfig, place: Path
) -> None:
    assert check(trace, config, per_point=1, go_on_every=60, place=place) > 60


@pytest.mark.slow
def test_no_loss_of_power_loses_anything_that_was_acknowledged(
    trace: Trace, config: RunConfig, place: Path
) -> None:
    """At every moment, in states of every kind."""
    assert check(trace, config, per_point=12, go_on_every=200, place=place) > 400


def test_the_model_loses_what_was_not_synced_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"o" * 700)
    with traced(tmp_path) as trace:
        pass
    trace.ops = [
        Op("write", 1, offset=700, data=b"n" * 1100),
        Op("name", 0, "new", child=9),
        Op("write", 9, data=b"x"),
        Op("sync", 9),
    ]
    lengths, contents = set[int](), set[Any]()
    for image, _ in trace.states(0, 400):
        tree = dict(image.tree())
        assert (tree["old"] or b"")[:700] == b"o" * 700
        lengths.add(len(tree["old"] or b""))
        contents.add(tree.get("new"))
    assert lengths == {700, 700 + 512, 700 + 1024, 1800}
    assert contents == {None, b"", b"\0", b"x"}
    trace.ops += [Op("sync", 1), Op("sync", 0)]
    tree = dict(trace.state(len(trace.ops), random.Random(0)).tree())
    assert tree == {"old": b"o" * 700 + b"n" * 1100, "new": b"x"}
