"""Everything that training changes, and the frozen things it is held against."""

import copy
from dataclasses import dataclass, field, replace
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
    """Every parameter that the optimiser moves."""
    settled: bool = True
    """Whether weights, optimiser and reference are those between two steps: not so while an update is on its way."""

    @torch.no_grad()
    def refresh(self, share: float, step: int) -> None:
        """Brings the reference nearer to the policy by a share of the way, weight by weight; at 1 it is the policy."""
        assert isinstance(self.reference, LanguageModel), "several references stay as they are"
        self.settled = False
        moved = self.policy.own_weights
        for name, held in self.reference.own_weights.items():
            held.lerp_(moved[name], share) if share < 1.0 else held.copy_(moved[name])
        name = f"{self.origin.name}, brought nearer by {share:g} after step {step}"
        self.reference = replace(self.reference, name=name)

    def snapshot(self) -> "Snapshot":
        """A copy of all that an update changes, taken before one."""
        self.settled = False
        return Snapshot(
            [p.detach().clone() for p in self.trained],
            copy.deepcopy(self.optimizer.state_dict()),
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
        return all(bool(x.isfinite().all()) for x in (*self.trained, *remembered))

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Weights and optimiser state before an update."""

    parameters: list[Tensor]
    optimizer: dict[str, Any]


def build_learner(
    model: ModelConfig, optimizer: OptimizerConfig, device: str, *, with_values: bool = True
) -> Learner:
    """Loads policy and reference, adds the value head where one is wanted, and sets up AdamW.

    Raises:
        ConfigError: nothing in the policy can be trained.
    """
    policy = _as_configured(
        load_language_model(model.policy, device, model.lora, model.dtype), model
    )
    reference = origin = _load(policy, model.reference)
    if model.refresh_every is not None:
        reference, origin = _to_be_refreshed(policy, reference, model.refresh_share)
    value_head = ValueHead(policy.hidden_size).to(device) if with_values else None
    trained = [*trainable(policy), *(value_head.parameters() if value_head else ())]
    adam = torch.optim.AdamW(
        trained,
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    return Learner(policy, reference, origin, value_head, adam, trained)


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
