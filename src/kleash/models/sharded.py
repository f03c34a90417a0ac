"""A model whose weights are divided among processes: each holds a part of every weight, and gathers what a pass needs.

PyTorch's FSDP2 does it layer by layer, with hooks at a model's passes forward and back: every process has to make as
many of both. The head is read apart from the model, and is gathered where it is read. Gradients are sums.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard

from kleash.errors import ConfigError

BY_ROWS = [Shard(0)]
"""How every weight is divided: by its first axis, as `torch.chunk` does."""


def divide(name: str, model: Any, device: str) -> None:
    """Divides a model's weights among all processes, in place, and puts its own part of each on the device.

    Weights that are tied stay so. To divide a model again, as an adapter's base may be met twice, is no fault.

    Args:
        name: of the model.
        model: a transformers causal language model, the same on every process; it may be on the host.
        device: where its parts are to be.

    Raises:
        ConfigError: its architecture can't be divided.
    """
    base: Any = model.base_model
    if isinstance(base, FSDPModule):
        return
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    inner = {id(p): (module, key) for module in base.modules() for key, p in _own(module)}
    outer = [(m, key, p) for m in _outside(model) for key, p in _own(m)]
    for layer in _layers(name, model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(base, mesh=mesh, reshard_after_forward=True)
    for module in base.modules():
        if isinstance(module, FSDPModule):  # gradients are sums; gloo divides none
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for module, key, parameter in outer:
        tied = inner.get(id(parameter))
        given = _divided(parameter, mesh, device) if tied is None else _get(*tied)
        _set(module, key, given)


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [*module.named_parameters(recurse=False)]


def _get(module: Any, key: str) -> Tensor:
    return module._parameters[key]


def _set(module: Any, key: str, tensor: Tensor) -> None:
    module._parameters[key] = tensor  # by the module's own way it would have to be a parameter


def _outside(model: Any) -> list[nn.Module]:
    """What of a language model is not of its base: the head."""
    inside = {id(module) for module in model.base_model.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def _layers(name: str, model: Any) -> list[nn.Module]:
    """What transformers says must stay on one device: the layers.

    Raises:
        ConfigError: it says nothing, or a weight is in two of them.
    """
    kinds: set[str] = {*(getattr(model, "_no_split_modules", None) or ())}
    layers = [m for m in model.base_model.modules() if type(m).__name__ in kinds]
    inside = [id(p) for layer in layers for p in layer.parameters()]
    rest = [id(p) for p in model.base_model.parameters()]
    if not layers or len({*inside}) < len(inside) or len({*rest}) < len({*inside}):
        raise ConfigError(
            f"the weights of {name} can't be divided among processes",
            expected="an architecture of layers with weights of their own, as Llama, Qwen, Mistral and GPT-2 are",
            got=f"{type(model).__name__}, of {len(layers)} such layers",
            do="leave train.shard out: every process then holds the whole model",
        )
    return layers


def _divided(parameter: nn.Parameter, mesh: DeviceMesh, device: str) -> nn.Parameter:
    """This process's part of a weight that no hook gathers."""
    own = cut(parameter.detach()).to(device, copy=True)
    shape, stride = parameter.shape, parameter.stride()
    part = DTensor.from_local(own, mesh, BY_ROWS, run_check=False, shape=shape, stride=stride)
    return nn.Parameter(part, requires_grad=parameter.requires_grad)


def cut(tensor: Tensor) -> Tensor:
    """This process's part of a whole weight; a view of it."""
    parts = tensor.chunk(dist.get_world_size())
    rank = dist.get_rank()
    return parts[rank] if rank < len(parts) else tensor[:0]


@torch.no_grad()
def part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the memory that it has it in: all, where it isn't divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from every process, with the way back to each part; itself, where it isn't divided."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial()])


@torch.no_grad()
def put(tensor: Tensor, value: Tensor) -> None:
    """Gives a tensor the values of a whole one, of which each process takes its part."""
    own = part(tensor)
    own.copy_(cut(value) if isinstance(tensor, DTensor) else value)


@contextmanager
@torch.no_grad()
def held_whole(model: Any) -> Generator[None]:
    """Within it every process has all of a model's weights, as they are now, and may make as many passes as it likes.

    No gradients flow. What is not divided stays as it is.
    """
    base: Any = getattr(model, "base_model", None)
    if not isinstance(base, FSDPModule):
        yield
        return
    units = [m for m in cast(nn.Module, base).modules() if isinstance(m, FSDPModule)]
    outer = [(m, key, p) for m in _outside(model) for key, p in _own(m) if isinstance(p, DTensor)]
    inner = cast(nn.Module, base).modules()
    divided = {id(p): (m, key) for m in inner for key, p in _own(m)}
    base.set_reshard_after_forward(False)
    try:
        for unit in units:
            unit.unshard()
        for module, key, parameter in outer:
            tied = divided.get(id(parameter))
            _set(module, key, whole(parameter) if tied is None else _get(*tied))
        yield
    finally:
        for module, key, parameter in outer:
            _set(module, key, parameter)
        for unit in units:
            unit.reshard()
        base.set_reshard_after_forward(True)


@dataclass(frozen=True, slots=True)
class Whole(Mapping[str, Tensor]):
    """Tensors by name, each of which is gathered when it is asked for: by every process, in the same order."""

    state: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """The whole of one."""
        with torch.no_grad():
            return whole(self.state[name])

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self.state)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.state)


def gathered(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors as whole ones, gathered one at a time; themselves, where none is divided."""
    return Whole(state) if any(isinstance(x, DTensor) for x in state.values()) else state


@torch.no_grad()
def collected(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the host of the first process, gathered one at a time; the others, who must ask too, get none.

    What has several names is gathered once.
    """
    found: dict[str, Tensor] = {}
    once: dict[int, Tensor] = {}
    for name, tensor in state.items():
        if id(tensor) not in once:
            full = whole(tensor.detach())
            once[id(tensor)] = full.cpu() if _is_first() else full.new_zeros(0)
        if _is_first():
            found[name] = once[id(tensor)]
    return found


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


@dataclass(frozen=True, slots=True)
class Division:
    """Which of the trained weights are divided.

    The optimiser has this process's parts, as plain tensors in the same memory: what is done to every number by itself
    (a step, a copy, a way between two) needs nothing of the other processes.
    """

    sources: tuple[Tensor, ...]
    """Of each trained weight, in their order, the parameter that it is a part of; itself, where it is held whole."""

    @property
    def trained(self) -> list[Tensor]:
        """What an optimiser moves."""
        return [_plain(source) for source in self.sources]

    def take_gradients(self, trained: Sequence[Tensor]) -> None:
        """Gives the parts their gradients, which a way back left with what they are parts of."""
        for own, source in zip(trained, self.sources, strict=True):
            if isinstance(source, DTensor):
                own.grad = None if source.grad is None else part(source.grad)
                source.grad = None

    def forget_gradients(self) -> None:
        """Of a way back that no step was made from."""
        for source in self.sources:
            source.grad = None

    def held_whole(self, trained: Sequence[Tensor]) -> list[Tensor]:
        """Those that every process has all of."""
        pairs = zip(trained, self.sources, strict=True)
        return [own for own, source in pairs if not isinstance(source, DTensor)]

    def clip(self, trained: Sequence[Tensor], max_norm: float) -> float:
        """Scales the gradient, the parts of all processes together, down to a norm; returns that before."""
        grads: tuple[list[Tensor], list[Tensor]] = [], []
        for own, source in zip(trained, self.sources, strict=True):
            if own.grad is not None:
                grads[isinstance(source, DTensor)].append(own.grad)
        same, parts = (torch.nn.utils.get_total_norm(each).double().cpu() ** 2 for each in grads)
        dist.all_reduce(parts)
        norm = (same + parts).sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
        return float(norm)

    def joined(self, index: int, own: Tensor) -> Tensor:
        """What is of a trained weight's own shape on each process (a moment, a copy) as one divided tensor."""
        source = self.sources[index]
        if not isinstance(source, DTensor) or own.shape != part(source).shape:
            return own
        shape, stride = source.shape, source.stride()
        mesh = source.device_mesh
        return DTensor.from_local(own, mesh, BY_ROWS, run_check=False, shape=shape, stride=stride)

    def own(self, index: int, value: Tensor) -> Tensor:
        """This process's part of what is of a trained weight's whole shape; a number stays as it is."""
        source = self.sources[index]
        return cut(value) if isinstance(source, DTensor) and value.shape == source.shape else value

    def everywhere(self, is_so: bool) -> bool:
        """Whether it is so on every process."""
        otherwise = torch.tensor([float(not is_so)])
        dist.all_reduce(otherwise)
        return not bool(otherwise)


def _plain(source: Tensor) -> Tensor:
    if not isinstance(source, DTensor):
        return source
    return nn.Parameter(part(source), requires_grad=source.requires_grad)
