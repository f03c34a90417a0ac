"""Gradient checkpointing: of each layer only its input is kept, and the rest is computed again on the way back.

transformers does it for a layer that is in training mode. Here everything is in evaluation mode, always, as dropout
would make a policy another than the one that was sampled from: so a layer is told that it trains, and nothing in it is.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from kleash.errors import ConfigError
from kleash.models.unpadded import attending


def enable_recompute(name: str, model: Any) -> None:
    """Makes a model ready for it.

    Raises:
        ConfigError: its architecture knows no checkpointing.
    """
    # The older name is deprecated, and all that older releases have.
    enable = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or model.gradient_checkpointing_enable

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of a layer's first pass, and of its second: that attends as the first does, long after it."""
        return nullcontext(), attending(model, model.config._attn_implementation)

    try:
        enable({"use_reentrant": False, "context_fn": contexts})
    except ValueError as error:
        raise ConfigError(
            f"{name} can't be trained with gradient checkpointing",
            expected="an architecture whose layers transformers can compute twice",
            got=f"{type(model).__name__}: {error}",
            do="leave model.gradient_checkpointing out, and lower train.micro_batch_size for memory",
        ) from error


@contextmanager
def recomputed(model: nn.Module) -> Generator[None]:
    """Within it a pass keeps the inputs of layers alone; what is computed is the same."""
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True  # of the layer itself: `train()` would reach what is in it
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
