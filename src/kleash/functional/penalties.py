"""The KL penalty of training: where it acts, by which estimate, and whose gradient that makes.

A penalty may stand in the reward, where it multiplies ∇ log π of the tokens before it, or in the loss, where it is
differentiated itself. Which estimate stands where decides what is descended, and most combinations descend something
else than the KL they are named after. `GRADIENTS` says of each that is offered whose gradient it has, `REFUSALS` of
each that others ship and that is wrong, why; tests hold both against enumeration (`kleash lab estimators` shows it).

With u_t = log π(y_t|h_t)/π_ref(y_t|h_t) and the exact KL_t of the state h_t, the gradient of the sequence KL is

    ∇ KL(π‖π_ref) = E Σ_t [ ∇ KL_t  +  (Σ_{j>t} KL_j) ∇ log π(y_t|h_t) ]

(proof in docs/concepts.md). KL_t depends on the state and not on the token drawn in it: in the reward it carries the
second term only. The first is in the loss (`exact`), or in the reward as u_t, whose mean KL_t is (`reward`).

Beside a KL of whole responses their χ² may be penalised, in the reward (`functional.chi_squared`).
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.functional.advantages import returns_to_go
from kleash.functional.kl import ESTIMATORS, k1

Placement = Literal["exact", "reward", "loss", "forward"]
"""`exact`: local term in the loss, what follows in the reward. The others: in one place only."""
EstimatorName = Literal["exact", "k1", "k2", "k3"]
Weight = Literal["none", "ratio", "detached", "score"]
"""What multiplies an estimate in the loss: nothing; ρ = π/π_old with its gradient; ρ as a number; 1 with ρ's slope."""


class Penalty(NamedTuple):
    """One combination of the three choices, and what stands beside it.

    Examples:
        >>> Penalty("exact", "exact").is_in_loss, Penalty("reward", "k1").is_in_loss
        (True, False)
    """

    placement: Placement
    estimator: EstimatorName
    weight: Weight = "none"
    chi_squared: float = 0.0
    """c of β (KL + (c/2) χ²), of whole responses; 0: KL alone."""

    @property
    def of_kl(self) -> "Penalty":
        """The three choices alone."""
        return self._replace(chi_squared=0.0)

    @property
    def is_in_loss(self) -> bool:
        """Whether a part of it is differentiated."""
        return self.placement != "reward"

    @property
    def is_of_sequence(self) -> bool:
        """Whether it has the gradient of KL(π‖π_ref) of whole responses, as Σ u_t in the reward has."""
        return GRADIENTS.get(self.of_kl) == Gradient("reverse", "sequence")


class Gradient(NamedTuple):
    """Whose gradient a penalty has in expectation, on the policy's own samples."""

    divergence: Literal["reverse", "forward"]
    """KL(π‖π_ref), or KL(π_ref‖π)."""
    scope: Literal["sequence", "token"]
    """Of the whole response; or of each token's state alone, which leaves out that a token leads to later states."""


class Refusal(NamedTuple):
    """Why a penalty is not offered, and which one does what was probably meant."""

    why: str
    instead: Penalty


GRADIENTS: dict[Penalty, Gradient] = {
    Penalty("exact", "exact"): Gradient("reverse", "sequence"),
    Penalty("reward", "exact"): Gradient("reverse", "sequence"),
    Penalty("reward", "k1"): Gradient("reverse", "sequence"),
    Penalty("loss", "exact"): Gradient("reverse", "token"),
    Penalty("loss", "k2"): Gradient("reverse", "token"),
    Penalty("loss", "k2", "detached"): Gradient("reverse", "token"),
    Penalty("loss", "k1", "ratio"): Gradient("reverse", "token"),
    Penalty("loss", "k1", "score"): Gradient("reverse", "token"),
    Penalty("loss", "k3", "ratio"): Gradient("reverse", "token"),
    Penalty("loss", "k3", "score"): Gradient("reverse", "token"),
    Penalty("forward", "k3"): Gradient("forward", "token"),
    Penalty("forward", "k3", "detached"): Gradient("forward", "token"),
}

_ZERO = "the gradient of k1 in the loss is 0 in expectation, no penalty at all"
_FORWARD = "k3 in the loss has the gradient of the forward KL(π_ref‖π), not of KL(π‖π_ref)"
_SQUARE = "the weight's own gradient turns k2 into the gradient of E[½u²], which is no KL's"

REFUSALS: dict[Penalty, Refusal] = {
    Penalty("loss", "k1"): Refusal(_ZERO, Penalty("loss", "exact")),
    Penalty("loss", "k1", "detached"): Refusal(
        f"{_ZERO}, whatever number it is multiplied by", Penalty("loss", "k1", "ratio")
    ),
    Penalty("loss", "k2", "ratio"): Refusal(_SQUARE, Penalty("loss", "k2", "detached")),
    Penalty("loss", "k2", "score"): Refusal(_SQUARE, Penalty("loss", "k2")),
    Penalty("loss", "k3"): Refusal(_FORWARD, Penalty("forward", "k3")),
    Penalty("loss", "k3", "detached"): Refusal(
        f"{_FORWARD}; only a weight that carries its gradient turns it round",
        Penalty("loss", "k3", "ratio"),
    ),
    Penalty("reward", "k2"): Refusal(
        "k2 in the reward has the gradient of no KL, and rare answers are lost",
        Penalty("reward", "k1"),
    ),
    Penalty("reward", "k3"): Refusal(
        "k3 in the reward descends KL(π‖π_ref) less the tokens' KL(π_ref‖π), which has no minimum",
        Penalty("reward", "k1"),
    ),
}

DEFAULT_ESTIMATORS: dict[Placement, EstimatorName] = {
    "exact": "exact",
    "reward": "exact",
    "loss": "exact",
    "forward": "k3",
}
"""The estimate that a placement takes where none is named."""


def check_penalty(penalty: Penalty) -> Gradient:
    """Whose gradient the penalty has; its KL, where there is a χ² beside it.

    Raises:
        ValueError: it is wrong, with the reason and the name of a right one; or there is no such combination.

    Examples:
        >>> check_penalty(Penalty("exact", "exact"))
        Gradient(divergence='reverse', scope='sequence')
        >>> check_penalty(Penalty("loss", "k1"))
        Traceback (most recent call last):
        ValueError: placement = "loss", estimator = "exact"; the gradient of k1 in the loss is 0 in expectation, ...
    """
    if penalty.chi_squared and penalty.of_kl in GRADIENTS and not penalty.is_of_sequence:
        raise ValueError(
            f'placement = "exact" or "reward" beside chi_squared: that is of whole responses, {penalty.placement} of '
            "each token by itself, and of no common objective"
        )
    penalty = penalty.of_kl
    if penalty in GRADIENTS:
        return GRADIENTS[penalty]
    refused = REFUSALS.get(penalty)
    if refused is not None:
        raise ValueError(f"{_toml(refused.instead)}; {refused.why}")
    if penalty.weight != "none" and penalty._replace(weight="none") in GRADIENTS:
        right = _toml(penalty._replace(weight="none"))
        raise ValueError(f"{right}; a weight multiplies an estimate in the loss, and there is none")
    same = [_toml(known) for known in GRADIENTS if known.placement == penalty.placement]
    raise ValueError(" or ".join(same))


def _toml(penalty: Penalty) -> str:
    parts = {"placement": penalty.placement, "estimator": penalty.estimator}
    if penalty.weight != "none":
        parts["weight"] = penalty.weight
    return ", ".join(f'{name} = "{value}"' for name, value in parts.items())


def charges(
    penalty: Penalty,
    kl: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """What the reward of each token is charged, nats: its return is then the factor of ∇ log π in the gradient above.

    `exact` is charged KL_{t+1}, for a return of Σ_{j>t} KL_j. `reward` is charged u_t − (u_{t+1} − KL_{t+1}): the sum
    telescopes to u_t + Σ_{j>t} KL_j. With k1, u_t, for Σ_{j≥t} u_j. Nothing where the penalty is in the loss only.

    Args:
        penalty: which.
        kl: exact KL_t, nats.
        log_ratio: u_t of the tokens drawn.
        mask: True at the response's own tokens, contiguous from the left.

    Examples:
        >>> kl, u = torch.tensor([[0.1, 0.2, 9.0]]), torch.tensor([[-0.5, 0.7, 9.0]])
        >>> mask = torch.tensor([[True, True, False]])
        >>> charges(Penalty("exact", "exact"), kl, u, mask)
        tensor([[0.2000, 0.0000, 0.0000]])
        >>> charges(Penalty("reward", "exact"), kl, u, mask)
        tensor([[-1.0000,  0.7000,  0.0000]])
    """
    own = torch.zeros_like(kl)
    if penalty.placement == "reward":
        # Of a refused estimate too, so that what it descends can be shown.
        own = ESTIMATORS.get(penalty.estimator, k1)(log_ratio, torch.zeros_like(log_ratio))
    if penalty.placement in {"exact", "reward"} and penalty.estimator == "exact":
        following = torch.where(mask, kl - own, 0.0)[:, 1:]
        own = own + torch.nn.functional.pad(following, (0, 1))
    return torch.where(mask, own, 0.0)


def drawn_excess(
    charged: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """What Σ_j u_j, the log-ratio of the whole response drawn, is over what is still to be charged from t on, nats.

    Both make the same gradient in expectation, where the penalty is of the sequence. Beyond the end nothing is to be
    charged, and the excess is the whole.

    Args:
        charged: what `charges` gives.
        log_ratio: u_t of the tokens drawn.
        mask: True at the response's own tokens, contiguous from the left.

    Examples:
        >>> charged, u = torch.tensor([[0.2, 0.0, 9.0]]), torch.tensor([[-0.5, 0.75, 9.0]])
        >>> drawn_excess(charged, u, torch.tensor([[True, True, False]]))
        tensor([[0.0500, 0.2500, 0.2500]])
    """
    whole = torch.where(mask, log_ratio, 0.0).sum(-1, keepdim=True)
    return whole - returns_to_go(charged, mask)


def loss_terms(
    penalty: Penalty,
    kl: Float[Tensor, " N"] | None,
    logprobs: Float[Tensor, " N"],
    ref_logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """What stands in the loss at each token, to be multiplied by β; its derivative is what matters.

    Args:
        penalty: which; of a placement in the loss.
        kl: exact KL_t with its gradient, where the estimate is `exact`.
        logprobs: of the tokens drawn, with their gradient.
        ref_logprobs: of the reference.
        old_logprobs: of the policy that drew them.

    Examples:
        >>> logprobs = torch.tensor([-1.0], requires_grad=True)
        >>> term = loss_terms(Penalty("loss", "k2"), None, logprobs, torch.tensor([-1.5]), torch.tensor([-1.0]))
        >>> term.backward()
        >>> logprobs.grad
        tensor([0.5000])
    """
    if penalty.estimator == "exact":
        assert kl is not None, "an exact penalty in the loss is given the exact KL"
        return kl
    estimate = ESTIMATORS[penalty.estimator](logprobs, ref_logprobs)
    return estimate * _weight(penalty.weight, logprobs, old_logprobs)


def _weight(weight: Weight, logprobs: Tensor, old_logprobs: Tensor) -> Tensor | float:
    if weight == "none":
        return 1.0
    if weight == "score":
        return (logprobs - logprobs.detach()).exp()
    ratio = (logprobs - old_logprobs).exp()
    return ratio.detach() if weight == "detached" else ratio
