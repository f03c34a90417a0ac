"""Checkpoints: a run between two steps on the disk, whole or not there, and loaded without executing anything.

checkpoints/step-000050/
policy/             a plain Hugging Face directory, of the adapter alone where one is trained
state.safetensors   optimiser, value head, random streams, waiting rollouts, and what else is tensors
state.json          step, controller, tally, orders of prompts, how much of the run's files belongs to it
manifest.json       every file by size and digest; the ledger has the digest of this
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kleash import control, guard
from kleash.errors import InputError, RepeatError, TamperError
from kleash.ledger import CHECKPOINT_DIRECTORY, checkpoint_name, encode
from kleash.ledger.durable import (
    discard_directory,
    make_directory,
    publish_directory,
    remove_directory,
)
from kleash.ledger.manifest import check_sealed, seal
from kleash.models.hub import own_state, read_weights, save_language_model
from kleash.models.policy import LanguageModel
from kleash.models.sharded import collected, put
from kleash.rollout.rollout import Rollout
from kleash.train.learner import Learner
from kleash.train.process import put_random
from kleash.train.progress import Mark, Progress, Tally
from kleash.train.setup import Setup

OURS = re.compile(r"step-\d+|\.step-\d+\.(tmp|old)")
"""Names that a checkpoint has, and while it is written or removed: nothing else is touched."""
CARD = "A checkpoint of a kleash run, made to go on from; the run's final/ is the model.\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that is on the disk, and was read again."""

    step: int
    manifest_sha256: str


class Content(NamedTuple):
    """What training changed, as files have it: whole, on the host."""

    policy: dict[str, Tensor]
    """Its `own_state`."""
    tensors: dict[str, Tensor]


class Extent(NamedTuple):
    """What of one of the run's files belongs to the steps made."""

    length: int
    """In bytes."""
    sha256: str


class Usable(NamedTuple):
    """What there is of checkpoints."""

    newest: Saved | None
    """Of those that are as they were recorded."""
    steps: list[int]
    """Of all of those."""
    wrong: list[str]
    """What there is to say of those that aren't."""


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint after so many steps is."""
    return run / CHECKPOINT_DIRECTORY / checkpoint_name(step)


def collect(progress: Progress) -> Content | None:
    """What a checkpoint has of a run whose weights are divided, on the first process; all have to ask for it.

    Tensors are gathered one at a time. None where every process has all of them.
    """
    learner = progress.setup.learner
    if learner.division is None:
        return None
    return Content(collected(own_state(learner.policy)), collected(_changed(progress)))


def save_checkpoint(
    run: Path,
    progress: Progress,
    files: Mapping[str, Extent],
    recorded: str | None = None,
    content: Content | None = None,
) -> Saved:
    """Writes a run between two steps; when this returns it is on the disk and was found to be as written.

    Args:
        run: the run's directory.
        progress: whose weights are settled.
        files: what of each of the run's files belongs to the steps made.
        recorded: the digest that it must have, where it was made before.
        content: what was collected of it; None: this process has all.

    Raises:
        OSError: the disk failed; no checkpoint has become worse.
        RepeatError: it has another digest; it was not kept.
        TamperError: what was read again is not what was written.
    """
    learner, mark = progress.setup.learner, progress.mark
    assert learner.settled, "a checkpoint is of a run between two steps"
    target = path_of(run, mark.step)
    temporary = target.with_name(f".{target.name}.tmp")
    make_directory(target.parent)
    if temporary.exists():
        shutil.rmtree(temporary)
    policy, changed = (None, _changed(progress)) if content is None else content
    save_language_model(learner.policy, temporary / "policy", CARD, weights=policy)
    tensors = {**changed, **_mark_tensors(mark), **progress.process}
    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    save_file(plain, temporary / "state.safetensors")
    extents = {name: extent._asdict() for name, extent in files.items()}
    state = {
        **_mark_json(mark),
        "reference": learner.reference.name,
        "answers": progress.answers,
        "files": extents,
    }
    (temporary / "state.json").write_bytes(encode(state) + b"\n")
    digest = seal(temporary)
    if recorded not in (None, digest):
        shutil.rmtree(temporary)
        raise RepeatError(
            f"the run does not repeat itself: its checkpoint after step {mark.step} is another",
            expected=f"manifest {recorded}",
            got=digest,
            do="go on where it was begun, with the same machine, threads and versions",
        )
    publish_directory(temporary, target)
    check_sealed(target, digest)
    return Saved(step=mark.step, manifest_sha256=digest)


def keep_only(run: Path, steps: Iterable[int]) -> None:
    """Removes all checkpoints but some, and what writing or removing one left behind."""
    kept, root = {path_of(run, step) for step in steps}, run / CHECKPOINT_DIRECTORY
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path in kept or not OURS.fullmatch(path.name):
            continue
        if path.name.startswith("."):
            remove_directory(path)
        else:
            discard_directory(path)


def find_usable(run: Path, saved: Sequence[Saved]) -> Usable:
    """The checkpoints that are as they were recorded, the run's own files up to there among what was.

    Args:
        run: the run's directory.
        saved: what the ledger has of checkpoints, oldest first.
    """
    wrong: list[str] = []
    newest, steps = None, list[int]()
    for each in reversed(saved):
        directory = path_of(run, each.step)
        if newest is not None and not directory.exists():
            continue  # removed as the run went on
        try:
            check_sealed(directory, each.manifest_sha256)
            if newest is None:
                _check_files(run, directory)
        except (TamperError, OSError) as error:
            wrong.append(f"checkpoint {directory.name} is not used: {error}")
            continue
        newest = newest or each
        steps.insert(0, each.step)
    return Usable(newest, steps, wrong)


def _check_files(run: Path, directory: Path) -> None:
    """That the run's files still begin as they were when a checkpoint, which is as it was recorded, was made."""
    state = json.loads((directory / "state.json").read_bytes())
    for name, extent in state["files"].items():
        with (run / f"{name}.jsonl").open("rb") as file:
            content = file.read(extent["length"])
        if Extent(len(content), hashlib.sha256(content).hexdigest()) != Extent(**extent):
            raise TamperError(f"{name}.jsonl is not as it was then")


def load_checkpoint(directory: Path, setup: Setup) -> tuple[Progress, dict[str, int]]:
    """The run as it was, on a setup that was loaded anew, and how long its files were then.

    Raises:
        TamperError: the files are no checkpoint of such a run.
    """
    try:
        tensors = load_file(directory / "state.safetensors")
        data = json.loads((directory / "state.json").read_bytes())
        policy = read_weights(directory / "policy", setup.learner.policy)
        _put_learner(setup.learner, policy, tensors, data["reference"])
        progress = Progress(setup, _mark(data, tensors, setup))
        under = [tensors[f"under.{i}"] for i in range(_count(tensors, "under"))]
        progress.answers = data["answers"]
        progress.under = [setup.learner.own(i, x) for i, x in enumerate(under)] or None
        put_random(tensors)
        return progress, {str(n): int(extent["length"]) for n, extent in data["files"].items()}
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        InputError,
    ) as error:
        if isinstance(cause := error.__cause__, OSError) and cause.errno is not None:
            raise cause from error  # the disk failed: the files are as they were recorded
        raise TamperError(
            f"{directory.name} is no checkpoint of this run", got=str(error)
        ) from error


def load_weights(directory: Path, learner: Learner) -> None:
    """Gives a learner the weights, optimiser and reference of a checkpoint.

    Raises:
        TamperError: the files are no checkpoint of such a run.
    """
    tensors = load_file(directory / "state.safetensors")
    reference = json.loads((directory / "state.json").read_bytes())["reference"]
    policy = read_weights(directory / "policy", learner.policy)
    _put_learner(learner, policy, tensors, reference)


def _changed(progress: Progress) -> dict[str, Tensor]:
    """All that training changes, but the policy itself; what of a divided learner is parts, is joined."""
    learner = progress.setup.learner
    tensors = _learner_tensors(learner)
    for index, tensor in enumerate(progress.under or ()):
        tensors[f"under.{index}"] = learner.joined(index, tensor)
    return tensors


def _learner_tensors(learner: Learner) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if learner.value_head is not None:
        tensors |= {f"value_head.{name}": x for name, x in learner.value_head.named_parameters()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        for name, x in state.items():
            joined = learner.joined(index, torch.as_tensor(x))
            tensors[f"optimizer.{index}.{name}"] = joined
    if learner.origin is not learner.reference:
        named = learner.reference.own_weights.items()
        tensors |= {f"reference.{name}": x for name, x in named}
    return tensors


@torch.no_grad()
def _put_learner(
    learner: Learner,
    policy: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    reference: str,
) -> None:
    learner.settled = False
    _copy(learner.policy.own_weights, policy)
    if learner.value_head is not None:
        _copy(dict(learner.value_head.named_parameters()), _under(tensors, "value_head"))
    learner.optimizer.load_state_dict(_optimizer_state(learner, tensors))
    if learner.origin is not learner.reference:
        assert isinstance(learner.reference, LanguageModel), "several references stay as they are"
        _copy(learner.reference.own_weights, _under(tensors, "reference"))
        learner.reference = replace(learner.reference, name=reference)
    learner.settled = True


def _optimizer_state(learner: Learner, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = learner.own(int(index), tensor)
    return {**learner.optimizer.state_dict(), "state": state}


def _copy(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in weights.items():
        given = tensors[name]
        if given.shape != parameter.shape:
            raise KeyError(f"{name} has another shape")
        put(parameter, given)


def _mark_tensors(mark: Mark) -> dict[str, Tensor]:
    tensors = {f"stream.{name}": state for name, state in mark.streams.items()}
    for index, rollout in enumerate(mark.waiting):
        each = {field.name: getattr(rollout, field.name) for field in fields(Rollout)}
        tensors |= {
            f"waiting.{index}.{name}": x for name, x in each.items() if isinstance(x, Tensor)
        }
    return tensors


def _mark_json(mark: Mark) -> dict[str, Any]:
    return {
        "v": 1,
        "step": mark.step,
        "control": mark.control.to_json(),
        "guard": mark.guard.to_json(),
        "step_coef": mark.step_coef,
        "kept": mark.kept,
        "tally": asdict(mark.tally),
        "shuffles": {name: [list(order), taken] for name, (order, taken) in mark.shuffles.items()},
        "waiting": [
            {"prompts": list(x.prompts), "responses": list(x.responses)} for x in mark.waiting
        ],
    }


def _mark(data: Mapping[str, Any], tensors: Mapping[str, Tensor], setup: Setup) -> Mark:
    device = setup.learner.policy.device
    waiting = [
        Rollout(
            prompts=tuple(texts["prompts"]),
            responses=tuple(texts["responses"]),
            **cast(Any, {n: x.to(device) for n, x in _under(tensors, f"waiting.{index}").items()}),
        )
        for index, texts in enumerate(data["waiting"])
    ]
    return Mark(
        step=data["step"],
        control=control.from_json(data["control"], setup.config.rl),
        guard=guard.from_json(data["guard"], setup.config.guard, setup.config.train.steps),
        step_coef=float(data["step_coef"]),
        kept=data["kept"],
        tally=Tally(**data["tally"]),
        streams=_under(tensors, "stream"),
        shuffles={name: (tuple(order), taken) for name, (order, taken) in data["shuffles"].items()},
        waiting=tuple(waiting),
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that."""
    begins = f"{prefix}."
    return {name.removeprefix(begins): x for name, x in tensors.items() if name.startswith(begins)}


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len(_under(tensors, prefix))
