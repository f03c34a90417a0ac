"""A pass over a rollout in one row of tokens: no padding in it, and each prompt once however many rows have it.

Layers that look at a token by itself, nearly all of a model's work, see that row alone. Attention is told which token
belongs where: prompts look at themselves; a response looks at its prompt's keys and values, which are copied to every
row that has it (and gradients added up on the way back), and at itself. Nothing is kept from one pass for another, so
that layers can be computed twice (`recompute`).
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from transformers import AttentionInterface

ATTENTION = "kleash_unpadded"
"""What transformers knows the attention by."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which token is where. Prompts are aligned on the right and responses on the left of their grids.

    A place that no token has points at token 0, and holds nothing.
    """

    prompts: Tensor
    """[U, P], places in the row of the tokens of each prompt."""
    responses: Tensor
    """[B, S], of the tokens of each response that something follows."""
    group: Tensor
    """[B], which prompt each response has."""
    prompt_mask: Tensor
    """[U, P]."""
    places: Tensor
    """[M], both grids of places, flat, one after the other."""
    back: Tensor
    """[N], which of these is each token's."""
    blank: Tensor
    """Which of these are no token's."""
    masks: dict[tuple[int | None, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """What may be looked at, by the width of a sliding window and the type of the scores."""

    def visible(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is added to the scores of prompts, [U or 1, 1, P, P], and responses, [B or 1, 1, S, P + S]."""
        key = window, dtype
        if key not in self.masks:
            real = self.prompt_mask
            if bool(real.all()):
                real = real[:1]
            (width, steps), device = (self.prompts.shape[1], self.responses.shape[1]), real.device
            places = torch.arange(width + steps, device=device)
            distance = places.unsqueeze(-1) - places
            near = distance >= 0
            if window is not None:
                near &= distance < window
            own = near[:width, :width] & real.unsqueeze(1)
            # Where padding looks is no matter, as long as it looks at something.
            own |= ~real.unsqueeze(-1)
            seen = real if len(real) == 1 else real[self.group]
            seen = F.pad(seen, (0, steps), value=True)
            theirs = near[width:] & seen.unsqueeze(1)
            self.masks[key] = _scores(own, dtype), _scores(theirs, dtype)
        return self.masks[key]


def _scores(visible: Tensor, dtype: torch.dtype) -> Tensor:
    blank = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return blank.masked_fill_(~visible, float("-inf")).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Unpadded:
    """A batch as one row."""

    ids: Tensor
    """[N]."""
    positions: Tensor
    """[N], each in its own sequence."""
    out: Tensor
    """[B, T], places in the row of the states from which response tokens are predicted."""
    layout: Layout


def unpad(
    prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, mask: Tensor | None = None
) -> Unpadded:
    """A batch of responses as one row of tokens: first those of the prompts, each once.

    Args:
        prompt_ids: [B, P].
        prompt_mask: [B, P], True at real tokens, which end each row.
        response_ids: [B, T].
        mask: [B, T], True at real tokens, with which each row begins; None: all are.

    Examples:
        >>> prompt, responses = torch.tensor([[5, 6], [5, 6]]), torch.tensor([[1, 2, 3], [4, 2, 0]])
        >>> row = unpad(prompt, prompt > 0, responses, responses > 0)
        >>> row.ids.tolist(), row.positions.tolist()
        ([5, 6, 1, 2, 4], [0, 1, 2, 3, 2])
        >>> row.out.tolist()  # of the last the state is none's, as there is no such token
        [[1, 2, 3], [1, 4, 0]]
    """
    width = prompt_ids.shape[1]
    keys = torch.cat([prompt_ids, prompt_mask.long()], dim=1)
    unique, group = torch.unique(keys, dim=0, return_inverse=True)
    ids, real = unique[:, :width], unique[:, width:].bool()
    # The last token of a response is followed by nothing.
    fed = torch.ones_like(response_ids[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:]
    whole = torch.cat([real.flatten(), fed.flatten()])
    places = torch.where(whole, whole.cumsum(0) - 1, 0)
    prompts, responses = places[: real.numel()].view_as(real), places[real.numel() :].view_as(fed)
    steps = torch.arange(fed.shape[1], device=fed.device)
    after = real.sum(-1)[group].unsqueeze(-1) + steps
    positions = torch.cat([(real.cumsum(-1) - 1).flatten(), after.flatten()])
    back, blank = whole.nonzero().squeeze(-1), (~whole).nonzero().squeeze(-1)
    return Unpadded(
        ids=torch.cat([ids.flatten(), response_ids[:, :-1].flatten()])[back],
        positions=positions[back],
        out=torch.cat([prompts[group, -1:], responses], dim=1),
        layout=Layout(prompts, responses, group, real, places, back, blank),
    )


@contextmanager
def attending(model: Any, by: str = ATTENTION) -> Generator[None]:
    """Within it a model's attention is told by a layout where to look; or is what transformers knows as `by`."""
    # Whoever trains a model may have given it another configuration than its layers hold.
    configs = {id(module.config): module.config for module in model.modules() if _is_told(module)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = by
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _is_told(module: Any) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")


class _ToGrids(torch.autograd.Function):
    """Rows [N, …] to their places in both grids, [M, …]. Each is there once, so that no gradients need adding up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: Layout) -> Tensor:
        """Nothing where no token is."""
        ctx.layout = layout
        return rows.index_select(0, layout.places).index_fill_(0, layout.blank, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The way back is the other class."""
        return gradients[0].index_select(0, ctx.layout.back), None


class _ToRow(torch.autograd.Function):
    """Both grids [M, …] to the row of tokens, [N, …]."""

    @staticmethod
    def forward(ctx: Any, grids: Tensor, layout: Layout) -> Tensor:
        """What is of no token is left behind."""
        ctx.layout = layout
        return grids.index_select(0, layout.back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The way back is the other class."""
        layout = ctx.layout
        back = gradients[0].index_select(0, layout.places)
        return back.index_fill_(0, layout.blank, 0.0), None


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention of one row of tokens; transformers calls it in every layer.

    Args:
        module: the layer.
        query: [1, heads, N, D].
        key: [1, heads or fewer, N, D].
        value: the same.
        attention_mask: unused: the layout says who sees whom.
        layout: of the row.
        settings: of the layer: `scaling`, `softcap`, `dropout`, `sliding_window`, and what is no matter.

    Returns:
        [1, N, heads, D], and no weights.

    Raises:
        NotImplementedError: the scores are made in another way than here.
    """
    if any(settings.get(name) is not None for name in ("s_aux", "position_bias")):
        raise NotImplementedError("attention with sinks, or with a bias by position")
    q, k, v = (_grids(x, layout) for x in (query, key, value))
    own, theirs = layout.visible(settings.get("sliding_window"), query.dtype)
    scores = {name: settings.get(name) for name in ("scaling", "softcap")}
    dropout = settings.get("dropout") or 0.0
    found = [_attention(q[0], k[0], v[0], own, dropout, **scores)]
    if layout.responses.numel():
        keys, values = (torch.cat([x.index_select(0, layout.group), y], dim=2) for x, y in (k, v))
        found.append(_attention(q[1], keys, values, theirs, dropout, **scores))
    grids = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in found])
    return _ToRow.apply(grids, layout).unsqueeze(0), None


def _grids(states: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """A row's states [1, heads, N, D] of prompts, [U, heads, P, D], and of responses, [B, heads, S, D]."""
    rows = states[0].transpose(0, 1)
    taken = _ToGrids.apply(rows, layout)
    parts = taken.split([layout.prompts.numel(), layout.responses.numel()])
    shapes = layout.prompts.shape, layout.responses.shape
    first, second = (
        part.view(*shape, *rows.shape[1:]).transpose(1, 2)
        for part, shape in zip(parts, shapes, strict=True)
    )
    return first, second


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout: float,
    *,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """[B, heads, S, D]; keys and values may be of fewer heads, each for as many queries' in turn."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * (scale / softcap))
    weights = torch.softmax((scores + mask).float(), -1).to(value.dtype)
    return F.dropout(weights, dropout) @ value


AttentionInterface.register(ATTENTION, attend)
