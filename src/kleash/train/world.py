"""The processes that one run is made by: their shares of the rows, and what they tell each other.

Every process computes its own rows; what is small is gathered, so that each has the whole of
it, and gradients are summed. A process that fails says why before it goes; the others, which wait for it, then end.
"""

import json
import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kleash.errors import ConfigError, ResourceError
from kleash.rewards.checks import shown
from kleash.rollout.rollout import Rollout

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another that is still there: the first one may ask a slow reward, or write to a disk.
One that is gone is noticed at once."""
BUCKET = 2**25
"""Numbers of a gradient that are summed at a time: 128 MiB."""
FSDP = "ACCELERATE_USE_FSDP"
"""What accelerate's launcher sets where weights are to be divided among processes."""
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "accelerate launch --use_fsdp --fsdp_version 2 divides weights among processes",
    "ACCELERATE_USE_MEGATRON_LM": "accelerate launch --use_fsdp --fsdp_version 2 divides weights among processes",
    "FSDP_OFFLOAD_PARAMS": "leave --fsdp_offload_params out: what a process has stays on its device",
    "FSDP_ACTIVATION_CHECKPOINTING": "set model.gradient_checkpointing = true in its place",
}
"""What it sets that isn't done, and what to do."""
LEFT = "left"
"""Where a process that fails says why."""
LONGEST = 500
"""Characters of that."""
GONE = "another process of the run ended before it was done"


@dataclass(frozen=True, slots=True)
class World:
    """One process among those of a run.

    Examples:
        >>> World().share(3), World(rank=1, size=2).share(3)
        (range(0, 3), range(1, 3))
    """

    rank: int = 0
    size: int = 1
    store: dist.Store | None = None
    """Where one that fails says why."""
    over_gpus: bool = False
    """Whether gradients are summed from GPU to GPU; on the host otherwise."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of so many things are this process's: a contiguous part, of which none is larger by more than one."""
        return _share(self.rank, self.size, count)

    def rows(self, rollout: Rollout) -> range:
        """Which responses are this process's: whole groups."""
        return self.rows_of_each(rollout)[self.rank]

    def rows_of_each(self, rollout: Rollout) -> tuple[range, ...]:
        """Which responses are each process's, by rank."""
        rows = len(rollout.mask)
        if self.size == 1:
            return (range(rows),)
        prompts = _num_prompts(rollout)
        shares, each = [_share(r, self.size, prompts) for r in range(self.size)], rows // prompts
        return tuple(range(share.start * each, share.stop * each) for share in shares)

    def gather(self, rows: Tensor, num_groups: int) -> Tensor:
        """The rows of all processes in order, of which each has those of its share of the groups; to the last bit."""
        if self.size == 1:
            return rows
        shares = [len(_share(rank, self.size, num_groups)) for rank in range(self.size)]
        each = len(rows) // shares[self.rank]
        plain = rows.detach().cpu()
        plain = plain.to(torch.uint8) if rows.dtype is torch.bool else plain
        padded = plain.new_zeros(max(shares) * each, *rows.shape[1:])
        padded[: len(rows)] = plain
        parts = [torch.empty_like(padded) for _ in shares]
        with self._together():
            dist.all_gather(parts, padded)
        whole = torch.cat([part[: n * each] for part, n in zip(parts, shares, strict=True)])
        return whole.to(device=rows.device, dtype=rows.dtype)

    def gather_responses(self, rows: Tensor, rollout: Rollout) -> Tensor:
        """The same, of a rollout's responses."""
        return rows if self.size == 1 else self.gather(rows, _num_prompts(rollout))

    def exchange(self, value: Any) -> list[Any]:
        """What every process says, by rank: JSON."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        with self._together():
            sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = max(int(size) for size in sizes)
            padded = torch.tensor([*data, *bytes(longest - len(data))], dtype=torch.uint8)
            parts = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(parts, padded)
        pairs = zip(parts, sizes, strict=True)
        return [json.loads(bytes(part[: int(size)].tolist())) for part, size in pairs]

    def told(self, value: Any = None) -> Any:
        """What the first process says: JSON. What the others give is not looked at."""
        if self.size == 1:
            return value
        data = json.dumps(value).encode() if self.is_first else b""
        with self._together():
            size = torch.tensor([len(data)])
            dist.broadcast(size, 0)
            content = torch.zeros(int(size), dtype=torch.uint8)
            if self.is_first:
                content = torch.tensor([*data], dtype=torch.uint8)
            dist.broadcast(content, 0)
        return value if self.is_first else json.loads(bytes(content.tolist()))

    def meet(self) -> None:
        """Waits until every process has come here."""
        if self.size > 1:
            with self._together():
                dist.all_reduce(torch.zeros(1))

    def agree(self, what: str, values: Mapping[str, str]) -> None:
        """That every process has the same values.

        Raises:
            ResourceError: one has others; they are named.
        """
        for rank, theirs in enumerate(found := self.exchange(dict(values))):
            if theirs != found[0]:
                names = sorted({*theirs, *found[0]})
                other = [name for name in names if theirs.get(name) != found[0].get(name)]
                raise ResourceError(
                    f"the processes of the run do not agree on {what}",
                    expected="the same on each, to the last bit",
                    got=f"another {', '.join(other)} on process {rank} than on process 0",
                    do="run them on machines alike, with the same files, versions and threads",
                )

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Gives each parameter the sum of its gradients over all processes, made in float32.

        One that has none on any process is left without.
        """
        if self.size == 1:
            return
        with self._together():
            # On the host, and first: a process that is gone is noticed here, which between GPUs takes its time.
            has = torch.tensor([float(p.grad is not None) for p in parameters])
            dist.all_reduce(has)
            given = [p for p, number in zip(parameters, has.tolist(), strict=True) if number]
            for some in _buckets(given):
                self._sum(some)

    def _sum(self, parameters: Sequence[Tensor]) -> None:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([part.float().flatten() for part in parts])
        bucket = flat if self.over_gpus else flat.cpu()
        dist.all_reduce(bucket)
        sums = bucket.to(flat.device).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, sums, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    @contextmanager
    def attended(self) -> Generator[None]:
        """What fails inside is told to the others, which wait for this process no longer."""
        try:
            yield
        except BaseException as error:
            if (
                isinstance(error, RuntimeError) and self.size > 1 and _is_of_a_collective(error)
            ):  # of a pass over divided weights
                lost = self._lost(error)
                self.leave(lost)
                raise lost from error
            self.leave(error)
            raise
        self.leave()

    def leave(self, error: BaseException | None = None) -> None:
        """Ends what this process has with the others, and says why; to leave twice is no fault."""
        if self.store is None or not dist.is_initialized():
            return
        if error is not None and not (isinstance(error, ResourceError) and error.what == GONE):
            why = f"process {self.rank} of {self.size}: {type(error).__name__}: {error}"
            with suppress(RuntimeError):
                self.store.compare_set(LEFT, "", why[:LONGEST])
        with suppress(RuntimeError):
            dist.destroy_process_group()

    @contextmanager
    def _together(self) -> Generator[None]:
        """What the processes do at once: it fails where one of them is gone."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> ResourceError:
        return ResourceError(
            GONE,
            expected=f"all {self.size} processes, until the last step",
            got=self._reason() or f"no word from it: {_first_sentence(error)}",
            do="look at what that process said, then go on with --resume and as many processes",
        )

    def _reason(self) -> str:
        """What a process that failed has left; empty where it left nothing."""
        with suppress(RuntimeError):
            if self.store is not None and self.store.check([LEFT]):
                why = self.store.get(LEFT).decode("utf-8", "replace")
                return "".join(c if c.isprintable() else repr(c)[1:-1] for c in why[:LONGEST])
        return ""


ALONE = World()
"""A run of one process, which costs nothing and asks nothing of torch.distributed."""


def launched(device: str) -> World:
    """The processes that a launcher began, as it says in the environment; one alone where it says nothing.

    Args:
        device: `train.device`.

    Raises:
        ConfigError: they were begun for what kleash does not do.
        ResourceError: they don't find each other.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return ALONE
    _check_launch(device)
    over_gpus = False
    if device != "cpu" and torch.cuda.is_available():  # pragma: no cover - needs a GPU
        number = torch.cuda.device_count()
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % number)
        over_gpus = _number("LOCAL_WORLD_SIZE", size) <= number
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        store = dist.PrefixStore("kleash", store)
        backend = "cpu:gloo,cuda:nccl" if over_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"the {size} processes of the run don't find each other",
            expected="accelerate launch or torchrun, which tell each where the first one is",
            got=_first_sentence(error),
        ) from error
    return World(rank, size, store, over_gpus)


def _check_launch(device: str) -> None:
    """Refuses a launch for what isn't done."""
    for name, do in REFUSED.items():
        if _is_set(name) and (_is_set(FSDP) or not name.startswith("FSDP")):
            raise ConfigError(
                "the processes were launched for what isn't done",
                expected="data parallelism, and weights divided by PyTorch's FSDP2",
                got=f"{name}={os.environ[name]}",
                do=do,
            )
    if _is_set(FSDP) and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(
            "weights are not divided among processes by FSDP 1",
            expected="FSDP_VERSION=2",
            got=os.environ.get("FSDP_VERSION", "none"),
            do="launch with --fsdp_version 2, or without --use_fsdp and with train.shard = true",
        )
    # transformers would read a model's files on the first process alone, and leave the others' weights empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if device.startswith("cuda:"):
        raise ConfigError(
            "several processes can't all be on one named device",
            expected='train.device = "auto", "cuda" or "cpu": each process takes the GPU of its number',
            got=device,
        )


def asks_to_shard() -> bool:
    """Whether accelerate's launcher was asked to divide weights among the processes."""
    return _is_set(FSDP)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def _number(name: str, default: int) -> int:
    """What a launcher says in the environment."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 0 <= int(text) <= 2**20):
        raise ConfigError(f"{name} is no number of processes", got=shown(text))
    return int(text)


def _is_of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _first_sentence(error: Exception) -> str:
    """What a library says went wrong, without the place in its source."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).partition("\n")[0]).partition(". ")[0][:200]


def _share(rank: int, size: int, count: int) -> range:
    return range(rank * count // size, (rank + 1) * count // size)


def _num_prompts(rollout: Rollout) -> int:
    return int(rollout.prompt_index[-1]) + 1


def _buckets(parameters: Sequence[Tensor]) -> Generator[list[Tensor]]:
    """Parameters in their order, so many at a time as fit into a bucket, and one at least."""
    some, held = list[Tensor](), 0
    for parameter in parameters:
        if some and held + parameter.numel() > BUCKET:
            yield some
            some, held = [], 0
        some.append(parameter)
        held += parameter.numel()
    if some:
        yield some
