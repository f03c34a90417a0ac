"""A run as a process other than the first makes it: the same steps on its own rows, and nothing is written."""

from collections.abc import Iterator
from pathlib import Path

from kleash.records import StepRecord
from kleash.train.checkpoint import collect, load_weights, path_of
from kleash.train.joint import JointRecord, check_as_one
from kleash.train.loop import run_loop
from kleash.train.parting import Parting
from kleash.train.progress import Progress
from kleash.train.resume import Earlier, restore
from kleash.train.setup import Setup, seed_process


def follow(setup: Setup, run: Path, earlier: Earlier | None) -> Iterator[StepRecord]:
    """Makes the steps of a run that another process writes, and yields what that one does.

    Args:
        setup: of the run, on this process.
        run: its directory, which is read where the run goes back to a checkpoint.
        earlier: the run as it was left; None: it begins.

    Raises:
        LimitError: the guard halted the run; ResourceError: another process is gone, or has come apart from this one.
    """
    learner, world = setup.learner, setup.world
    seed_process(setup.config.train.seed)
    progress = Progress(setup) if earlier is None else restore(earlier, setup).progress

    def go_back(step: int) -> None:
        load_weights(path_of(run, step), learner)
        world.meet()

    record_to = JointRecord(world, None, learner)
    with Parting(setup).together():
        for record in run_loop(progress.setup, record_to, progress, go_back):
            if record.step % setup.config.train.checkpoint_every == 0:
                check_as_one(world, learner)
                collect(progress)
            yield record
        check_as_one(world, learner)
