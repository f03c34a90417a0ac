"""What every KL estimator is worth on a problem that can be enumerated: bias, spread and gradient, all exact."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.functional.kl import k1, k2, k3, regressed_kl, topk_kl
from kleash.lab.mdp import MDP

TOP = 4
"""Size of the head in the truncated estimators."""


class Figures(NamedTuple):
    """Of one estimator, per response, under its exact distribution."""

    mean: float
    std: float
    """Of one sampled response."""
    gradient_cosine: float | None
    """Between its expected gradient and that of the sequence KL; None where it has none."""
    gradient_norm_ratio: float


class Terms(NamedTuple):
    """Every sequence under policy and reference; N sequences, L tokens."""

    logprobs: Tensor
    """[N, L] with gradients to the policy's logits."""
    ref_logprobs: Tensor
    full: Tensor
    """[N, L, V], the policy's whole row at every token."""
    ref_full: Tensor
    tokens: Tensor
    probs: Tensor
    """[N], detached: the weight of each sequence."""


def enumerate_terms(mdp: MDP, logits: Tensor) -> Terms:
    """All sequences of the problem under a policy."""
    states, tokens = mdp.states(), mdp.tokens()
    full = torch.log_softmax(logits, -1)[states]
    ref_full = torch.log_softmax(mdp.ref_logits, -1)[states]
    logprobs, ref_logprobs = (
        x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (full, ref_full)
    )
    probs = logprobs.detach().sum(-1).exp()
    return Terms(logprobs, ref_logprobs, full, ref_full, tokens, probs)


def sequence_kl(terms: Terms) -> Tensor:
    """KL(π‖π_ref) = Σ_y π(y) log π(y)/π_ref(y), differentiable: the truth."""
    log_ratio = (terms.logprobs - terms.ref_logprobs).sum(-1)
    return (terms.logprobs.sum(-1).exp() * log_ratio).sum()


def as_loss(per_token: Tensor, _: Terms) -> Tensor:
    """Σ_t k_t: its gradient is what autograd makes of the estimate."""
    return per_token.sum(-1)


def in_reward(per_token: Tensor, terms: Terms) -> Tensor:
    """Σ_t sg(Σ_{j≥t} k_j) log π_t: the policy gradient of an estimate that stands in the reward."""
    to_go = per_token.detach().flip(-1).cumsum(-1).flip(-1)
    return (to_go * terms.logprobs).sum(-1)


def rao_blackwell(per_token: Tensor, terms: Terms) -> Tensor:
    """Σ_t [KL_t + sg(Σ_{j>t} KL_j) log π_t]: the exact local term as a loss, what follows in the reward."""
    to_go = per_token.detach().flip(-1).cumsum(-1).flip(-1) - per_token.detach()
    return (per_token + to_go * terms.logprobs).sum(-1)


def local(terms: Terms) -> dict[str, Tensor]:
    """Every estimate per token [N, L]."""
    pair, rows = (terms.logprobs, terms.ref_logprobs), (terms.full, terms.ref_full)
    k = min(TOP, rows[0].shape[-1])
    return {
        "k1": k1(*pair),
        "k2": k2(*pair),
        "k3": k3(*pair),
        "exact": reverse_kl(*rows),
        "topk_merged": topk_kl(*rows, k),
        "topk_sampled": topk_kl(*rows, k, tokens=terms.tokens),
    }


Placement = Callable[[Tensor, Terms], Tensor]
PLACEMENTS: dict[str, tuple[str, Placement]] = {
    "k1_in_reward": ("k1", in_reward),
    "k2_in_reward": ("k2", in_reward),
    "k3_in_reward": ("k3", in_reward),
    "exact_in_reward": ("exact", in_reward),
    "exact_rao_blackwell": ("exact", rao_blackwell),
}
"""Name -> (estimate, where it stands). Under its own name each estimate stands in the loss."""


def measure(mdp: MDP, logits: Tensor) -> tuple[float, dict[str, Figures]]:
    """The exact KL, and the figures of every estimator and placement.

    Args:
        mdp: the problem.
        logits: [S, V], the policy.

    Examples:
        >>> from kleash.lab.mdp import golden, optimum
        >>> mdp = golden()
        >>> kl, figures = measure(mdp, optimum(mdp, 1.0))
        >>> round(kl, 8), round(figures["k1"].std / kl, 3)
        (0.27515735, 2.523)
    """
    logits = logits.detach().clone().requires_grad_()
    terms = enumerate_terms(mdp, logits)
    kl = sequence_kl(terms)
    (truth,) = torch.autograd.grad(kl, logits, retain_graph=True)
    estimates = local(terms)
    whole = {f"{name}_sequence": f for name, f in (("k2", k2), ("k3", k3))}
    surrogates = {name: (x.sum(-1), as_loss(x, terms)) for name, x in estimates.items()}
    for name, estimator in whole.items():
        value = estimator(terms.logprobs.sum(-1), terms.ref_logprobs.sum(-1))
        surrogates[name] = (value, value)
    for name, (estimate, place) in PLACEMENTS.items():
        per_token = estimates[estimate]
        surrogates[name] = (per_token.sum(-1), place(per_token, terms))
    figures = {
        name: _figures(value, surrogate, terms, logits, truth)
        for name, (value, surrogate) in surrogates.items()
    }
    figures["exact_regressed"] = _regressed(estimates, terms, figures["exact"])
    return float(kl.detach()), figures


def _figures(
    value: Tensor, surrogate: Tensor, terms: Terms, logits: Tensor, truth: Tensor
) -> Figures:
    mean, std = _moments(value.detach(), terms.probs)
    expected = (terms.probs * surrogate).sum()
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    norm, true_norm = float(gradient.norm()), float(truth.norm())
    ratio = norm / true_norm if true_norm > 0 else 0.0
    # A gradient of rounding alone has no direction.
    cosine = float((gradient * truth).sum()) / (norm * true_norm) if ratio > 1e-9 else None
    return Figures(mean, std, cosine, ratio)


def _regressed(estimates: dict[str, Tensor], terms: Terms, exact: Figures) -> Figures:
    """The regression of k1 on its distance from the exact sum, with the best coefficient there is."""
    sampled, summed = (estimates[name].detach().sum(-1) for name in ("k1", "exact"))
    gap = sampled - summed
    spread = _moments(gap, terms.probs)[1] ** 2
    mean = (terms.probs * sampled).sum()
    covariance = float((terms.probs * gap * (sampled - mean)).sum())
    value, _ = regressed_kl(sampled, summed, covariance / spread if spread > 0 else 1.0)
    return exact._replace(**dict(zip(("mean", "std"), _moments(value, terms.probs), strict=True)))


def _moments(values: Tensor, probs: Tensor) -> tuple[float, float]:
    mean = (probs * values).sum()
    return float(mean), float((probs * (values - mean).square()).sum().sqrt())
