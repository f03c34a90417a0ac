"""Policy, reference and optimiser of a TRL trainer, as the meter and the guard see their own."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from kleash.errors import ConfigError
from kleash.models.adapters import POLICY, Adapter
from kleash.models.checks import can_unpad, check_head
from kleash.models.hub import freeze
from kleash.models.loading import locate
from kleash.models.policy import LanguageModel
from kleash.train.learner import Learner


@dataclass(frozen=True, slots=True)
class Models:
    """A trainer's policy, and what it is held against."""

    policy: LanguageModel
    reference: LanguageModel


def models_of(trainer: Any) -> Models:
    """The policy and the reference of TRL's own penalty: its `ref_model`, or the policy without its adapter.

    Where TRL has neither (β = 0, or SFT) the reference is a frozen copy of the policy as it stands.

    Raises:
        ConfigError: an adapter is on the output layer, which the exact KL is read from.
        InputError: the architecture's logits are not its head's.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = _adapter_of(model)
    inner = model if adapter is None else model.get_base_model()
    tokenizer = trainer.processing_class
    name = str(getattr(inner.config, "_name_or_path", "") or type(inner).__name__)
    policy = LanguageModel(name, inner, tokenizer, adapter)
    _check_output_layer(inner)
    check_head(policy)
    policy = replace(policy, unpads=can_unpad(policy))
    reference = getattr(trainer, "ref_model", None)
    if reference is not None:
        held = LanguageModel(name, trainer.accelerator.unwrap_model(reference), tokenizer)
        held = replace(held, unpads=policy.unpads and can_unpad(held))
    elif adapter is not None:
        held = replace(
            policy, name=f"{name}, its adapter off", adapter=replace(adapter, name=_first(model))
        )
    else:
        held = freeze(policy)
    return Models(policy, held)


def _adapter_of(model: Any) -> Adapter | None:
    """What a peft model adds; None of a plain one.

    Raises:
        ConfigError: another adapter is active than the one that is trained by default.
        InputError: its base is no model that can be found.
    """
    if not hasattr(model, "peft_config"):
        return None
    if model.active_adapters != [POLICY]:
        raise ConfigError(
            "another adapter speaks for the policy",
            expected=f"one active adapter, {POLICY!r}",
            got=", ".join(model.active_adapters),
        )
    adapter = Adapter(model, POLICY)
    locate(adapter.base)  # now, and not when it is to be named in what is saved
    return adapter


def _first(model: Any) -> str | None:
    """TRL's name for a copy of the adapter as it was, where one was there before; else there is none."""
    return "ref" if "ref" in model.peft_config else None


def learner_of(trainer: Any, models: Models) -> Learner:
    """What `kleash train` would call its learner. Only of a trainer that has begun: before it has no optimiser.

    Raises:
        ConfigError: nothing is trained.
    """
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    trained = [weight for weight in models.policy.model.parameters() if weight.requires_grad]
    if not trained:
        raise ConfigError("no weight is trained", expected="at least one", got="all are frozen")
    return Learner(models.policy, models.reference, models.reference, None, optimizer, trained)


@contextmanager
def evaluating(learner: Learner) -> Generator[None]:
    """Without dropout, and after it as it was: TRL goes by the policy's mode to tell training from evaluation."""
    model = learner.policy.model
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, slots=True)
class Held:
    """Weights and moments as they were. The learning rate is not among them: it is the schedule's."""

    weights: list[Tensor]
    moments: dict[Tensor, dict[str, Any]]

    def copy(self) -> "Held":
        """Another of the same: what is given back is then moved on."""
        return Held(
            [weight.clone() for weight in self.weights],
            {weight: _copied(state) for weight, state in self.moments.items()},
        )


def hold(learner: Learner) -> Held:
    """A copy of all that an optimiser step changes, but for the learning rate."""
    moments = {weight: _copied(state) for weight, state in learner.optimizer.state.items()}
    return Held([weight.detach().clone() for weight in learner.trained], moments)


def give_back(learner: Learner, held: Held) -> None:
    """Weights and moments as they were, bit for bit. What is held is used up by it.

    `load_state_dict` is not called: it would turn the schedule's learning rate back too, and a scheduler that goes on
    from the last one would never find its way again. A step that was refused is a step of the schedule all the same.
    """
    learner.assign(held.weights)
    learner.optimizer.state.clear()
    learner.optimizer.state.update(held.moments)
    learner.settled = True


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


def _check_output_layer(model: Any) -> None:
    head = model.get_output_embeddings()
    if hasattr(head, "base_layer") or hasattr(head, "original_module"):
        raise ConfigError(
            "the output layer carries an adapter",
            expected="adapters on other layers: the exact KL is read from the output layer's own weights",
            got=type(head).__name__,
            do="take lm_head out of target_modules and modules_to_save",
        )
