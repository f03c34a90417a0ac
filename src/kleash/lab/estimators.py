"""What every KL estimator is worth on a problem that can be enumerated: bias, spread and gradient, all exact.

A penalty is put through the functions that training puts it through (`functional.penalties`, `functional.rewards`), so
that what is shown is what training does.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kleash.functional.divergences import reverse_kl
from kleash.functional.kl import (
    ESTIMATORS,
    LABELS,
    Level,
    importance_weights,
    k1,
    k2,
    k3,
    regressed_kl,
    topk_kl,
)
from kleash.functional.penalties import GRADIENTS, Penalty, charges, loss_terms
from kleash.functional.rewards import shaped_rewards
from kleash.lab.mdp import MDP

TOP = 4
"""Size of the head in the truncated estimators."""
SAME = 1e-24
"""Below this many nats policy and reference differ by rounding alone: no ratio to such a KL means anything."""

Place = Literal["loss", "reward", "both"]


class Figures(NamedTuple):
    """Of one estimator, per response, under its exact distribution."""

    mean: float
    std: float
    """Of one sampled response."""
    gradient_cosine: float | None
    """Between its expected gradient and that of the sequence KL; None where either is 0."""
    gradient_norm_ratio: float


class Measurement(NamedTuple):
    """Everything about one policy."""

    kl: float
    """KL(π‖π_ref), nats per response."""
    estimators: dict[str, Figures]
    gradient_noise: dict[str, float]
    """Std of one response's gradient (the root of the trace of its covariance) over the norm of the true one."""


class Terms(NamedTuple):
    """Every sequence under policy and reference; N sequences, L tokens."""

    rows: Tensor
    """[N, L, V], the policy's logits at every token, a row of its own for each sequence."""
    logprobs: Tensor
    """[N, L] with gradients to `rows`."""
    ref_logprobs: Tensor
    old_logprobs: Tensor
    """Of the policy that the sequences are drawn from."""
    full: Tensor
    """[N, L, V], the policy's whole distribution at every token."""
    ref_full: Tensor
    tokens: Tensor
    probs: Tensor
    """[N], detached: the weight of each sequence."""


def enumerate_terms(mdp: MDP, logits: Tensor, old_logits: Tensor | None = None) -> Terms:
    """All sequences of the problem under a policy, weighted as it draws them, or as another one does."""
    states, tokens = mdp.states(), mdp.tokens()
    rows = logits[states]
    full, ref_full = torch.log_softmax(rows, -1), torch.log_softmax(mdp.ref_logits, -1)[states]
    logprobs, ref_logprobs = (
        x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (full, ref_full)
    )
    old = logprobs.detach() if old_logits is None else mdp.logprobs(old_logits).detach()
    probs = old.sum(-1).exp()
    return Terms(rows, logprobs, ref_logprobs, old, full, ref_full, tokens, probs)


def sequence_kl(terms: Terms) -> Tensor:
    """KL(π‖π_ref) over whole sequences, differentiable: the truth."""
    return reverse_kl(terms.logprobs.sum(-1), terms.ref_logprobs.sum(-1))


def local(terms: Terms, top: int = TOP) -> dict[str, Tensor]:
    """Every estimate per token [N, L]."""
    pair, rows = (terms.logprobs, terms.ref_logprobs), (terms.full, terms.ref_full)
    k = min(top, rows[0].shape[-1])
    return {
        "k1": k1(*pair),
        "k2": k2(*pair),
        "k3": k3(*pair),
        "exact": reverse_kl(*rows),
        "topk_merged": topk_kl(*rows, k),
        "topk_sampled": topk_kl(*rows, k, tokens=terms.tokens),
    }


LEVELS: dict[str, Level] = {"_ratio": "token", "_ratio_prefix": "prefix", "_ratio_sequence": "sequence"}  # fmt: skip


def estimates(terms: Terms, top: int = TOP) -> dict[str, Tensor]:
    """Every estimate of a response [N], differentiable: as it stands in the loss."""
    per_token = local(terms, top)
    mask = torch.ones_like(terms.tokens, dtype=torch.bool)
    found = {name: x.sum(-1) for name, x in per_token.items()}
    for name, estimator in ESTIMATORS.items():
        whole = estimator(terms.logprobs.sum(-1), terms.ref_logprobs.sum(-1))
        found[f"{name}_sequence"] = whole
        for suffix, level in LEVELS.items():
            weights = importance_weights(terms.logprobs, terms.old_logprobs, mask, level)
            found[name + suffix] = (weights * per_token[name]).sum(-1)
    found["k1_then_exact"] = per_token["k1"][:, 0] + per_token["exact"][:, 1:].sum(-1)
    found["exact_regressed"] = _regressed(found["k1"], found["exact"], terms.probs)
    return found


def _regressed(sampled: Tensor, exact: Tensor, probs: Tensor) -> Tensor:
    """The regression of k1 on its distance from the exact sum, with the best coefficient there is."""
    gap = (sampled - exact).detach()
    variance = _moments(gap, probs)[1] ** 2
    covariance = float((probs * gap * (sampled.detach() - (probs * sampled.detach()).sum())).sum())
    return regressed_kl(sampled, exact, covariance / variance if variance > SAME else 1.0)[0]


PENALTIES: dict[str, Penalty] = {
    "k1": Penalty("loss", "k1"),
    "k1_ratio": Penalty("loss", "k1", "ratio"),
    "k1_score": Penalty("loss", "k1", "score"),
    "k1_detached": Penalty("loss", "k1", "detached"),
    "k2": Penalty("loss", "k2"),
    "k2_ratio": Penalty("loss", "k2", "ratio"),
    "k2_score": Penalty("loss", "k2", "score"),
    "k2_detached": Penalty("loss", "k2", "detached"),
    "k3": Penalty("forward", "k3"),
    "k3_ratio": Penalty("loss", "k3", "ratio"),
    "k3_score": Penalty("loss", "k3", "score"),
    "k3_detached": Penalty("forward", "k3", "detached"),
    "exact": Penalty("loss", "exact"),
    "k1_in_reward": Penalty("reward", "k1"),
    "k2_in_reward": Penalty("reward", "k2"),
    "k3_in_reward": Penalty("reward", "k3"),
    "k1_then_exact_in_reward": Penalty("reward", "exact"),
    "exact_rao_blackwell": Penalty("exact", "exact"),
}
"""What training can be asked for, and what it refuses, by name: an estimate under its own name stands in the loss. What
is refused as `loss`, k3, is the same as what is offered under its true name, `forward`."""


def descended(penalty: Penalty, terms: Terms) -> Tensor:
    """[N]: what training descends at β = 1 where the reward is 0, of each response, before advantages are scaled."""
    mask = torch.ones_like(terms.tokens, dtype=torch.bool)
    kl, pair = reverse_kl(terms.full, terms.ref_full), (terms.logprobs, terms.ref_logprobs)
    charged = charges(penalty, kl.detach(), (pair[0] - pair[1]).detach(), mask)
    rewards = shaped_rewards(torch.zeros_like(terms.probs), charged, mask, 1.0)
    loss = -(_to_go(rewards) * terms.logprobs).sum(-1)
    if penalty.is_in_loss:
        flat = (x.flatten() for x in (kl, *pair, terms.old_logprobs))
        loss = loss + loss_terms(penalty, *flat).view_as(mask).sum(-1)
    return loss


def _to_go(per_token: Tensor) -> Tensor:
    return per_token.flip(-1).cumsum(-1).flip(-1)


def _exact_in_reward(terms: Terms) -> Tensor:
    """The exact sum as a reward that has forgotten the own token's term: it says nothing of the state it is in."""
    return (_to_go(reverse_kl(terms.full, terms.ref_full).detach()) * terms.logprobs).sum(-1)


UNOFFERED: dict[str, Callable[[Terms], Tensor]] = {"exact_in_reward": _exact_in_reward}
"""Placements that training has no name for."""


def estimate_of(name: str) -> str:
    """The estimate whose value a row has.

    Examples:
        >>> estimate_of("exact_rao_blackwell"), estimate_of("k2_detached"), estimate_of("k3_sequence")
        ('exact', 'k2', 'k3_sequence')
    """
    if name == "exact_rao_blackwell":
        return "exact"
    for suffix in ("_in_reward", "_score", "_detached"):
        name = name.removesuffix(suffix)
    return name


def place_of(name: str) -> Place:
    """Where the row's estimate stands.

    Examples:
        >>> place_of("k1_in_reward"), place_of("exact_rao_blackwell"), place_of("k3_sequence")
        ('reward', 'both', 'loss')
    """
    if name.endswith("_in_reward"):
        return "reward"
    return "both" if name == "exact_rao_blackwell" else "loss"


def gradient_of(name: str) -> str | None:
    """Whose gradient a row has, as the library's labels say: a word of `Label.loss` or `Label.reward`.

    Examples:
        >>> gradient_of("exact_rao_blackwell"), gradient_of("k3"), gradient_of("k2_in_reward")
        ('reverse', 'forward per token', 'wrong')
    """
    penalty = PENALTIES.get(name)
    if penalty is not None and penalty in GRADIENTS:
        divergence, scope = GRADIENTS[penalty]
        return divergence if scope == "sequence" else f"{divergence} per token"
    estimate = estimate_of(name)
    if place_of(name) == "reward":
        return LABELS[estimate].reward
    # A weight that carries its slope has the gradient of the ratio; one that does not, that of the bare estimate.
    return LABELS[f"{estimate}_ratio" if name.endswith("_score") else estimate].loss


def measure(mdp: MDP, logits: Tensor) -> Measurement:
    """The exact KL, and the figures of every estimator and placement, on the policy's own data.

    Args:
        mdp: the problem.
        logits: [S, V], the policy.

    Examples:
        >>> from kleash.lab.mdp import golden, optimum
        >>> mdp = golden()
        >>> kl, figures, noise = measure(mdp, optimum(mdp, 1.0))
        >>> round(kl, 8), round(figures["k1"].std / kl, 3)
        (0.27515735, 2.523)
        >>> round(noise["exact_rao_blackwell"], 1), round(noise["k1_in_reward"], 1)
        (11.4, 27.8)
    """
    logits = logits.detach().clone().requires_grad_()
    terms = enumerate_terms(mdp, logits)
    values = estimates(terms)
    losses = {name: values[name] for name in values if name in LABELS}
    losses |= {name: descended(penalty, terms) for name, penalty in PENALTIES.items()}
    losses |= {name: place(terms) for name, place in UNOFFERED.items()}
    names = sorted(losses, key=lambda name: name.split("_")[0])
    rows = ((name, values[estimate_of(name)], losses[name]) for name in names)
    return _measured(rows, mdp, terms, logits)


def measure_stale(mdp: MDP, logits: Tensor, old_logits: Tensor) -> Measurement:
    """The same of k1 and k3 in the loss on data that another policy drew: not weighted, and weighted at each level.

    Args:
        mdp: the problem.
        logits: [S, V], the policy that is asked about.
        old_logits: [S, V], the policy that the data are from.

    Examples:
        >>> from kleash.lab.mdp import golden, optimum
        >>> mdp = golden()
        >>> kl, figures, _ = measure_stale(mdp, optimum(mdp, 0.2), optimum(mdp, 0.3))
        >>> [round(100 * (figures[name].mean / kl - 1), 1) for name in ("k1", "k3", "k1_ratio")]
        [-36.2, 676.4, -3.2]
    """
    logits = logits.detach().clone().requires_grad_()
    terms = enumerate_terms(mdp, logits, old_logits)
    values = estimates(terms)
    names = [k + suffix for k in ("k1", "k3") for suffix in ("", *LEVELS)]
    return _measured(((name, values[name], values[name]) for name in names), mdp, terms, logits)


def _measured(
    rows: Iterable[tuple[str, Tensor, Tensor]], mdp: MDP, terms: Terms, logits: Tensor
) -> Measurement:
    kl = sequence_kl(terms)
    (truth,) = torch.autograd.grad(kl, logits, retain_graph=True)
    nats = float(kl.detach())
    true_norm = float(truth.norm()) if nats > SAME else 0.0
    states, figures, noise = mdp.states().flatten(), dict[str, Figures](), dict[str, float]()
    for name, value, loss in rows:
        (each,) = torch.autograd.grad(loss.sum(), terms.rows, retain_graph=True)
        each_weighted = (terms.probs[:, None, None] * each).flatten(0, 1)
        gradient = torch.zeros_like(truth).index_add_(0, states, each_weighted)
        norm = float(gradient.norm())
        # A sequence passes through a state once at most: its gradient's square is the sum over its rows.
        second = float((each_weighted * each.flatten(0, 1)).sum())
        ratio = norm / true_norm if true_norm > 0 else 0.0
        # A gradient of rounding alone has no direction.
        has_direction = ratio > 1e-9
        cosine = float((gradient * truth).sum()) / (norm * true_norm) if has_direction else None
        figures[name] = Figures(*_moments(value.detach(), terms.probs), cosine, ratio)
        noise[name] = max(second - norm**2, 0.0) ** 0.5 / true_norm if true_norm > 0 else 0.0
    return Measurement(nats, figures, noise)


def _moments(values: Tensor, probs: Tensor) -> tuple[float, float]:
    mean = (probs * values).sum()
    return float(mean), float((probs * (values - mean).square()).sum().sqrt())
