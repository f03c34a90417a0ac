"""A training run, from its configuration to its end, and on from where it stopped."""

import hashlib
import platform
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from kleash import __version__
from kleash.errors import InputError, ResourceError, is_out_of_memory
from kleash.ledger import Ledger, Signer, encode, open_signing_key
from kleash.models.blend import Blend
from kleash.models.hub import vocabulary_digest
from kleash.models.identity import are_same
from kleash.models.loading import count_parameters
from kleash.records import StepRecord
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import check_running, encode_prompts, sample
from kleash.rollout.seeds import seeded
from kleash.train.algorithms import ALGORITHMS
from kleash.train.canary import Canary
from kleash.train.checkpoint import collect
from kleash.train.checks import SelfTest
from kleash.train.config import RunConfig
from kleash.train.data import check_enough, load_prompts, load_slices
from kleash.train.directory import (
    RunDirectory,
    begin,
    disk_failed,
)
from kleash.train.follow import follow
from kleash.train.joint import (
    JointRecord,
    as_launched,
    check_as_one,
    check_together,
    load_scorers,
)
from kleash.train.learner import Learner, build_learner, resolve_device
from kleash.train.loop import run_loop
from kleash.train.natural import check_size
from kleash.train.parting import Parting
from kleash.train.progress import Progress
from kleash.train.ptx import load_pretraining
from kleash.train.resume import (
    PROCESSES,
    Earlier,
    check_digests,
    check_same,
    find_earlier,
    last_record,
    read_earlier,
    refuse_another,
    restore,
    to_repeat,
)
from kleash.train.self_test import self_test
from kleash.train.setup import Setup, seed_process
from kleash.train.trackers import Trackers, check_trackers
from kleash.train.world import ALONE, World, launched

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy")


def train(
    config: RunConfig,
    run: Path,
    *,
    skip_self_test: bool = False,
    resume: bool = False,
    signers: Sequence[Signer] | None = None,
    world: World | None = None,
) -> Generator[StepRecord]:
    """Trains, and yields each step's record once it is on disk.

    Nothing is written before configuration, models, prompts and reward are loaded and checked, and the self-test has
    passed. After that every way out leaves a run that verifies: the end of the steps, a halt by the guard, an error,
    Ctrl-C, closing the iterator. The policy as it then is stands in `final/`.

    Args:
        config: the whole run.
        run: the run directory; it must not exist, or be empty.
        skip_self_test: train without it, which the ledger then says.
        resume: go on with what is in the run directory, as if it had never stopped; from the beginning where nothing
            is. Steps that its ledger has and no checkpoint holds are made again, and must be the same.
        signers: who signs the ledger; None: the signing key at its usual place, made where there is none.
        world: the processes that make it; None: those that a launcher began. The first of them writes.

    Raises:
        InputError, ConfigError: something that was asked for can't be had, or the self-test failed.
        RewardError: the reward failed; LimitError: the guard halted the run; ResourceError: the disk failed.
        TamperError: the run that is to be gone on with is not as it was written.
        RepeatError: it does not repeat itself.
    """
    world = launched(config.train.device) if world is None else world
    with world.attended(), _outside(run), ExitStack() as stack:
        config = as_launched(config, world)
        check_together(config, world)
        if not world.is_first:
            yield from _followed(config, world)
            return
        signers = [open_signing_key()] if signers is None else signers
        if resume:
            refuse_another(config, run, world.size)
        earlier = find_earlier(run, signers) if resume else None
        ledger = None if earlier is None else earlier.ledger
        if ledger is not None:
            stack.enter_context(ledger)
        elif not resume:
            check_vacant(run)
        if earlier is None or not earlier.entries:
            world.told([str(run), False, not skip_self_test])
            setup = prepare(config, world)
            directory = _begin(setup, run, ledger, signers, skip_self_test=skip_self_test)
        else:
            world.told([str(run), True, False])
            directory = _go_on(config, earlier, world)
        stack.enter_context(directory)
        with world.attended():  # the others need not wait until this one has written its ending
            yield from _written(directory, config)


def _written(directory: RunDirectory, config: RunConfig) -> Iterator[StepRecord]:
    """The steps of a run, each of which is on the disk by the time it is yielded."""
    progress, ledger = directory.progress, directory.ledger
    assert progress is not None, "what another trainer makes has no steps of ours"
    learner, world = progress.setup.learner, progress.setup.world
    parting = directory.conclude
    assert isinstance(parting, Parting)
    record_to = ledger if world.size == 1 else JointRecord(world, ledger, learner)

    def go_back(step: int) -> None:
        directory.go_back(step)
        world.meet()  # the others have read it too

    with parting.together():
        for record in run_loop(progress.setup, record_to, progress, go_back):
            directory.write(record)
            if record.step % config.train.checkpoint_every == 0:
                check_as_one(world, learner)
                directory.checkpoint(collect(progress))
            yield record
        check_as_one(world, learner)


def _followed(config: RunConfig, world: World) -> Iterator[StepRecord]:
    """The steps of a run that another process writes."""
    run, goes_on, tests = world.told()
    earlier = read_earlier(Path(run)) if goes_on else None
    setup = prepare(config, world)
    _joint_digests(setup)
    if tests and setup.learner.division is not None:  # in which the first process needs the others
        check_setup(setup)
    yield from follow(setup, Path(run), earlier)


def _begin(
    setup: Setup,
    run: Path,
    ledger: Ledger | None,
    signers: Sequence[Signer],
    *,
    skip_self_test: bool,
) -> RunDirectory:
    """The directory of a run at its beginning, its ledger's first entries written."""
    config, world = setup.config, setup.world
    found = _joint_digests(setup)
    tested = None if skip_self_test else check_setup(setup)
    started = {
        "config": config.model_dump(mode="json"),
        "versions": versions(LIBRARIES),
        "digests": found,
        "self_test": "skipped" if tested is None else tested.to_json(),
        **({} if world.size == 1 else {PROCESSES: world.size}),
    }
    ledger = begin(run, started, signers, plan=plan_of(setup), ledger=ledger)
    try:
        seed_process(config.train.seed)
        return RunDirectory(run, ledger, Parting(setup), _trackers(config), Progress(setup))
    except BaseException:
        ledger.close()
        raise


def _go_on(config: RunConfig, earlier: Earlier, world: World) -> RunDirectory:
    """The directory of a run that is gone on with, what is to be made again expected."""
    started, ledger = earlier.entries[0].body, earlier.ledger
    assert ledger is not None, "this process writes it"
    check_same(config, started)
    setup = prepare(config, world)
    check_digests(_joint_digests(setup), started)
    seed_process(config.train.seed)
    restored = restore(earlier, setup)
    checkpoint, step = restored.checkpoint, restored.progress.mark.step
    body = {
        "step": step,
        "checkpoint": None if checkpoint is None else checkpoint.manifest_sha256,
        "versions": versions(LIBRARIES),
        "notes": list(restored.notes),
        "kleash": __version__,
    }
    if len(earlier.entries) == 1:  # killed between its first entry and its plan
        ledger.append("plan.committed", plan_of(setup))
    ledger.append("run.resumed", body)
    ledger.expect(to_repeat(earlier, step))
    directory = RunDirectory(
        earlier.run,
        ledger,
        Parting(setup),
        _trackers(config),
        restored.progress,
        restored.lengths,
        earlier.saved,
    )
    directory.kept, directory.last = restored.kept, last_record(earlier, step)
    return directory


def _joint_digests(setup: Setup) -> dict[str, str]:
    """What a run is made from, which is the same on every process, and their versions are."""
    found = digests(setup.learner, setup.prompts)
    canary = {} if setup.canary is None else {"canary": setup.canary.rollout.sha256()}
    setup.world.agree("what the run is made from", {**found, **canary, **versions(LIBRARIES)})
    return found


def plan_of(setup: Setup) -> dict[str, Any]:
    """What limits and steers a run, entered before its first step: it changes after by an override alone."""
    config, canary = setup.config, setup.canary
    guard, rl = (section.model_dump(mode="json") for section in (config.guard, config.rl))
    return {
        "guard": guard,
        "rl": rl,
        "canary": None if canary is None else canary.rollout.sha256(),
    }


@contextmanager
def _outside(run: Path) -> Generator[None]:
    """Says of what failed outside of kleash where it did."""
    try:
        yield
    except OSError as error:
        raise disk_failed(run, error) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"there is no memory left for {run}",
            expected="room for the models, the optimiser, and what an update is undone by",
            got=str(error).strip().splitlines()[0][:200] if str(error).strip() else "no room",
            do="lower train.micro_batch_size and rollout.max_running first, which change no result; then "
            "model.gradient_checkpointing = true, [model.lora], or fewer rollout.num_prompts. A run that has "
            "checkpoints goes on with --resume where the configuration is the same; else begin another",
        ) from error


def _trackers(config: RunConfig) -> Trackers:
    train = config.train
    return Trackers(train.trackers, resolve_device(train.device), train.tracker_options)


def prepare(config: RunConfig, world: World = ALONE) -> Setup:
    """Loads and checks all that the loop needs.

    Raises:
        InputError, ConfigError: something that was asked for can't be had.
    """
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Memory that is not written yet is not read either: filling it first takes a twentieth of a step.
    cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False
    check_trackers(config.train.trackers)
    device = resolve_device(config.train.device)
    prompts = load_prompts(config.data.prompts)
    check_enough(prompts, config.rollout.num_prompts)
    torch.manual_seed(seeded(config.train.seed, "initialisation").initial_seed())
    with_values = ALGORITHMS[config.algorithm.name].value_loss is not None
    natural = config.algorithm.update == "natural"
    if natural:
        check_size(config.model.policy, count_parameters(config.model.policy))
    learner = build_learner(
        config.model,
        config.optimizer,
        device,
        with_values=with_values,
        shard=config.train.shard and world.size > 1,
    )
    if natural:  # what could not be told by the files
        check_size(config.model.policy, sum(p.numel() for p in learner.trained))
    check_running(learner.policy, config.rollout)
    encode_prompts(learner.policy, prompts, config.rollout.max_new_tokens)
    reward, monitors = load_scorers(config.reward, device, world)
    return Setup(
        config=config,
        learner=learner,
        prompts=prompts,
        reward=reward,
        monitors=monitors,
        pretraining=load_pretraining(
            config.ptx, learner.policy, seeded(config.train.seed, "pretraining")
        ),
        canary=build_canary(config, learner, prompts),
        world=world,
    )


def build_canary(config: RunConfig, learner: Learner, prompts: list[str]) -> Canary | None:
    """The canary of a run; None where nothing is measured at it.

    Raises:
        InputError: its prompts can't be read, or are too few or too long.
    """
    guard = config.guard
    if not guard.needs_canary:
        return None
    asked = prompts if guard.canary is None else load_prompts(guard.canary)
    slices = [] if guard.canary is None else load_slices(guard.canary)
    chosen = asked[: guard.canary_prompts]
    if guard.max_kl_slice is not None and not any(slices):
        raise InputError(
            "guard.max_kl_slice limits slices, and the canary set has none",
            expected='guard.canary: JSON lines such as {"prompt": "…", "slice": "code"}',
            got="no canary" if guard.canary is None else f"no slice in {guard.canary}",
            do="name such a file, or take guard.max_kl_canary, which limits the mean of all",
        )
    speaker = learner.origin.heaviest if isinstance(learner.origin, Blend) else learner.origin
    settings = {**config.rollout.model_dump(), "num_prompts": len(chosen), "group_size": 1}
    rollout = sample(
        speaker, chosen, RolloutConfig.model_validate(settings), seeded(config.train.seed, "canary")
    )
    return Canary(
        learner,
        rollout,
        slices[: len(chosen)],
        temperature=config.rollout.temperature,
        rows=config.train.micro_batch_size,
    )


def check_setup(setup: Setup) -> SelfTest:
    """The self-test of a run's own models, prompts and penalty.

    Raises:
        ConfigError: something is not as it must be.
    """
    generator = seeded(setup.config.train.seed, "self-test")
    algorithm = ALGORITHMS[setup.config.algorithm.name]
    tested = self_test(setup.learner, setup.prompts, setup.config, algorithm, generator)
    tested.raise_if_failed()
    return tested


def check_vacant(run: Path) -> None:
    """That nothing is where a run is to be.

    Raises:
        InputError: something is.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(
            f"{run} is not empty",
            expected="a directory that doesn't exist yet, or an empty one",
            got="files in it, which were left as they are",
            do="choose another --run",
        )


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Of kleash, Python and some libraries."""
    known = {name: version(name) for name in libraries}
    return {"kleash": __version__, "python": platform.python_version(), **known}


def digests(learner: Learner, prompts: list[str]) -> dict[str, str]:
    """Which weights, which tokenizer and which prompts a run started from."""
    policy = learner.policy.digest()
    # The reference is most often what the policy is, and a digest reads every weight.
    same = are_same(learner.policy.state(), learner.reference.state())
    return {
        "policy": policy,
        "reference": policy if same else learner.reference.digest(),
        "tokenizer": vocabulary_digest(learner.policy.tokenizer),
        "prompts": sha256_of(prompts),
    }


def sha256_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(encode(value)).hexdigest()
