"""Gradients that training descends, against differences of what they are the gradients of."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kleash.functional.chunks import TokenKL
from kleash.functional.divergences import chi_squared
from kleash.functional.kl import exact_kl
from kleash.functional.logprobs import log_softmax, token_logprobs
from kleash.functional.penalties import Gradient, Penalty, check_penalty
from kleash.models.policy import Head
from kleash.rollout.rollout import Rollout
from kleash.train.algorithms import Algorithm, AlgorithmConfig, Minibatch
from kleash.train.experience import Experience, Metered

WIDTH = 3
"""Tokens of the slice."""
STATES = 1 + WIDTH
"""The first state, and one after each first token."""
STEP = 1e-5
"""Of the differences, in float64."""
PLAIN = AlgorithmConfig(baseline="none", scale="none")
"""The gradient is exact without bootstrapping; what baselines and scales do is what they are chosen for."""


def head_gradient_error(
    head: Head, hidden: Tensor, ref: Head, ref_hidden: Tensor, temperature: float
) -> float:
    """Relative error of the exact KL's derivative along one direction, on a model's own heads, in float64.

    The hidden states are moved first: at the reference the gradient is 0 whatever the code does.

    Args:
        head: of the policy.
        hidden: [N, H].
        ref: of the reference.
        ref_hidden: [N, R].
        temperature: divides both logits.
    """
    hidden, ref_hidden = hidden.double(), ref_hidden.double()
    draw = torch.Generator().manual_seed(0)
    scale = hidden.std()
    away, direction = (
        scale * torch.randn(hidden.shape, generator=draw, dtype=torch.double).to(hidden.device)
        for _ in range(2)
    )
    tokens = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)

    def total(at: Tensor) -> Tensor:
        return head.read(at, ref, ref_hidden, tokens, temperature).kl.sum()

    at = (hidden + 0.1 * away).requires_grad_()
    (gradient,) = torch.autograd.grad(total(at), at)
    with torch.no_grad():
        ahead, behind = (total(at + sign * STEP * direction) for sign in (1, -1))
    slope = (ahead - behind) / (2 * STEP)
    return float(((gradient * direction).sum() - slope).abs() / slope.abs())


def placement_gradient_error(
    logits: Tensor,
    ref_logits: Tensor,
    penalty: Penalty,
    algorithm: Algorithm,
    temperature: float = 1.0,
) -> float:
    """Relative error of the penalty's gradient, through an algorithm's own targets and terms, on a slice of logits.

    The likeliest three tokens in four states make a problem of two steps, whose nine answers are enumerated; the
    policy's logits are moved, so that there is a KL; the truth is the difference quotient of the divergence that
    `penalties.GRADIENTS` names, with (c/2) χ² of whole answers where that stands beside it.

    Args:
        logits: [S, V] of the policy, S ≥ 1; rows are repeated where there are fewer than four.
        ref_logits: [S, V] of the reference.
        penalty: which.
        algorithm: whose update it is in.
        temperature: divides both logits.
    """
    rows = torch.arange(STATES) % len(logits)
    logits, ref_logits = (x.detach().cpu().double()[rows] for x in (logits, ref_logits))
    tokens = logits.topk(WIDTH, -1).indices
    wave = torch.sin(2.3 * torch.arange(STATES * WIDTH, dtype=torch.double)).view(STATES, WIDTH)
    policy = logits.gather(-1, tokens) + 0.5 * temperature * wave
    ref = ref_logits.gather(-1, tokens)
    of_kl = partial(_divergence, policy, ref, check_penalty(penalty), temperature)
    of_both = partial(_with_chi_squared, of_kl, penalty.chi_squared, ref, temperature)
    truth = _differences(of_both if penalty.chi_squared else of_kl, policy)
    found = _descended(policy, ref, penalty, algorithm, temperature)
    return float((found - truth).norm() / truth.norm())


def _answers() -> tuple[Tensor, Tensor]:
    """The nine answers, [9, 2], and the states that their tokens are drawn in."""
    tokens = torch.cartesian_prod(torch.arange(WIDTH), torch.arange(WIDTH))
    return tokens, torch.stack([torch.zeros(len(tokens), dtype=torch.long), 1 + tokens[:, 0]], 1)


def _divergence(
    sampled_from: Tensor, ref: Tensor, gradient: Gradient, temperature: float, policy: Tensor
) -> Tensor:
    """What is descended: over states that the policy itself reaches, or, per token, that it was sampled from."""
    reached = policy if gradient.scope == "sequence" else sampled_from
    first = log_softmax(reached[0], temperature).exp()
    weights = torch.cat([torch.ones(1, dtype=torch.double), first])
    local = exact_kl(policy, ref, direction=gradient.divergence, temperature=temperature)
    return (weights * local).sum()


def _with_chi_squared(
    of_kl: Callable[[Tensor], Tensor], coef: float, ref: Tensor, temperature: float, policy: Tensor
) -> Tensor:
    """With (c/2) χ² of the nine answers."""
    tokens, states = _answers()
    own, theirs = (
        token_logprobs(log_softmax(x, temperature)[states], tokens).sum(-1) for x in (policy, ref)
    )
    return of_kl(policy) + 0.5 * coef * chi_squared(own, theirs)


def _differences(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Central differences by every entry."""
    slopes = torch.zeros_like(at)
    for i in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[i] = STEP
        slopes.view(-1)[i] = (function(at + step) - function(at - step)) / (2 * STEP)
    return slopes


def _descended(
    policy: Tensor, ref: Tensor, penalty: Penalty, algorithm: Algorithm, temperature: float
) -> Tensor:
    """The gradient of the loss without a reward at β = 1, every two answers to a prompt weighing what they are likely.

    Of two: a baseline may be another answer to the prompt, and it is none where it is not drawn by itself.
    """
    tokens, states = _answers()
    every = torch.arange(len(tokens))
    pairs = torch.cartesian_prod(every, every).flatten()
    tokens, states = tokens[pairs], states[pairs]
    everywhere = torch.arange(STATES)
    # States as unit vectors, logits as the head: what reads real models reads this one.
    unit = torch.eye(STATES, dtype=torch.double)
    head, ref_head = Head(policy.t().contiguous().requires_grad_()), Head(ref.t().contiguous())
    with torch.no_grad():
        full = log_softmax(policy, temperature)[states]
        old = token_logprobs(full, tokens)
        kl = head.read(unit, ref_head, unit, everywhere % WIDTH, temperature).kl[states]
        ref_old = token_logprobs(log_softmax(ref, temperature)[states], tokens)
    experience = _experience(tokens, old, ref_old, kl)
    targets = algorithm.targets(experience, 1.0, PLAIN, penalty)
    likely = old.sum(-1).exp().view(-1, 2).prod(-1) / 2
    weights = likely.repeat_interleave(2 * tokens.shape[1])

    def token_loss(read: TokenKL, rows: slice) -> Tensor:
        batch = Minibatch(
            old_logprobs=old.flatten(),
            ref_logprobs=ref_old.flatten(),
            anchor_logprobs=old.flatten(),
            old_values=None,
            advantages=targets.advantages.flatten(),
            returns=None,
            kl_coefs=torch.ones_like(weights),
            weights=torch.ones_like(weights),
        )
        return weights[rows] * algorithm.token_terms(read, batch.part(rows), targets, PLAIN).total

    at = unit[states.flatten()]
    loss, _ = head.read_loss(at, ref_head, at, tokens.flatten(), temperature, token_loss)
    (gradient,) = torch.autograd.grad(loss, head.weight)
    return gradient.t()


def _experience(tokens: Tensor, old: Tensor, ref_old: Tensor, kl: Tensor) -> Experience:
    """Answers as a rollout without a reward, metered, two to a prompt."""
    count, nothing = len(tokens), torch.zeros_like(old)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    rollout = Rollout(
        prompts=("",) * count,
        responses=("",) * count,
        prompt_index=torch.arange(count) // 2,
        prompt_ids=torch.zeros(count, 1, dtype=torch.long),
        prompt_mask=mask[:, :1],
        response_ids=tokens,
        mask=mask,
        sampled_logprobs=old,
        finished=mask[:, 0],
    )
    metered = Metered(
        logprobs=old,
        ref_logprobs=ref_old,
        kl=kl,
        origin_kl=kl,
        entropy=nothing,
        values=None,
        hidden=nothing[..., None],
        ref_hidden=nothing[..., None],
        head=Head(nothing[:1, :1]),
    )
    scores = nothing[:, 0]
    return Experience(rollout=rollout, scores=scores, penalised=scores, monitor={}, metered=metered)
