"""Everything that training changes, and the frozen things it is held against."""

import copy
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from kleash.errors import ConfigError
from kleash.models.blend import Blend
from kleash.models.chat import Chat, check_template
from kleash.models.config import ModelConfig
from kleash.models.hub import freeze, load_language_model, load_reference
from kleash.models.policy import LanguageModel
from kleash.models.recompute import enable_recompute
from kleash.models.sharded import Division, divide, part
from kleash.models.value_head import ValueHead
from kleash.train.optimizer_config import OptimizerConfig


@dataclass(slots=True)
class Learner:
    """The policy with its value head and optimiser, and the reference it is measured from."""

    policy: LanguageModel
    reference: LanguageModel | Blend
    """What the penalty holds the policy to."""
    origin: LanguageModel | Blend
    """The reference as the run began: the drift from it is measured whatever becomes of `reference`."""
    value_head: ValueHead | None
    """None where the algorithm has no use for one."""
    optimizer: torch.optim.Optimizer
    trained: list[Tensor] = field(repr=False)
    """Every parameter that the optimiser moves; this process's part of it, where weights are divided."""
    division: Division | None = None
    """What those are parts of; None: every process has all weights."""
    spare: "Snapshot | None" = field(default=None, repr=False)
    """A snapshot that nobody goes back to any more: memory for the next, which is slow to be had anew."""
    settled: bool = True
    """Whether weights, optimiser and reference are those between two steps: not so while an update is on its way."""

    @torch.no_grad()
    def refresh(self, share: float, step: int) -> None:
        """Brings the reference nearer to the policy by a share of the way, weight by weight; at 1 it is the policy."""
        assert isinstance(self.reference, LanguageModel), "several references stay as they are"
        self.settled = False
        moved = self.policy.own_weights
        for name, held in self.reference.own_weights.items():
            own, other = part(held), part(moved[name])
            own.lerp_(other, share) if share < 1.0 else own.copy_(other)
        name = f"{self.origin.name}, brought nearer by {share:g} after step {step}"
        self.reference = replace(self.reference, name=name)

    def snapshot(self) -> "Snapshot":
        """A copy of all that an update changes, taken before one; into the memory of `spare`, where there is one."""
        self.settled = False
        spare, self.spare = self.spare, None
        own, state = list[Tensor](), dict[int, dict[str, Any]]()
        if spare is not None:
            own, state = spare.parameters, spare.optimizer["state"]
        now = self.optimizer.state_dict()
        moments = {
            index: {name: _copied(x, state.get(index, {}).get(name)) for name, x in each.items()}
            for index, each in now["state"].items()
        }
        return Snapshot(
            [_copied(p, old) for p, old in zip_longest(self.trained, own)],
            {**copy.deepcopy({**now, "state": {}}), "state": moments},
        )

    def restore(self, snapshot: "Snapshot") -> None:
        """Undoes every change since the snapshot, bit for bit."""
        self.assign(snapshot.parameters)
        self.optimizer.load_state_dict(snapshot.optimizer)
        self.settled = True

    def is_finite(self) -> bool:
        """Whether every trained weight, and all that the optimiser remembers, is a finite number."""
        remembered = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        # A sum that is finite has finite terms, and reads them once, where to ask each takes four times as long. One
        # that is not may have overflowed.
        finite = all(
            bool(x.sum().isfinite()) or bool(x.isfinite().all())
            for x in (*self.trained, *remembered)
        )
        return finite if self.division is None else self.division.everywhere(finite)

    def joined(self, index: int, own: Tensor) -> Tensor:
        """What this process has of a trained weight, or of something of its shape, as a part of the whole."""
        return own if self.division is None else self.division.joined(index, own)

    def own(self, index: int, value: Tensor) -> Tensor:
        """What this process has of a whole tensor of a trained weight's shape, where that weight is."""
        part = value if self.division is None else self.division.own(index, value).clone()
        return part.to(self.policy.device) if part.ndim else part

    def forget_gradients(self) -> None:
        """So that the next way back begins anew."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.division is not None:
            self.division.forget_gradients()

    @torch.no_grad()
    def interpolate(self, start: list[Tensor], end: list[Tensor], fraction: float) -> None:
        """Gives the trained weights the values so far on the way from start to end; at 1 those of the end."""
        for parameter, first, last in zip(self.trained, start, end, strict=True):
            parameter.copy_(last if fraction == 1.0 else torch.lerp(first, last, fraction))

    @torch.no_grad()
    def assign(self, parameters: list[Tensor]) -> None:
        """Gives the trained weights other values."""
        self.settled = False
        for parameter, value in zip(self.trained, parameters, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def _copied(value: Any, old: Any) -> Any:
    """A copy of a tensor, in the memory of an old one where that is like it; of what is none, as it is."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(old, Tensor) and (old.shape, old.dtype) == (value.shape, value.dtype):
        return old.copy_(value)
    return value.detach().clone()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights and optimiser state before an update."""

    parameters: list[Tensor]
    optimizer: dict[str, Any]


def build_learner(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    device: str,
    *,
    with_values: bool = True,
    shard: bool = False,
) -> Learner:
    """Loads policy and reference, adds the value head where one is wanted, and sets up AdamW.

    Args:
        model: which.
        optimizer: of AdamW.
        device: where all of it is to be.
        with_values: whether there is a value head.
        shard: whether the weights are divided among all processes, each of which loads them on the host first.

    Raises:
        ConfigError: nothing in the policy can be trained, or what is to be divided can't be.
    """
    place = "cpu" if shard else device
    policy = _as_configured(
        load_language_model(model.policy, place, model.lora, model.dtype), model
    )
    reference = origin = _load(policy, model.reference)
    if model.refresh_every is not None:
        reference, origin = _to_be_refreshed(policy, reference, model.refresh_share)
    value_head = ValueHead(policy.hidden_size).to(device) if with_values else None
    for side in (policy, reference, origin) if shard else ():
        assert isinstance(side, LanguageModel), "several references are not divided"
        divide(side.name, side.model, device)
    trained = [*trainable(policy), *(value_head.parameters() if value_head else ())]
    division = Division(tuple(trained)) if shard else None
    trained = trained if division is None else division.trained
    adam = torch.optim.AdamW(
        trained,
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    return Learner(policy, reference, origin, value_head, adam, trained=trained, division=division)


def _as_configured(policy: LanguageModel, model: ModelConfig) -> LanguageModel:
    """The policy, trained and asked as the configuration says."""
    if model.gradient_checkpointing:
        enable_recompute(policy.name, policy.model)
        policy = replace(policy, recomputes=True)
    if not model.chat:
        return policy
    check_template(policy.name, policy.tokenizer, "model.chat = true")
    return replace(policy, chat=Chat(model.system))


def _load(policy: LanguageModel, name: str | dict[str, float] | None) -> LanguageModel | Blend:
    if isinstance(name, dict):
        return Blend.of([(load_reference(policy, one), weight) for one, weight in name.items()])
    return load_reference(policy, name)


def _to_be_refreshed(
    policy: LanguageModel, reference: LanguageModel | Blend, share: float
) -> tuple[LanguageModel, LanguageModel]:
    """A reference that can be brought nearer to the policy, and the same one, which stays.

    Raises:
        ConfigError: it can't be.
    """
    if isinstance(reference, Blend):
        raise ConfigError(
            "several references can't be brought nearer to the policy",
            expected="one model.reference where model.refresh_every is set",
            got=reference.name,
        )
    if policy.adapter is None:
        check_alike(policy, reference)
        return reference, freeze(reference)
    if share < 1.0:
        raise ConfigError(
            "the mean of two adapters' matrices is not the mean of what they add",
            expected="model.refresh_share = 1 where an adapter is trained",
            got=f"{share:g}",
            do="leave model.refresh_share out: the reference then becomes the policy",
        )
    if reference.adapter is None or reference.adapter.peft is not policy.adapter.peft:
        raise ConfigError(
            f"{reference.name} can't become the policy, an adapter of {policy.name}",
            expected="no model.reference where model.refresh_every is set and an adapter is trained",
            got=reference.name,
        )
    # What the policy is now, in matrices of its own, even where they add nothing yet: they will.
    return replace(reference, adapter=policy.adapter.copied()), reference


def check_alike(policy: LanguageModel, reference: LanguageModel) -> None:
    """That the reference has the policy's weights, one by one: it is to be moved towards them.

    Raises:
        ConfigError: it has others.
    """
    own, held = (
        [(name, weight.shape) for name, weight in side.model.named_parameters()]
        for side in (policy, reference)
    )
    if own != held:
        raise ConfigError(
            f"{reference.name} can't be brought nearer to {policy.name}",
            expected="a reference of the policy's own architecture where model.refresh_every is set",
            got="other weights",
            do="leave model.reference or model.refresh_every out",
        )


def trainable(policy: LanguageModel) -> list[Tensor]:
    """The policy's weights that an optimiser may move.

    Raises:
        ConfigError: there is none.
    """
    weights: list[Tensor] = [p for p in policy.model.parameters() if p.requires_grad]
    if not weights:
        raise ConfigError(
            f"no weight of {policy.name} can be trained",
            expected="at least one",
            got="all are frozen",
        )
    return weights


def resolve_device(name: str) -> str:
    """The device that `train.device` means here.

    Raises:
        ConfigError: there is no such device.

    Examples:
        >>> resolve_device("cpu")
        'cpu'
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"no device {name!r} here",
            expected="auto, cpu, or a device that torch finds",
            got=str(error).splitlines()[0],
            do="set train.device = 'auto'",
        ) from error
    return name
