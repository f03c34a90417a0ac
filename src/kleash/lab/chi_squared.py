"""The optimum under χ² beside the KL, on a problem that can be enumerated, and where a policy stands against it.

With z = π/π_ref of whole responses, J(π) = E[R] − β (KL(π‖π_ref) + (c/2) χ²(π‖π_ref)) is E_π[R] − β E_ref[f(z)] with
f(z) = z log z + (c/2)(z² − 1). At the optimum R = β (log z* + c z*) + ν for every response, so that J* − J is β times
the Bregman divergence of f, E_ref[f(z) − f(z*) − f′(z*)(z − z*)], which is

    J* − J(π) = β ( KL(π‖π*) + (c/2) Σ_y (π − π*)²/π_ref ),        J* = ν + β c (1 + χ²(π*‖π_ref)/2).

At c = 0 these are β·KL(π‖π*) and β log Z.
"""

from dataclasses import dataclass

from torch import Tensor

from kleash.functional.chi_squared import chi_squared_tilt
from kleash.lab.mdp import MDP, reweighed


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """The policy that is best under both."""

    log_law: Tensor
    """[N], log π* of each sequence."""
    logits: Tensor
    """[S, V], log-probabilities."""
    nu: float
    """ν, in units of the reward."""


def chi_squared_optimum(mdp: MDP, beta: float, chi_squared: float) -> Optimum:
    """The policy that maximises E[R] − β (KL(π‖π_ref) + (c/2) χ²(π‖π_ref)).

    Args:
        mdp: the problem.
        beta: β, over 0.
        chi_squared: c; 0 is `lab.mdp.optimum`.

    Raises:
        InputError: β is so small that a sequence's probability underflows.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> found = chi_squared_optimum(golden(), beta=0.2, chi_squared=1.0)
        >>> round(found.nu, 6), round(float(found.log_law.exp() @ golden().rewards), 6)
        (0.228022, 0.955915)
    """
    reference = mdp.logprobs(mdp.ref_logits).sum(-1)
    log_weights, nu = chi_squared_tilt(mdp.rewards, reference, beta, chi_squared)
    what = f"the optimum at β = {beta:g} and c = {chi_squared:g}"
    logits = reweighed(mdp, log_weights, what, do="take a larger β")
    return Optimum(log_law=reference + log_weights, logits=logits, nu=nu)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChiSquaredStanding:
    """Where a policy stands, by enumeration."""

    j: float
    """E[R] − β (KL + (c/2) χ²)."""
    gap: float
    """J* − J."""
    gain_lost: float | None
    """Of J* − J(π_ref), what there is to gain; None where that is nothing."""
    reward: float
    kl: float
    """KL(π‖π_ref), nats per response."""
    chi_squared: float
    """χ²(π‖π_ref)."""
    bregman: float
    """KL(π‖π*) + (c/2) Σ (π − π*)²/π_ref; the gap is β times it."""


def chi_squared_standing(
    mdp: MDP, logits: Tensor, beta: float, chi_squared: float
) -> ChiSquaredStanding:
    """The value of a policy against J*.

    Args:
        mdp: the problem.
        logits: [S, V] of the policy.
        beta: β.
        chi_squared: c.

    Examples:
        >>> from kleash.lab.mdp import golden
        >>> standing = chi_squared_standing(golden(), golden().ref_logits, beta=0.2, chi_squared=1.0)
        >>> round(standing.gap, 6), round(0.2 * standing.bregman, 6)
        (0.585941, 0.585941)
    """
    reference = mdp.logprobs(mdp.ref_logits).sum(-1)
    best = chi_squared_optimum(mdp, beta, chi_squared).log_law
    own = mdp.logprobs(logits.double()).sum(-1)

    def values(log_law: Tensor) -> tuple[float, float, float, float]:
        """J, reward, KL and χ²."""
        law, log_ratio = log_law.exp(), log_law - reference
        reward, kl, far = (float(law @ x) for x in (mdp.rewards, log_ratio, log_ratio.expm1()))
        return reward - beta * (kl + 0.5 * chi_squared * far), reward, kl, far

    (j, reward, kl, far), (j_star, *_), (j_reference, *_) = map(values, (own, best, reference))
    law, gain = own.exp(), j_star - j_reference
    apart = ((law - best.exp()).square() / reference.exp()).sum()
    return ChiSquaredStanding(
        j=j,
        gap=j_star - j,
        gain_lost=(j_star - j) / gain if gain > 0 else None,
        reward=reward,
        kl=kl,
        chi_squared=far,
        bregman=float(law @ (own - best) + 0.5 * chi_squared * apart),
    )
