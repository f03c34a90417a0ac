"""The losses of PPO over the tokens of a minibatch, and DPO's of a pair."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def clipped_policy_loss(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    *,
    clip_eps: float | None = 0.2,
    clip_eps_high: float | None = None,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """PPO's clipped objective per token, as a loss: −min(ρA, clip(ρ, 1−ε, 1+ε′)A), ρ = exp(logprobs − old_logprobs).

    Schulman et al. 2017, arXiv 1707.06347; ε′ > ε is DAPO's "clip higher" (arXiv 2503.14476).

    Args:
        logprobs: of the tokens, with their gradient.
        old_logprobs: of the policy that drew them, or whatever else the ratio is taken from.
        advantages: A.
        clip_eps: ε; None: the ratio is not clipped, and the loss is −ρA.
        clip_eps_high: ε′; None: ε.

    Returns:
        The losses, and where the clip was the active branch.

    Examples:
        >>> clipped_policy_loss(torch.tensor([0.5, 0.0]), torch.zeros(2), torch.tensor([1.0, -1.0]))
        (tensor([-1.2000,  1.0000]), tensor([ True, False]))
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = ratio * advantages
    if clip_eps is None:
        return -unclipped, torch.zeros_like(unclipped, dtype=torch.bool)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    clipped = ratio.clamp(1.0 - clip_eps, 1.0 + high) * advantages
    return -torch.minimum(unclipped, clipped), clipped < unclipped


def step_penalty(
    logprobs: Float[Tensor, " N"], old_logprobs: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """What a token says of KL(old‖new), nats: ρ − 1 − log ρ, ρ = π_new/π_old.

    On tokens that the old policy drew its mean is KL(old‖new) and its gradient's that KL's: E_old[ρ] = 1.

    Examples:
        >>> step_penalty(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.0]))
        tensor([0.0000, 0.3679])
    """
    change = logprobs - old_logprobs
    return torch.expm1(change) - change


def adapted_penalty(coef: float, kl: float | None, target: float) -> float:
    """PPO's rule for the weight of KL(old‖new): doubled over 1.5 times the target, halved under its 1.5th part.

    Schulman et al. 2017, arXiv 1707.06347, section 4.

    Args:
        coef: as the last update used it.
        kl: of that update, nats per token; None: not measured, and the weight stays.
        target: nats per token.

    Examples:
        >>> adapted_penalty(1.0, 0.02, 0.01), adapted_penalty(1.0, 0.005, 0.01), adapted_penalty(1.0, 0.01, 0.01)
        (2.0, 0.5, 1.0)
    """
    if kl is None:
        return coef
    return 2.0 * coef if kl > 1.5 * target else 0.5 * coef if kl < target / 1.5 else coef


def clipped_value_loss(
    values: Float[Tensor, " N"],
    old_values: Float[Tensor, " N"],
    returns: Float[Tensor, " N"],
    *,
    clip_eps: float = 0.2,
) -> Float[Tensor, ""]:
    """½ mean max((V − G)², (V_clip − G)²), V_clip within ±ε of the value at sampling.

    Examples:
        >>> clipped_value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]))
        tensor(0.3200)
    """
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square()).mean()


def dpo_loss(
    chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"], beta: float
) -> Float[Tensor, " N"]:
    """−log σ(β (u_chosen − u_rejected)), u = log π/π_ref of a whole response.

    Rafailov et al. 2023, arXiv 2305.18290: where preferences follow Bradley and Terry in R, the least expected loss is
    at π_ref exp(R/β)/Z.

    Args:
        chosen: u of the responses preferred, nats.
        rejected: u of the others.
        beta: β, reward per nat.

    Examples:
        >>> dpo_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0]), 0.5)  # log(1 + 1/e), log 2
        tensor([0.3133, 0.6931])
    """
    return -logsigmoid(beta * (chosen - rejected))


def explained_variance(values: Float[Tensor, " N"], returns: Float[Tensor, " N"]) -> Tensor | None:
    """1 − Var(G − V)/Var(G): 1 is a perfect critic, 0 a constant one; None when the returns don't vary.

    Examples:
        >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor(1.)
    """
    if returns.numel() < 2 or returns.var() == 0:
        return None
    return 1.0 - (returns - values).var() / returns.var()
