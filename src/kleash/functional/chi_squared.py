"""χ² of whole responses beside their KL: what it charges, how it is read, and the policy that is best under both.

With z = π(y)/π_ref(y) of a whole response, and Ω = KL(π‖π_ref) + (c/2) χ²(π‖π_ref) = E_ref[z log z + (c/2)(z² − 1)],

    ∇ ½χ²(π‖π_ref) = ∇ ½ Σ_y π²/π_ref = Σ_y z π ∇ log π = E_π[ z ∇ log π ],

so that χ² is a reward of −c·z at the end of the response, as far as the gradient goes. E[R] − β·Ω is greatest where
log z + c·z = (R − ν)/β, with ν such that E_ref z = 1: there z = W(c e^{(R−ν)/β})/c, Lambert's W, grows with R/β as a
line and not as an exponential (χ²-PO, Huang et al. 2024, arXiv 2407.13399, where c = 1).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import root_scalar
from scipy.special import wrightomega
from torch import Tensor

LARGEST_LOG_RATIO = 40.0
"""Nats: what π holds further above π_ref is charged as what is as far."""
_CLOSE, _ROUNDING = 1e-13, 4 * torch.finfo(torch.float64).eps
_MOST_STEPS = 200


def response_log_ratio(
    log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """U = Σ_t u_t = log π/π_ref of each whole response drawn, nats, in float64.

    Examples:
        >>> response_log_ratio(torch.tensor([[0.5, -0.25, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([0.2500], dtype=torch.float64)
    """
    return torch.where(mask, log_ratio, 0.0).double().sum(-1)


class Charge(NamedTuple):
    """What responses are charged for χ²."""

    amounts: Tensor
    """[B], in units of the reward, without a way back."""
    is_bound: Tensor
    """[B], whether that is less than it would be."""


def chi_squared_charge(
    log_ratios: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    index: Int[Tensor, " B"],
    coef: float,
) -> Charge:
    """β c (e^U − e^{U₀}) of each response, a multiplier of ∇ log π of all its tokens; U₀ is the least of its prompt.

    E_π[e^U ∇ log π] is ∇ ½χ². What a prompt's responses have in common is taken off, as far out it is many times what
    a reward is. Their least may be the response's own, and so is no baseline: charges are to be compared, each with the
    mean of the others of its prompt, where it cancels. By themselves they have less than the gradient.

    e^U is heavy-tailed, and unbounded one response decides the gradient. At the optimum the charges of two responses
    to one prompt never differ by more than their rewards do, as R − β (U + c e^U) is the same for both. So no charge is
    over the largest difference of two rewards to any one prompt: at the optimum that bounds nothing. Where no rewards
    differ there is no such bound.

    Args:
        log_ratios: U, nats; counts as at most `LARGEST_LOG_RATIO`, so that a float32 loss can square the charge.
        rewards: R.
        index: which prompt each is to, or what else is compared.
        coef: β c.

    Examples:
        >>> log_ratios, prompts = torch.tensor([1.0, 2.0, 4.0, 8.0]).log(), torch.tensor([0, 0, 1, 1])
        >>> charge = chi_squared_charge(log_ratios, torch.tensor([0.0, 1.5, 2.0, 4.0]), prompts, coef=1.0)
        >>> charge.amounts.round(decimals=3), charge.is_bound
        (tensor([0., 1., 0., 2.]), tensor([False, False, False,  True]))
    """
    amounts = coef * log_ratios.detach().clamp(max=LARGEST_LOG_RATIO).expm1()
    prompts, group = index.unique(return_inverse=True)

    def least(of: Tensor) -> Tensor:
        blank = of.new_full((len(prompts),), torch.inf)
        return blank.scatter_reduce(0, group, of, "amin")

    exact = rewards.double()
    most = float((-least(-exact) - least(exact))[group].max()) or torch.inf
    amounts = amounts - least(amounts)[group]
    return Charge(amounts.clamp(max=most), amounts > most)


def chi_squared_reading(
    log_ratios: Float[Tensor, " B"], kl: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """χ²(π‖π_ref) from responses drawn from π: the mean of e^U − 1 − U + K, no unit.

    E_π[e^U] − 1 is χ². U less the sum K of the exact KL_t along the same response has mean 0, and takes the noise of
    first order with it: near the reference the standard deviation is about 0.8 χ² where that of e^U − 1 alone is
    √χ². No term is below 0. Far out e^U is heavy-tailed, and a mean over responses is mostly too low. Not bounded.

    Args:
        log_ratios: U, nats.
        kl: K, nats.

    Examples:
        >>> log_ratios = torch.tensor([0.8 / 0.5, 0.2 / 0.5]).log()  # π of 0.8 and 0.2, π_ref of 0.5 and 0.5
        >>> 0.8 * log_ratios[0].expm1() + 0.2 * log_ratios[1].expm1()
        tensor(0.3600)
        >>> chi_squared_reading(log_ratios[[0, 0, 0, 0, 1]], torch.full((5,), 0.1927))  # each as often as π says
        tensor(0.3600)
    """
    return (log_ratios.expm1() - log_ratios + kl).mean()


class ChiSquaredTilt(NamedTuple):
    """The law that is best under both."""

    log_weights: Tensor
    """log z = log π*/π_ref of each outcome."""
    nu: float
    """ν, in units of the reward: a reward at which z would be W(c)/c."""


def chi_squared_tilt(
    rewards: Float[Tensor, " N"],
    ref_logprobs: Float[Tensor, " N"],
    beta: float,
    chi_squared: float,
) -> ChiSquaredTilt:
    """argmax E[R] − β (KL(π‖π_ref) + (c/2) χ²(π‖π_ref)) over the laws of N outcomes; in float64.

    c·z = ω((R − ν)/β + log c), Wright's ω(x) = W(e^x), for which no exponential is taken. ν is between
    min R − β c and max R − β c, where all z are at least, and at most, 1; whence z ≤ 1 + (max R − min R)/(β c).

    Args:
        rewards: R.
        ref_logprobs: log π_ref, normalised.
        beta: β, reward per nat, over 0.
        chi_squared: c; 0 is the exponential tilt, with ν = β log E_ref e^{R/β}.

    Examples:
        >>> reference = torch.full((2,), 0.5).log()
        >>> tilt = chi_squared_tilt(torch.tensor([0.0, 1.0]), reference, beta=0.5, chi_squared=1.0)
        >>> tilt.log_weights.exp(), round(tilt.nu, 4)
        (tensor([0.5213, 1.4787], dtype=torch.float64), 0.0651)
    """
    rewards, ref_logprobs = rewards.double(), ref_logprobs.double()
    if chi_squared == 0:
        nu = float(beta * (ref_logprobs + rewards / beta).logsumexp(-1))
        return ChiSquaredTilt((rewards - nu) / beta, nu)
    # From the largest reward on, and in nats: what two rewards have in common is not to cost digits.
    top = float(rewards.max())
    excess = (rewards - top) / beta
    low, high = float(excess.min()) - chi_squared, -chi_squared
    nu, log_weights = low, torch.zeros_like(excess)
    for _ in range(_MOST_STEPS):
        log_weights = _linked(excess - nu, chi_squared)
        log_terms = ref_logprobs + log_weights
        log_mass = float(log_terms.logsumexp(-1))
        low, high = (nu, high) if log_mass > 0 else (low, nu)
        if abs(log_mass) <= _CLOSE or high - low <= _ROUNDING * max(1.0, abs(low)):
            break
        slope = log_terms.softmax(-1) @ (1 / (1 + chi_squared * log_weights.exp()))
        # Newton's step on log E z, which is a line where weights are exponential; on E z where they are lines.
        steps = log_mass / float(slope), -math.expm1(-log_mass) / float(slope)
        inside = [nu + step for step in steps if low < nu + step < high]
        nu = inside[0] if inside else (low + high) / 2
    return ChiSquaredTilt(log_weights, top + beta * nu)


def _linked(excess: Tensor, chi_squared: float) -> Tensor:
    """The log z with log z + c·z = x. Of ω(y) = c·z, log ω = y − ω, which is exact where ω is small."""
    shifted = excess + math.log(chi_squared)
    scaled = torch.from_numpy(wrightomega(shifted.numpy()))
    return torch.where(scaled < 1, excess - scaled, scaled.log() - math.log(chi_squared))


def chi_squared_tilt_at(
    rewards: Float[Tensor, " N"], kl: float, chi_squared: float = 1.0
) -> Float[Tensor, " N"]:
    """Probabilities of outcomes that the reference holds alike, tilted by R under both penalties to a KL of the named.

    Args:
        rewards: R of each outcome.
        kl: KL(π‖π_ref) of the result, nats: over 0 and under log(N/the number of best outcomes).
        chi_squared: c.

    Raises:
        ValueError: no tilt has that KL.

    Examples:
        >>> probs = chi_squared_tilt_at(torch.tensor([0.0, 1.0, 2.0, 3.0]), kl=0.5)
        >>> probs, round(float((probs * (4 * probs).log()).sum()), 6)
        (tensor([0.0105, 0.0732, 0.2838, 0.6325], dtype=torch.float64), 0.5)
    """
    reference = torch.full_like(rewards.double(), -math.log(len(rewards)))
    spread = float(rewards.max() - rewards.min())
    most = -float(reference[rewards == rewards.max()].logsumexp(-1))
    if not 0 < kl < most:
        raise ValueError(f"a KL over 0 and under {most:.6g} nats, not {kl:g}")

    def tilted(log_beta: float) -> Tensor:
        return chi_squared_tilt(rewards, reference, math.exp(log_beta), chi_squared).log_weights

    def excess(log_beta: float) -> float:
        log_weights = tilted(log_beta)
        return float(((reference + log_weights).exp() * log_weights).sum()) - kl

    low = high = math.log(spread)
    while excess(high) > 0:
        high += 2.0
    while excess(low) < 0:
        low -= 2.0
    found = root_scalar(excess, bracket=(low, high), xtol=1e-12)
    return (reference + tilted(found.root)).exp()
