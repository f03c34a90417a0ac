"""LoRA: a policy that is a base model and a small difference, and references that are the same base with another one.

One copy of the base is in memory. An `Adapter` says which of its differences makes a language model: the policy's, that
of a reference which is one itself (as after supervised fine-tuning), or none. Between two calls the base is as the
policy has it; whoever else wants to speak switches it, and back.
"""

import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import peft
from safetensors.torch import load_file
from torch import Tensor, nn

from kleash.errors import ConfigError, InputError
from kleash.models.config import LoraConfig
from kleash.models.sharded import whole

POLICY = "default"
"""peft's name for an adapter that is saved without a directory of its own."""
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_OURS = re.compile(r"\.(lora_[AB])\.([\w-]+)\.weight$")
"""A matrix of an adapter, and the adapter's name; in a file there is no name."""
_WRAPPED = "base_model.model."


@dataclass(frozen=True, slots=True)
class Adapter:
    """One of the differences that a base model has."""

    peft: Any
    """The base with all of them, as peft wraps it."""
    name: str | None
    """Which; None: no difference, the base itself."""

    @property
    def base(self) -> str:
        """The name of the model that it belongs to."""
        return str(self.peft.peft_config[POLICY].base_model_name_or_path)

    @property
    def own_weights(self) -> dict[str, Tensor]:
        """Its own, by names that all adapters of the base share."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.peft.named_parameters():
            match = _OURS.search(name)
            if match is not None and match[2] == self.name:
                found[_plain(name)] = parameter
        return found

    @property
    def adds_nothing(self) -> bool:
        """Whether the model is the base: no adapter, or one whose every B is 0."""
        return all(
            not whole(x.detach()).any() for name, x in self.own_weights.items() if "lora_B" in name
        )

    def state(self) -> dict[str, Tensor]:
        """What the model is computed from, by the names of the plain base; an adapter that adds nothing is none."""
        state = {
            _plain(name): tensor
            for name, tensor in self.peft.state_dict(keep_vars=True).items()
            if _OURS.search(name) is None
        }
        return state if self.adds_nothing else state | self.own_weights

    @property
    def all_matrices(self) -> dict[str, Tensor]:
        """Those of every adapter of the base, by peft's own names."""
        named = self.peft.state_dict(keep_vars=True).items()
        return {name: tensor for name, tensor in named if _OURS.search(name) is not None}

    @contextmanager
    def speaking(self) -> Generator[None]:
        """The base as this adapter has it; as the policy has it, afterwards."""
        tuner = self.peft.base_model
        if self.name == POLICY:
            yield
            return
        awake = [p for p in self.peft.parameters() if p.requires_grad]
        try:
            if self.name is None:
                tuner.disable_adapter_layers()
            else:
                tuner.set_adapter(self.name, inference_mode=True)
            yield
        finally:
            if self.name is None:
                tuner.enable_adapter_layers()
            tuner.set_adapter(POLICY)
            for parameter in awake:
                parameter.requires_grad_(True)

    def frozen(self) -> "Adapter":
        """This difference as it is now, which training doesn't reach: none, where it adds nothing."""
        return Adapter(self.peft, None) if self.adds_nothing else self.copied()

    def copied(self) -> "Adapter":
        """A frozen difference with the same weights, whatever they are."""
        name = f"reference_{len(self.peft.peft_config)}"
        with _quietly():
            self.peft.add_adapter(name, self.peft.peft_config[self.name])
        copy = Adapter(self.peft, name)
        for key, weight in copy.own_weights.items():
            weight.requires_grad_(False)
            weight.data.copy_(self.own_weights[key].data)
        self.peft.base_model.set_adapter(POLICY)
        return copy

    def save(self, directory: Path, base: str, weights: dict[str, Tensor] | None = None) -> None:
        """Writes the adapter as peft does: its configuration, and its weights as safetensors.

        Args:
            directory: where.
            base: what its configuration says that it is a difference from.
            weights: `all_matrices`, where these are whole elsewhere; None: as they are.
        """
        config = self.peft.peft_config[self.name]
        before, config.base_model_name_or_path = config.base_model_name_or_path, base
        try:
            self.peft.save_pretrained(
                directory,
                safe_serialization=True,
                state_dict=weights,
                selected_adapters=[self.name],
                save_embedding_layers=False,  # else it looks the base up, on the hub too
            )
        finally:
            config.base_model_name_or_path = before

    def read(self, directory: Path) -> dict[str, Tensor]:
        """The weights of a saved adapter, under the names that `own_weights` gives them."""
        return {_plain(name): x for name, x in load_file(directory / WEIGHTS_FILE).items()}


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter rather than a model."""
    return (directory / CONFIG_FILE).is_file()


def base_of(directory: Path) -> str:
    """The name of the model that a saved adapter is a difference from.

    Raises:
        InputError: it is no LoRA adapter, or of a kind whose difference isn't in its matrices alone.
    """
    with _quietly():
        config = peft.PeftConfig.from_pretrained(str(directory))
    extra = [*(getattr(config, "modules_to_save", None) or ())]
    bias = getattr(config, "bias", "none")
    if not isinstance(config, peft.LoraConfig) or extra or bias != "none" or config.use_dora:
        kind = "LoRA" if isinstance(config, peft.LoraConfig) else str(config.peft_type)
        got = f"{kind} with modules_to_save {extra}" if extra else f"{kind}, bias {bias!r}"
        raise InputError(
            f"the adapter in {directory} is of a kind that can't be trained here",
            expected="LoRA matrices and nothing else: no modules_to_save, bias 'none', no DoRA",
            got=got,
            do="merge it into its base with peft's merge_and_unload, and name the merged model",
        )
    if not config.base_model_name_or_path:
        raise InputError(
            f"the adapter in {directory} does not say which model it belongs to",
            expected=f"base_model_name_or_path in {CONFIG_FILE}",
            got="nothing",
        )
    return str(config.base_model_name_or_path)


def load_adapter(model: nn.Module, directory: Path, base: str) -> Adapter:
    """A base model of that name with a saved adapter, which is to be trained.

    Raises:
        InputError: it is not saved as safetensors.
    """
    if not (directory / WEIGHTS_FILE).is_file():
        raise InputError(
            f"there are no weights in {directory}",
            expected=f"{WEIGHTS_FILE}: nothing else is read, as it might be executed",
            got=", ".join(sorted(path.name for path in directory.iterdir()))[:200],
            do="save the adapter with peft, which writes safetensors by itself",
        )
    with _quietly():
        wrapped = peft.PeftModel.from_pretrained(
            cast(Any, model), directory, adapter_name=POLICY, is_trainable=True
        )
    adapter = _checked(Adapter(wrapped, POLICY), base)
    _check_fits(adapter, directory)
    return adapter


def _check_fits(adapter: Adapter, directory: Path) -> None:
    """That every matrix in a file has its layer, and every layer its matrices: peft passes over what doesn't fit.

    Raises:
        InputError: it is an adapter of another model.
    """
    there = {name: tuple(x.shape) for name, x in adapter.read(directory).items()}
    wanted = {name: tuple(x.shape) for name, x in adapter.own_weights.items()}
    if there != wanted:
        odd = sorted(name for name in there.keys() | wanted if there.get(name) != wanted.get(name))
        raise InputError(
            f"the adapter in {directory} is not one of {adapter.base}",
            expected="two matrices for each layer that its configuration names, and no others",
            got=f"{len(odd)} that don't fit, the first {odd[0]}: {there.get(odd[0], 'none')} in the file, "
            f"{wanted.get(odd[0], 'none')} of the model",
            do=f"name its own base in {CONFIG_FILE}, as base_model_name_or_path",
        )


def new_adapter(model: nn.Module, lora: LoraConfig, name: str) -> Adapter:
    """A base model with a new adapter that adds nothing yet; torch's own random state draws its A.

    Args:
        model: the base; it is frozen, and its layers are given the adapter in place.
        lora: rank, scale and place.
        name: of the base.

    Raises:
        ConfigError: the base has no layer as named, or one that can't have an adapter.
    """
    targets = lora.target_modules
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=cast(Any, lora.scale),
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.rank_stabilised,
        lora_dropout=0.0,
        bias="none",
        task_type=peft.TaskType.CAUSAL_LM,
    )
    try:
        with _quietly():
            wrapped = peft.get_peft_model(cast(Any, model), config, adapter_name=POLICY)
    except ValueError as error:
        linear = {
            n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)
        }
        raise ConfigError(
            f"model.lora.target_modules names no layer of {name}",
            expected=f'"all-linear", or some of {", ".join(sorted(linear))}',
            got=str(targets if isinstance(targets, str) else list(targets)),
        ) from error
    return _checked(Adapter(wrapped, POLICY), name)


def _checked(adapter: Adapter, base: str) -> Adapter:
    """An adapter that is written in one order, and that leaves alone the head, which is read apart from the model.

    Raises:
        ConfigError: it doesn't.
    """
    model = adapter.peft.base_model.model
    config = adapter.peft.peft_config[POLICY]
    config.base_model_name_or_path = base  # as it was named, and not as its files name it
    if not isinstance(config.target_modules, str):
        # peft keeps a set, which would be written in another order by every process.
        config.target_modules = sorted(config.target_modules)
    for what in (model.get_output_embeddings(), model.get_input_embeddings()):
        if hasattr(what, "base_layer"):
            raise ConfigError(
                "an adapter on the embeddings or the head can't be trained here",
                expected="an adapter on layers between the two",
                got=f"one on a layer of {tuple(what.base_layer.weight.shape)}",
                do='set model.lora.target_modules = "all-linear", which leaves both out',
            )
    return adapter


def _plain(name: str) -> str:
    """A weight's name without peft's wrapping and without the adapter's name.

    Examples:
        >>> _plain("base_model.model.q_proj.lora_A.default.weight"), _plain("base_model.model.q_proj.base_layer.weight")
        ('q_proj.lora_A.weight', 'q_proj.weight')
    """
    return _OURS.sub(r".\1.weight", name.removeprefix(_WRAPPED).replace(".base_layer.", "."))


@contextmanager
def _quietly() -> Generator[None]:
    """peft warns of what is meant so here: a second adapter, a transposed weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
