"""What is to be planned: a model, the machines, how it lies on them, and how much a step samples and learns."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kleash.errors import InputError
from kleash.lab.cluster.devices import Device
from kleash.lab.cluster.shapes import Shape

Reference = Literal["sharded", "offloaded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How policy and reference lie on the GPUs. What is not split by tensor or pipeline is data-parallel."""

    gpus: int
    """All of them, the sampler's too."""
    tensor: int = 1
    """GPUs that share each matrix, and the head's vocabulary."""
    pipeline: int = 1
    """Groups of layers."""
    shard: int = 0
    """Data-parallel replicas that share one copy of weights and optimiser (FSDP); 0: all of them."""
    sampler_gpus: int = 0
    """Set aside for the sampler, which runs a rollout ahead; 0: the trainer's GPUs sample, in turn."""
    sampler_tensor: int = 1
    reference: Reference = "sharded"
    """On the GPUs, or in the host's memory and streamed. With an adapter there is none: it is switched off."""
    checkpointing: bool = True
    """Whether a layer's activations are made again on the way back."""
    host_snapshot: bool = False
    """Whether the guard's way back is in the host's memory."""

    @property
    def trainers(self) -> int:
        """GPUs that learn."""
        return self.gpus - self.sampler_gpus

    @property
    def samplers(self) -> int:
        """GPUs that sample."""
        return self.sampler_gpus or self.gpus

    @property
    def replicas(self) -> int:
        """Data-parallel copies of the trainer."""
        return self.trainers // (self.tensor * self.pipeline)

    @property
    def sharded(self) -> int:
        """Replicas that share a copy."""
        return self.shard or self.replicas

    @property
    def pieces(self) -> int:
        """GPUs over which one copy of the weights lies."""
        return self.sharded * self.tensor * self.pipeline


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A step. Lengths in tokens."""

    prompts: int
    group: int
    prompt_length: float
    response_mean: float
    response_max: int
    rank: int = 0
    """Of the LoRA that is trained; 0: every weight is."""
    epochs: int = 1
    minibatches: int = 1
    micro_tokens: int = 16_384
    """Tokens that go through a replica at a time."""
    share_prompts: bool = False
    """Whether a prompt is computed once for its group in scoring and training; the sampler always does."""
    meter: bool = True
    """Whether the policy is run over its own rollout again: for exact KL it has to be."""
    exact: bool = True
    """Whether the KL is the whole distribution's, in metering and in the penalty; else the sampled token's."""
    guard: bool = True
    """Whether an update is measured before it is kept, can be undone, and is entered in the ledger."""
    drift_limit: bool = False
    """Whether the guard measures the new policy's KL from the reference too (`guard.max_kl`)."""
    chunked: bool = True
    """Whether logits are made a chunk at a time and none is kept."""
    width: int = 2
    """Bytes of a number that is computed with; kept weights, gradients and moments have 4."""
    append: float = 0.016
    """Seconds of a durable entry in the ledger; a step has two."""

    @property
    def responses(self) -> int:
        """B = P·G."""
        return self.prompts * self.group

    @property
    def response_tokens(self) -> float:
        """Tokens that are sampled, and that losses and KL are read at."""
        return self.responses * self.response_mean

    @property
    def tokens(self) -> float:
        """Tokens that go through the layers once in scoring or training."""
        prompts = self.prompts if self.share_prompts else self.responses
        return prompts * self.prompt_length + self.response_tokens

    @cached_property
    def going(self) -> tuple[float, ...]:
        """P(length > i) for i = 0 … max − 1: each token ends a response with one probability h, until the longest.

        The mean of that is Σ_i (1 − h)^i = (1 − (1 − h)^max)/h, which falls in h: h is found by halving.

        Examples:
            >>> half = Workload(prompts=1, group=1, prompt_length=1, response_mean=1.75, response_max=3)
            >>> [round(p, 6) for p in half.going]
            [1.0, 0.5, 0.25]
        """
        low, high, longest = 0.0, 1.0, self.response_max
        for _ in range(200):
            middle = (low + high) / 2
            mean = (1 - (1 - middle) ** longest) / middle
            low, high = (middle, high) if mean > self.response_mean else (low, middle)
        return tuple((1 - high) ** i for i in range(longest))

    @cached_property
    def mean_square(self) -> float:
        """E[length²] = Σ_i (2i + 1) P(length > i)."""
        return sum((2 * i + 1) * share for i, share in enumerate(self.going))

    @cached_property
    def squares(self) -> float:
        """Σ of squared lengths that causal attention goes over, of a pass over the rollout.

        A response from p to p + t tokens is (p + t)² − p²; a prompt is p², once for its group or once for each.
        """
        prompts = self.prompts if self.share_prompts else self.responses
        grown = 2 * self.prompt_length * self.response_mean + self.mean_square
        return prompts * self.prompt_length**2 + self.responses * grown


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """All that a plan is made of.

    Raises:
        InputError: the layout does not come out even, or a size makes no sense.
    """

    shape: Shape
    device: Device
    layout: Layout
    work: Workload
    reward: Shape | None = None
    """Of the reward model; None: the reward costs nothing."""

    def __post_init__(self) -> None:
        _check_work(self.work)
        _check_layout(self.shape, self.device, self.layout)

    @property
    def trained(self) -> int:
        """Weights that the optimiser moves."""
        rank = self.work.rank
        return self.shape.adapter(rank) if rank else self.shape.parameters


def _check_work(work: Workload) -> None:
    least = {
        "prompts": work.prompts,
        "group": work.group,
        "epochs": work.epochs,
        "minibatches": work.minibatches,
        "micro_tokens": work.micro_tokens,
        "prompt_length": work.prompt_length,
        "response_mean": work.response_mean,
    }
    for name, value in least.items():
        if not 1 <= value < float("inf"):
            raise InputError(f"{name} is wrong", expected="a number of at least 1", got=f"{value}")
    if not work.response_mean <= work.response_max <= 2**20:
        raise InputError(
            "the longest response is wrong",
            expected=f"at least the mean length {work.response_mean:g}, at most {2**20:,}",
            got=f"{work.response_max}",
        )
    if work.exact and not work.meter:
        raise InputError(
            "exact KL needs the policy's whole distribution at each token",
            expected="the policy run over its own rollout (meter)",
            got="exact without it",
        )
    if work.rank < 0:
        raise InputError("the LoRA's rank is wrong", expected="0 or more", got=f"{work.rank}")


def _check_layout(shape: Shape, device: Device, layout: Layout) -> None:
    sizes = (layout.gpus, layout.tensor, layout.pipeline, layout.sampler_tensor)
    if min(*sizes, layout.trainers) < 1 or min(layout.sampler_gpus, layout.shard) < 0:
        raise InputError(
            "the layout is wrong",
            expected="at least one GPU for each part",
            got=f"{layout.gpus} GPUs, {layout.sampler_gpus} of them the sampler's, tensor {layout.tensor}, "
            f"pipeline {layout.pipeline}, sampler tensor {layout.sampler_tensor}",
        )
    each = layout.tensor * layout.pipeline
    _even("the trainer's GPUs", layout.trainers, "tensor × pipeline", each)
    _even("data-parallel replicas", layout.replicas, "shard", layout.sharded)
    _even("the sampler's GPUs", layout.samplers, "its tensor size", layout.sampler_tensor)
    _even("layers", shape.layers, "pipeline", layout.pipeline)
    for size in (layout.tensor, layout.sampler_tensor):
        _even("query heads", shape.heads, "tensor", size)
        if size > device.node:
            raise InputError(
                "a matrix is split beyond one node",
                expected=f"tensor at most {device.node}, the GPUs that are linked",
                got=f"{size}",
                do="split by pipeline or shard instead",
            )


def _even(what: str, count: int, by: str, size: int) -> None:
    if count % size:
        raise InputError(
            f"{what} do not come out even", expected=f"a multiple of {by} = {size}", got=f"{count}"
        )
