"""What both trainings share: batches, dropout, the optimizer and its schedule."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel

log = logging.getLogger("tiny_reviews")

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2


def batches(lengths: list[int], tokens: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Shuffled batches of about `tokens` tokens each, of texts of similar lengths.

    Args:
        lengths: The length of each text, in tokens.
        tokens: Padded tokens in one batch, at most.
        generator: Draws the order.

    Yields:
        Indices into `lengths`; every text once.
    """
    # A little noise on the lengths, so that the same texts do not meet in every pass.
    noise = torch.rand(len(lengths), generator=generator) * 4
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] + noise[i].item())
    groups: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if groups[-1] and longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    for position in torch.randperm(len(groups), generator=generator).tolist():
        yield groups[position]


def pad(rows: list[list[int]]) -> Tensor:
    """Right-pads rows of token ids; a causal model needs no mask for padding on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])


def add_dropout(model: LlamaModel, rate: float) -> Callable[[], None]:
    """Drops a part of what each layer of a Llama trunk adds to the residual stream.

    Llama has dropout on attention weights only; hooks add the rest without a model class of
    our own.

    Args:
        model: The trunk, a `LlamaModel`.
        rate: The share dropped while the model is in training mode.

    Returns:
        A function that takes the dropout away again.
    """

    def drop(module: nn.Module, _: object, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return (functional.dropout(output[0], rate, module.training), *output[1:])
        return functional.dropout(output, rate, module.training)

    parts = [
        m for n, m in model.named_modules() if n.endswith(("embed_tokens", "self_attn", "mlp"))
    ]
    handles = [part.register_forward_hook(drop) for part in parts]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def schedule(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Linear warm-up, then a cosine from 1 down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest half-orthogonal matrices, roughly, by Newton-Schulz (as in Muon)."""
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, for weight matrices; here in float32.

    Small models on little data need far fewer passes with it than with AdamW. PyTorch's own
    works in bfloat16, which is slow on most processors.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes one step; a closure is not called."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                self._step_together(params, group)

    def _step_together(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Moves parameters of one shape: their products are faster in one batch."""
        updates = []
        for p in params:
            assert p.grad is not None
            mean = self.state[p].setdefault("momentum", torch.zeros_like(p))
            mean.lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(mean, group["momentum"]))
        rows, columns = params[0].shape
        scale = max(1.0, rows / columns) ** 0.5
        for p, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * scale)


def make_optimizers(
    model: nn.Module, matrix_lr: float, other_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, norms and heads."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in named if not (p.ndim == 2 and ".layers." in n)]
    return [
        Muon(matrices, matrix_lr, weight_decay),
        torch.optim.AdamW(others, other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: nn.Module,
    steps: list[list[int]],
    loss_of: Callable[[list[int]], Tensor],
    optimizers: list[torch.optim.Optimizer],
    rate: Callable[[int], float],
    name: str,
) -> None:
    """Runs one training loop.

    Args:
        model: What is trained.
        steps: The batches, in order, as indices.
        loss_of: The loss of one batch.
        optimizers: All take a step after each batch.
        rate: The factor on the learning rates at each step.
        name: Names the loop in the log.
    """
    model.train()
    bases = [group["lr"] for o in optimizers for group in o.param_groups]
    groups = [group for o in optimizers for group in o.param_groups]
    started, running = time.monotonic(), 0.0
    for step, batch in enumerate(steps):
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * rate(step)
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running += loss.item()
        if (step + 1) % 50 == 0 or step + 1 == len(steps):
            count = step % 50 + 1
            seconds = time.monotonic() - started
            log.info(
                "%s %d/%d: loss %.3f, %.0f s", name, step + 1, len(steps), running / count, seconds
            )
            running = 0.0
    model.eval()
