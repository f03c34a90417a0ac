"""The fused meter: from hidden states and heads to log-probabilities, exact KL and entropy, a few tokens at a time.

The logits of N tokens are the largest tensors of RLHF: at V = 151,936 and N = 2,048 one is 1.2 GB, and exact KL written
plainly holds half a dozen. Here a chunk of rows is multiplied out, reduced while it is in the cache, and overwritten by
the gradient of its own logits (`chunks`); no [N, V] tensor exists.

Two ways in. `linear_kl` gives the four quantities per token, and makes the chunks again when the loss calls back for
gradients: six vocabulary-sized products in all; four, where it may hold what it made. `linear_kl_loss` is told the
loss of a token, makes the gradient while the chunk is there, and needs four. On a CUDA device that has Triton a chunk
is read once by one kernel and turned into its gradient by another (`fused`); the numbers are the same.

What is read of a row, and its gradient by `hidden`, depend on no other row's numbers, bit for bit. The gradients of
`weight` and `bias` are sums over rows: NaN in one is NaN in all, so tokens that a mask leaves out have to be left out
of the call. Where the reference gives 0 to a token that the policy allows, a row's kl is inf (NaN where that token's
probability has underflowed) and its gradients are NaN, of logprobs and entropy too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kleash.functional.chunks import (
    Chunk,
    Constants,
    FusedChunk,
    Gradients,
    Policy,
    TokenKL,
    accumulate,
    can_hold,
    chunks,
    wide,
)

TokenLoss = Callable[[TokenKL, slice], Tensor]
"""(what was read at the tokens, which tokens they are) -> their losses, [C]."""


def linear_kl(  # noqa: PLR0913 - two heads are ten things; they stand together nowhere else
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    ref_hidden: Float[Tensor, "N R"],
    ref_weight: Float[Tensor, "V R"],
    tokens: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    ref_bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ref_softcap: float | Literal["same"] | None = "same",
    hold: bool = False,
) -> TokenKL:
    """Log-probabilities, exact KL and entropy of every token, without its logits ever being held.

    The logits are softcap·tanh((h Wᵀ + b)/softcap)/temperature, in float32 at least. Gradients flow to `hidden`,
    `weight` and `bias` from any mix of logprobs, kl and entropy; the reference is constant, and must not be changed
    before the backward pass has read it again.

    Args:
        hidden: last hidden states of the policy.
        weight: its head.
        ref_hidden: of the reference, which may have another width.
        ref_weight: its head, over the same vocabulary.
        tokens: the tokens that were sampled.
        bias: of the policy's head.
        ref_bias: of the reference's.
        temperature: divides the logits of both.
        softcap: bounds the logits of both, as in Gemma 2.
        ref_softcap: of the reference, where it has another, or none.
        hold: whether both logits are held for the first backward pass, if they are no more than `HELD_BYTES`.

    Returns:
        [N] each, nats.

    Raises:
        ValueError: the shapes do not fit, or temperature or softcap are not positive.
        RuntimeError: a gradient of the gradient is asked for; there is none.

    Examples:
        >>> weight, ref_weight = torch.tensor([[0.8], [0.2]]).log(), torch.tensor([[0.5], [0.5]]).log()
        >>> one = torch.ones(1, 1)
        >>> linear_kl(one, weight, one, ref_weight, torch.tensor([0])).kl
        tensor([0.1927])
    """
    theirs = softcap if ref_softcap == "same" else ref_softcap
    given = Constants(ref_hidden, ref_weight, ref_bias, tokens, temperature, softcap, theirs)
    _check(Policy(hidden, weight, bias), given)
    # Autocast would round what is reduced here, in silence.
    with torch.autocast(hidden.device.type, enabled=False):
        return TokenKL(*_LinearKL.apply(hidden, weight, bias, given, hold))


def linear_kl_loss(  # noqa: PLR0913 - as above
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    ref_hidden: Float[Tensor, "N R"],
    ref_weight: Float[Tensor, "V R"],
    tokens: Int[Tensor, " N"],
    token_loss: TokenLoss,
    *,
    bias: Float[Tensor, " V"] | None = None,
    ref_bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ref_softcap: float | Literal["same"] | None = "same",
) -> tuple[Float[Tensor, ""], TokenKL]:
    """Σ_n loss_n of a loss that is a sum over tokens, with its gradient made on the way: four products, not six.

    `token_loss` is given what was read at some tokens and which they are, and returns the loss of each; the rest is as
    in `linear_kl`. Returned are the loss, differentiable in `hidden`, `weight` and `bias`, and what was read, detached.
    The gradient is handed over by the first backward pass; a second one (`retain_graph`) makes the chunks again.

    Examples:
        >>> hidden, weight = torch.ones(1, 1), torch.tensor([[0.8], [0.2]]).log().requires_grad_()
        >>> ref = torch.tensor([[0.5], [0.5]]).log()
        >>> loss, _ = linear_kl_loss(hidden, weight, hidden, ref, torch.tensor([0]), lambda x, _: x.kl)
        >>> loss.backward()
        >>> weight.grad
        tensor([[ 0.2218],
                [-0.2218]])
    """
    theirs = softcap if ref_softcap == "same" else ref_softcap
    given = Constants(ref_hidden, ref_weight, ref_bias, tokens, temperature, softcap, theirs)
    _check(Policy(hidden, weight, bias), given)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, *read = _LinearKLLoss.apply(hidden, weight, bias, given, token_loss)
    return loss, TokenKL(*read)


class _LinearKL(torch.autograd.Function):
    """Readings per token; the backward pass makes each chunk again, but one that was held."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        given: Constants,
        hold: bool,
    ) -> tuple[Tensor, ...]:
        policy, held = Policy(hidden, weight, bias), None
        hold = hold and any(ctx.needs_input_grad) and can_hold(policy)
        read = TokenKL.empty(given.tokens, wide(hidden.dtype))
        for rows, chunk in chunks(policy, given, whole=hold):
            _store(read, rows, chunk.reduce())
            held = chunk if hold else None
        ctx.save_for_backward(hidden, weight, bias)
        ctx.given, ctx.held = given, held
        ctx.mark_non_differentiable(read.ref_logprobs)
        return tuple(read)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Any, ...]:
        of_logprobs, _, of_kl, of_entropy = grad_outputs
        upstream = torch.stack([of_logprobs, of_kl, of_entropy])
        policy = Policy(*ctx.saved_tensors)
        # The gradient is made in its place: whoever comes a second time finds it gone.
        held, ctx.held = ctx.held, None
        if held is None:
            grads = _gradients(policy, ctx.given, upstream, ctx.needs_input_grad)
        else:
            grads = _made_of(held, policy, upstream, ctx.needs_input_grad)
        return (*grads, None, None)


class _LinearKLLoss(torch.autograd.Function):
    """The loss and its gradient in one pass; the backward pass only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        given: Constants,
        token_loss: TokenLoss,
    ) -> tuple[Tensor, ...]:
        policy = Policy(hidden, weight, bias)
        read = TokenKL.empty(given.tokens, wide(hidden.dtype))
        upstream = torch.zeros(3, len(hidden), dtype=read.kl.dtype, device=hidden.device)
        grads = _zeros(policy, ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for rows, chunk in chunks(policy, given):
            _store(read, rows, chunk.reduce())
            losses, upstream[:, rows] = _ask(token_loss, chunk.read, rows)
            total += losses.double().sum()
            if any(ctx.needs_input_grad):
                accumulate(grads, rows, chunk.differentiate(*upstream[:, rows]), policy)
        ctx.save_for_backward(hidden, weight, bias, upstream)
        ctx.given, ctx.made = given, _cast(grads, policy)
        ctx.mark_non_differentiable(*read)
        return (total.to(read.kl.dtype), *read)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Any, ...]:
        *policy, upstream = ctx.saved_tensors
        # The head's gradient is as large as the head: it is given away, not copied. Whoever comes a second time
        # (retain_graph) finds it gone, perhaps changed by its new owner, and pays for another.
        grads, ctx.made = ctx.made, None
        if grads is None:
            grads = _gradients(Policy(*policy), ctx.given, upstream, ctx.needs_input_grad)
        for grad in grads:
            if grad is not None:
                grad.mul_(grad_outputs[0])
        return (*grads, None, None)


def _gradients(
    policy: Policy, given: Constants, upstream: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Of the policy's tensors, from those of logprobs, kl and entropy, [3, N]; every chunk is made again."""
    grads = _zeros(policy, wanted)
    for rows, chunk in chunks(policy, given):
        chunk.reduce()
        accumulate(grads, rows, chunk.differentiate(*upstream[:, rows]), policy)
    return _cast(grads, policy)


def _made_of(
    chunk: Chunk | FusedChunk, policy: Policy, upstream: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The same of the one chunk that has been read already."""
    grads = _zeros(policy, wanted)
    accumulate(grads, slice(len(policy.hidden)), chunk.differentiate(*upstream), policy)
    return _cast(grads, policy)


def _ask(token_loss: TokenLoss, read: TokenKL, rows: slice) -> tuple[Tensor, Tensor]:
    """The losses of some tokens, and their derivatives by logprobs, kl and entropy, [3, C]."""
    with torch.enable_grad():
        leaves = TokenKL(*(x.detach().clone() for x in read))
        wanted = (leaves.logprobs, leaves.kl, leaves.entropy)
        for leaf in wanted:
            leaf.requires_grad_()
        losses = token_loss(leaves, rows)
        if not losses.requires_grad:
            return losses, read.kl.new_zeros(3, len(read.kl))
        derivatives = torch.autograd.grad(losses.sum(), wanted, materialize_grads=True)
    return losses.detach(), torch.stack(derivatives)


def _zeros(policy: Policy, wanted: Sequence[bool]) -> Gradients:
    """Room for the gradients that are asked for, in float32 at least."""
    every = zip(policy, wanted[:3], strict=True)
    return Gradients(
        *(
            torch.zeros_like(x, dtype=wide(x.dtype)) if x is not None and want else None
            for x, want in every
        )
    )


def _cast(grads: Gradients, policy: Policy) -> tuple[Tensor | None, ...]:
    """Gradients in the types of what they belong to."""
    return tuple(
        None if grad is None or x is None else grad.to(x.dtype)
        for grad, x in zip(grads, policy, strict=True)
    )


def _store(whole: TokenKL, rows: slice, part: TokenKL) -> None:
    for target, values in zip(whole, part, strict=True):
        target[rows] = values


def _check(policy: Policy, given: Constants) -> None:
    """Raises ValueError where shapes or settings make no sense."""
    count, vocab = len(given.tokens), len(policy.weight)
    expected = {
        "hidden": (policy.hidden, (count, policy.weight.shape[1])),
        "ref_hidden": (given.ref_hidden, (count, given.ref_weight.shape[1])),
        "ref_weight": (given.ref_weight, (vocab, given.ref_weight.shape[1])),
        "bias": (policy.bias, (vocab,)),
        "ref_bias": (given.ref_bias, (vocab,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {tuple(tensor.shape)}")
    settings = {
        "temperature": given.temperature,
        "softcap": given.softcap,
        "ref_softcap": given.ref_softcap,
    }
    for name, value in settings.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, not {value}")
